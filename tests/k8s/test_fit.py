"""Placements and stacks that the checkout has, on clusters that its overlays make: nothing is missing."""

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import doctor
from cluster.findings import Finding
from cluster.needs import needs_of
from proxykd.config.stack import ClusterStackSpec, load_stack
from tests.k8s.api_server import ApiServer, api_server
from tests.k8s.conftest import K8S
from tests.k8s.references import EXTERNAL_SECRETS
from tests.support.kubectl import Manifest

pytestmark = pytest.mark.integration

Overlays = dict[str, list[Manifest]]
FITTING = [
    ("local", "cpu"),
    ("staging", "gpu"),
    ("production", "cpu"),
    ("production", "gpu"),
    ("production", "large"),
    ("production", "pools"),
]
# No pod runs on the double, and only an administrator sees what is the cluster's.
UNREADY = {"MLflow http://mlflow:5000"}
# Addresses that are still to be written.
ADDRESSES = {"NetworkPolicy api-server", "NetworkPolicy object-storage"}
UNWRITTEN = {"production": ADDRESSES, "staging": ADDRESSES, "local": set[str]()}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path) as found:
        yield found


def secret(name: str, keys: set[str], space: str) -> Manifest:
    data = {key: base64.b64encode(b"value").decode() for key in keys | {"OPENAI_API_KEY"}}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name, "namespace": space}, "data": data}


def node() -> Manifest:
    """Of the pool of processors; those with GPUs are made on demand."""
    amounts = {"cpu": "64", "memory": "256Gi", "ephemeral-storage": "500Gi"}
    metadata = {"name": "first", "labels": {"proxykd.dev/pool": "cpu"}}
    return {"apiVersion": "v1", "kind": "Node", "metadata": metadata, "spec": {}, "status": {"allocatable": amounts}}


def stack(placement: str) -> ClusterStackSpec:
    return shipped("kubernetes").model_copy(update={"placement": K8S / "placements" / f"{placement}.yaml"})


def shipped(name: str) -> ClusterStackSpec:
    found = load_stack(name)
    assert isinstance(found, ClusterStackSpec)
    return found.model_copy(update={"context": "double"})


def examined(
    api: ApiServer, overlay: list[Manifest], chosen: ClusterStackSpec, account: str, monkeypatch: Any
) -> list[Finding]:
    (space,) = [found["metadata"]["name"] for found in overlay if found["kind"] == "Namespace"]
    chosen = chosen.model_copy(update={"namespace": space})  # as its operator writes it into the stack's file
    api.apply(node(), *overlay, *(secret(name, keys, space) for name, keys in EXTERNAL_SECRETS.items()))
    api.access.is_enforced = True
    monkeypatch.setenv("KUBECONFIG", str(api.kubeconfig(space, account=account)))
    return list(doctor.examine_cluster(chosen, needs_of(chosen), is_scheduled=True))


@pytest.mark.parametrize(("overlay", "placement"), FITTING)
def test_a_cluster_lacks_nothing_that_a_placement_needs(
    api: ApiServer, overlays: Overlays, overlay: str, placement: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examined(api, overlays[overlay], stack(placement), "", monkeypatch)
    assert {finding.what for finding in found if finding.state == "missing"} == UNREADY | UNWRITTEN[overlay]
    assert any(finding.what == "quota proxykd" and finding.state == "ok" for finding in found)


@pytest.mark.parametrize(("overlay", "name"), [("local", "local-cluster"), ("production", "kubernetes")])
def test_a_stack_as_it_is_shipped_fits_its_overlay(
    api: ApiServer, overlays: Overlays, overlay: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examined(api, overlays[overlay], shipped(name), "", monkeypatch)
    assert {finding.what for finding in found if finding.state == "missing"} == UNREADY | UNWRITTEN[overlay]


def test_a_cluster_without_queues_is_told_so(
    api: ApiServer, overlays: Overlays, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examined(api, overlays["local"], stack("gpu"), "", monkeypatch)
    lacking = {finding.what for finding in found if finding.state == "missing"}
    assert {"pool h100: queue proxykd-h100", "training runtime proxykd-train"} <= lacking


def test_who_submits_may_look_at_what_the_namespace_has(
    api: ApiServer, overlays: Overlays, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = examined(api, overlays["production"], stack("gpu"), "proxykd-submitter", monkeypatch)
    states = {finding.what: finding.state for finding in found}
    assert {what for what, state in states.items() if state == "missing"} == UNREADY | UNWRITTEN["production"]
    assert (
        states["NetworkPolicy database"] == states["way of orchestrator and launcher to the API server"] == "unchecked"
    )
    for what in ("permissions", "service account proxykd-step", "volume claim proxykd-journal", "quota proxykd"):
        assert states[what] == "ok", states
    assert states["training runtime proxykd-train"] == states["Kueue (kueue.x-k8s.io/v1beta2)"] == "ok"
    assert states["secret proxykd-teacher"] == "unchecked"

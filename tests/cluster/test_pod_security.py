"""Kubeflow Pipelines' pods against the namespace's Pod Security: by version, by trial, and what nobody may look at."""

from typing import Any

import pytest

from cluster import doctor
from cluster.findings import Finding
from cluster.needs import Needs
from cluster.pod_security import check_pipelines
from proxykd.config.stack import ClusterStackSpec, load_stack
from tests.cluster.conftest import Connect, manifest
from tests.k8s import kinds
from tests.k8s.api_server import ApiServer
from tests.k8s.refusals import Refusal

IMAGE = "ghcr.io/kubeflow/kfp-api-server"
TOLD = 'pods "doctor" is forbidden: violates PodSecurity "restricted:v1.33": allowPrivilegeEscalation != false'


def install(server: ApiServer, image: str) -> None:
    server.create_namespace("kubeflow")
    pod = {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [{"name": "api", "image": image}]}}
    spec = {"selector": {"matchLabels": {"app": "x"}}, "template": pod}
    found = manifest("apps/v1", "Deployment", "ml-pipeline", spec=spec)
    found["metadata"]["namespace"] = "kubeflow"
    server.apply(found)


def enforce(server: ApiServer) -> None:
    """Pod Security restricted, as far as these pods meet it."""

    def check(found: dict[str, Any]) -> None:
        if found["kind"] == "Pod":
            own = found["spec"]["containers"][0]["securityContext"]
            if own.get("allowPrivilegeEscalation") is not False:
                raise Refusal(403, "Forbidden", TOLD)

    server.answers.webhooks.append(check)


def looked(connect: Connect, account: str = "") -> list[Finding]:
    return list(check_pipelines(connect(account), "kubeflow"))


@pytest.mark.parametrize(
    ("image", "state"),
    [
        (f"{IMAGE}:2.16.0", "ok"), (f"{IMAGE}:2.18.1@sha256:{'0' * 64}", "ok"), (f"{IMAGE}:3.0.0", "ok"),
        (f"{IMAGE}:2.15.2", "missing"), (f"{IMAGE}:2.5.0", "missing"), ("registry:5000/kfp:v1.8.22", "missing"),
        (f"{IMAGE}@sha256:{'0' * 64}", "missing"),
    ],
)  # fmt: skip
def test_a_namespace_that_is_restricted_wants_a_version_whose_pods_are(
    server: ApiServer, connect: Connect, image: str, state: str
) -> None:
    install(server, image)
    enforce(server)
    (finding,) = looked(connect)
    assert (finding.state, bool(finding.remedy)) == (state, state != "ok"), finding


def test_an_admission_rule_that_completes_the_pods_is_enough_and_the_trial_leaves_none(
    server: ApiServer, connect: Connect
) -> None:
    def complete(found: dict[str, Any]) -> None:
        if found["kind"] == "Pod":
            found["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = False

    install(server, f"{IMAGE}:2.5.0")
    server.answers.webhooks.append(complete)
    enforce(server)
    (finding,) = looked(connect)
    assert (finding.state, "completes its pods" in finding.found) == ("ok", True)
    assert not server.store.list(kinds.CORE["Pod"], "proxykd")


def test_a_namespace_that_is_not_restricted_is_nobodys_concern(server: ApiServer, connect: Connect) -> None:
    server.store.change(
        kinds.CORE["Namespace"], "", "proxykd", lambda found: found["metadata"].update(labels={"name": "proxykd"})
    )
    assert not looked(connect)


def test_who_may_not_look_is_told_what_would_be_asked(server: ApiServer, connect: Connect) -> None:
    install(server, f"{IMAGE}:2.5.0")
    server.access.is_enforced = True
    (finding,) = looked(connect, "default")
    assert (finding.state, "2.16" in finding.remedy) == ("unchecked", True)


@pytest.mark.parametrize(("name", "count"), [("kubeflow", 1), ("kubernetes", 0)])
def test_the_doctor_looks_for_stacks_of_kind_kubeflow(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, name: str, count: int
) -> None:
    install(server, f"{IMAGE}:2.5.0")
    enforce(server)
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("proxykd")))
    monkeypatch.setenv("no_proxy", "*")
    stack = load_stack(name)
    assert isinstance(stack, ClusterStackSpec)
    found = doctor.examine_cluster(
        stack.model_copy(update={"context": "double", "tracking_uri": "http://mlflow.proxykd.svc:5000"}),
        Needs((), (), {}, ()),
    )
    assert sum(one.what.startswith("Kubeflow Pipelines") and one.state == "missing" for one in found) == count

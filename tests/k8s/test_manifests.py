"""The overlays: rendered, strictly valid for every supported Kubernetes, and nothing in them points at nothing."""

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxykd.config.stack import ServiceAccountsSpec
from tests.k8s.conftest import K8S, OVERLAYS, render_with
from tests.k8s.policy import check
from tests.k8s.references import EXTERNAL_SECRETS, KUBEFLOW_SECRET, dangling
from tests.k8s.schemas import SUPPORTED, faults, has_schema
from tests.k8s.workloads import called, labels_of, workloads
from tests.support.kubectl import Manifest, render

Overlays = dict[str, list[Manifest]]
PAGE = (K8S.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8")
CLUSTER_WIDE = {"Namespace", "PriorityClass", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass"}
NEEDS_OPERATOR = {"kueue.x-k8s.io", "monitoring.coreos.com", "external-secrets.io"}


def one(objects: list[Manifest], kind: str, name: str) -> Manifest:
    (found,) = [each for each in objects if called(each) == f"{kind}/{name}"]
    return found


@pytest.mark.parametrize("version", SUPPORTED)
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_object_is_strictly_valid(overlays: Overlays, overlay: str, version: str) -> None:
    assert all(has_schema(found, version) for found in overlays[overlay])
    assert not {called(found): told for found in overlays[overlay] if (told := faults(found, version))}


@pytest.mark.parametrize(
    ("kind", "path", "value"),
    [
        ("Deployment", "spec.replica", 2),
        ("Deployment", "spec.template.spec.containers.0.readinessProb", {}),
        ("NetworkPolicy", "spec.egres", []),
        ("ClusterQueue", "spec.admissionChecks", ["dws"]),
        ("ClusterQueue", "spec.cohort", "proxykd"),
        ("LocalQueue", "spec.clusterqueue", "proxykd"),
        ("WorkloadPriorityClass", "value", "high"),
        ("ServiceMonitor", "spec.endpoints.0.ports", "http"),
        ("PrometheusRule", "spec.groups.0.rules.0.for", "soon"),
        ("ExternalSecret", "spec.data.0.remoteRef.field", "key"),
        ("ResourceFlavor", "metadata.label", {}),
    ],
)
def test_a_field_that_the_api_lacks_is_found(overlays: Overlays, kind: str, path: str, value: object) -> None:
    found = copy.deepcopy(next(each for each in overlays["production"] if each["kind"] == kind))
    *way, last = path.split(".")
    part: Any = found
    for name in way:
        part = part[int(name)] if name.isdigit() else part[name]
    part[last] = value
    assert faults(found, SUPPORTED[0])


def test_a_kind_or_version_that_does_not_exist_has_no_schema() -> None:
    for api_version, kind in (("apps/v2", "Deployment"), ("example.com/v1", "Thing"), ("kueue.x-k8s.io/v1", "Queue")):
        assert not has_schema({"apiVersion": api_version, "kind": kind})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_that_is_named_exists(overlays: Overlays, overlay: str) -> None:
    assert dangling(overlays[overlay]) == []


def rename(kind: str, name: str) -> Callable[[list[Manifest]], None]:
    def change(objects: list[Manifest]) -> None:
        one(objects, kind, name)["metadata"]["name"] = "another"

    return change


def relabel(objects: list[Manifest]) -> None:
    one(objects, "Deployment", "mlflow")["spec"]["template"]["metadata"]["labels"]["proxykd.dev/role"] = "step"


def rename_port(objects: list[Manifest]) -> None:
    one(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]["containers"][0]["ports"][0]["name"] = "web"


def another_key(objects: list[Manifest]) -> None:
    pod = one(objects, "Deployment", "mlflow")["spec"]["template"]["spec"]
    pod["containers"][0]["env"][0]["valueFrom"]["secretKeyRef"]["key"] = "url"


def another_variable(objects: list[Manifest]) -> None:
    pod = one(objects, "Job", "mlflow-migration")["spec"]["template"]["spec"]
    pod["containers"][0]["args"].append("$(DATABASE)")


def another_space(objects: list[Manifest]) -> None:
    one(objects, "RoleBinding", "proxykd-orchestrator")["subjects"][0]["namespace"] = "default"


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rename("ServiceAccount", "proxykd-mlflow"), "no service account proxykd-mlflow"),
        (rename("PriorityClass", "proxykd-service"), "no priority class proxykd-service"),
        (rename("Role", "proxykd-trainer"), "no role proxykd-trainer"),
        (rename("Service", "postgres"), "no service postgres"),
        (rename("ClusterQueue", "proxykd"), "no ClusterQueue proxykd"),
        (rename("ResourceFlavor", "a100"), "no ResourceFlavor a100"),
        (relabel, "selects no pod"),
        (rename_port, "no container has the port http"),
        (another_key, "no secret proxykd-mlflow-database with the key url"),
        (another_variable, "no variable DATABASE"),
        (another_space, "no service account default/proxykd-orchestrator"),
    ],
)
def test_a_name_that_points_at_nothing_is_found(
    overlays: Overlays, change: Callable[[list[Manifest]], None], told: str
) -> None:
    objects = copy.deepcopy(overlays["staging"])
    change(objects)
    assert told in {finding.message for finding in dangling(objects)}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everything_belongs_to_us_and_to_one_namespace(overlays: Overlays, overlay: str) -> None:
    (space,) = {found["metadata"]["name"] for found in overlays[overlay] if found["kind"] == "Namespace"}
    for found in overlays[overlay]:
        assert labels_of(found)["app.kubernetes.io/part-of"] == "proxykd", called(found)
        expected = None if found["kind"] in CLUSTER_WIDE else space
        assert found["metadata"].get("namespace") == expected, called(found)
    assert all(pod.labels["app.kubernetes.io/part-of"] == "proxykd" for pod in workloads(overlays[overlay]))


def test_a_cluster_without_operators_takes_the_local_overlay(overlays: Overlays) -> None:
    groups = {found["apiVersion"].rpartition("/")[0] for found in overlays["local"]}
    assert not groups & NEEDS_OPERATOR
    assert {found["apiVersion"].rpartition("/")[0] for found in overlays["production"]} >= NEEDS_OPERATOR


@pytest.mark.parametrize(
    ("part", "group"),
    [
        ("../../base/queue", "kueue.x-k8s.io"),
        ("../../base/observability", "monitoring.coreos.com"),
        ("../../components/external-secrets", "external-secrets.io"),
        ("../../trainjob", "trainer.kubeflow.org"),
    ],
)
def test_an_operators_part_can_be_left_out(tmp_path: Path, overlays: Overlays, part: str, group: str) -> None:
    for room in ("base", "components", "trainjob", "overlays/production"):
        shutil.copytree(K8S / room, tmp_path / room)
    file = tmp_path / "overlays" / "production" / "kustomization.yaml"
    content = yaml.safe_load(file.read_text(encoding="utf-8"))
    for field in ("components", "resources"):
        content[field] = [each for each in content[field] if each != part]
    file.write_text(yaml.safe_dump(content), encoding="utf-8")
    left = render(file.parent)
    assert group not in {found["apiVersion"].rpartition("/")[0] for found in left}
    assert {called(found) for found in left} < {called(found) for found in overlays["production"]}
    assert check(left) == dangling(left) == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_can_pull_from_a_registry_with_a_log_in(tmp_path: Path, overlay: str) -> None:
    objects = render_with(tmp_path, overlay, "private-registry")
    accounts = {each["metadata"]["name"]: each for each in objects if each["kind"] == "ServiceAccount"}
    assert accounts.keys() >= {pod.spec["serviceAccountName"] for pod in workloads(objects)}
    assert accounts.keys() >= set(ServiceAccountsSpec().model_dump().values())
    assert all(each["imagePullSecrets"] == [{"name": "proxykd-registry"}] for each in accounts.values())
    assert check(objects) == dangling(objects) == []


def test_the_authority_of_a_managed_database_is_where_mlflow_and_its_migration_look(tmp_path: Path) -> None:
    objects = render_with(tmp_path, "production", "database-ca")
    mounted = {
        called(pod.owner): mount["mountPath"]
        for pod in workloads(objects)
        for mount in pod.containers[0]["volumeMounts"]
        if mount["name"] == "database-ca" and mount["readOnly"]
    }
    assert mounted == dict.fromkeys(("Deployment/mlflow", "Job/mlflow-migration"), "/etc/proxykd/database-ca")
    assert f"sslrootcert={mounted['Deployment/mlflow']}/ca.crt" in PAGE
    assert check(objects) == dangling(objects) == []


def test_production_keeps_no_state_that_it_does_not_claim(overlays: Overlays) -> None:
    assert not [found for found in overlays["production"] if found["kind"] == "StatefulSet"]
    written = {each["metadata"]["name"] for each in overlays["production"] if each["kind"] == "ExternalSecret"}
    assert written == EXTERNAL_SECRETS.keys()
    kubeflow = render(K8S / "components" / "external-secrets-kubeflow")
    assert [each["metadata"]["name"] for each in kubeflow] == [KUBEFLOW_SECRET]


def test_a_pool_is_labelled_tainted_and_queued_by_one_name(overlays: Overlays) -> None:
    objects = overlays["production"]
    flavors = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "ResourceFlavor"}
    gpus = {f"{kind}{price}" for kind in ("h100", "a100", "l4") for price in ("", "-spot")}  # on demand and spot
    assert flavors.keys() == {"cpu", *gpus}
    (shared,) = one(objects, "ClusterQueue", "proxykd")["spec"]["resourceGroups"]
    assert {each["name"] for each in shared["flavors"]} == gpus
    assert one(objects, "LocalQueue", "proxykd-gpu")["spec"] == {"clusterQueue": "proxykd"}
    for name, spec in flavors.items():
        assert spec["nodeLabels"] == {"proxykd.dev/pool": name}
        assert bool(spec.get("nodeTaints")) == bool(spec.get("tolerations")) == (name != "cpu")
        queue = one(objects, "ClusterQueue", f"proxykd-{name}")["spec"]
        assert [each["name"] for group in queue["resourceGroups"] for each in group["flavors"]] == [name]
        assert one(objects, "LocalQueue", f"proxykd-{name}")["spec"] == {"clusterQueue": f"proxykd-{name}"}
    space = one(objects, "Namespace", "proxykd")
    for found in objects:
        if found["kind"] == "ClusterQueue":
            wanted = found["spec"]["namespaceSelector"]["matchLabels"]
            assert wanted.items() <= labels_of(space).items(), called(found)


def test_files_that_no_kustomization_names_do_not_exist() -> None:
    for file in sorted((K8S / "base").rglob("*.yaml")) + sorted((K8S / "components").rglob("*.yaml")):
        if file.name != "kustomization.yaml":
            listed = yaml.safe_load((file.parent / "kustomization.yaml").read_text(encoding="utf-8"))["resources"]
            assert file.name in listed, file

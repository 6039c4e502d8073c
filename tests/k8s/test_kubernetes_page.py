"""docs/kubernetes.md: its commands, run in order with the real kubectl against the API server double."""

import os
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from proxykd.config.stack import ClusterStackSpec, load_stack
from tests.k8s.conftest import K8S
from tests.k8s.kinds import CORE
from tests.k8s.pages import COMPLETE, FAILED, REFERENCE, SPACE, Cluster, blocks, checkout, page
from tests.k8s.policy import check
from tests.k8s.references import EXTERNAL_SECRETS, dangling
from tests.k8s.schemas import faults
from tests.k8s.workloads import called, workloads
from tests.support.kubectl import Manifest, render

PAGE = page("kubernetes")
BLOCKS = blocks(PAGE)
CLUSTER_WIDE = ("PriorityClass", "ClusterQueue", "ResourceFlavor", "WorkloadPriorityClass")
FORWARD = "port-forward service/"


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with checkout(tmp_path) as found:
        yield found


def change(file: Path, old: str, new: str) -> None:
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def one_block(text: str) -> str:
    (found,) = [block for block in BLOCKS if text in block]
    return found


def step_by_step(cluster: Cluster, block: str) -> Iterator[tuple[str, dict[str, Manifest]]]:
    """Run a block command by command; gives each and what is in the namespace after it."""
    for command in block.strip().splitlines():
        with cluster.controlled():
            cluster.run(command)
        yield command, cluster.objects()


@pytest.mark.integration
def test_from_nothing_to_mlflow_again_and_back_to_an_empty_namespace(
    cluster: Cluster, overlays: dict[str, list[Manifest]]
) -> None:
    _make, image, registry, namespace, authority, secrets, apply, diff, fetch, _mlflow, _storage, stop, remove = BLOCKS
    cluster.run(image)
    cluster.run(namespace)
    empty = cluster.objects().keys()
    cluster.run(registry)
    assert cluster.objects()["Secret/proxykd-registry"]["type"] == "kubernetes.io/dockerconfigjson"
    cluster.run(authority)
    assert "ca.crt" in cluster.objects()["ConfigMap/proxykd-database-ca"]["data"]
    cluster.run(secrets)
    made = cluster.objects()["Secret/proxykd-mlflow-database"]
    cluster.run(secrets)  # PostgreSQL would not take another password
    assert cluster.objects()["Secret/proxykd-mlflow-database"] == made
    held = {name: set(cluster.objects()[f"Secret/{name}"]["data"]) for name in EXTERNAL_SECRETS}
    assert all(held[name] >= keys for name, keys in EXTERNAL_SECRETS.items())
    for is_new in (True, False):  # the same commands install and bring up to date
        for command, present in step_by_step(cluster, apply):
            if "role!=mlflow" in command and is_new:
                assert "Job/mlflow-migration" in present
                assert "Deployment/mlflow" not in present
        applied = {called(found) for found in overlays["local"] if found["metadata"].get("namespace")}
        assert applied <= cluster.objects().keys()
        assert images(cluster.objects().values()) >= {REFERENCE}
    assert cluster.run(diff) == ""
    change(cluster.folder / "k8s" / "overlays" / "local" / "kustomization.yaml", "us-east-1", "eu-central-1")
    cluster.run("kubectl apply -k k8s/overlays/local")
    assert sum(name.startswith("ConfigMap/mlflow-settings-") for name in cluster.objects()) == 2
    with cluster.controlled():
        assert cluster.run(fetch).count("condition met") == 2
    cluster.api.apply(*left_by_runs(), namespace=SPACE)
    for block in (stop, remove):
        for command in block.strip().splitlines():
            used = mounted(cluster)
            cluster.run(command)
            assert used <= cluster.objects().keys(), f"{command}: Kubernetes would wait for the pods"
    assert cluster.objects().keys() == empty
    assert {one["metadata"]["name"] for one in cluster.api.store.list(CORE["Namespace"])} >= {SPACE}
    assert not cluster.api.store.list(CORE["PriorityClass"])
    cluster.run("kubectl delete namespace proxykd")
    assert not cluster.objects()


@pytest.mark.integration
def test_a_migration_that_fails_is_told_and_mlflow_is_left_alone(cluster: Cluster) -> None:
    cluster.run("kubectl apply -k k8s/base/namespace")
    with cluster.controlled(mlflow_migration=FAILED):
        told = cluster.finished(one_block("job/mlflow-migration").replace("--timeout=30s", "--timeout=1s"))
    assert told.returncode != 0
    assert "timed out waiting for the condition on jobs/mlflow-migration" in told.stderr
    assert "Deployment/mlflow" not in cluster.objects()
    log = cluster.folder / "migration.log"
    log.write_text("no such database")
    pod = pod_of(cluster.objects()["Job/mlflow-migration"])
    cluster.api.apply(pod, namespace=SPACE)
    cluster.api.log_files[SPACE, pod["metadata"]["name"], pod["spec"]["containers"][0]["name"]] = log
    assert cluster.run("kubectl -n proxykd logs job/mlflow-migration") == "no such database"


@pytest.mark.integration
def test_only_the_fetches_that_were_just_made_are_waited_for_and_one_that_fails_is_named(cluster: Cluster) -> None:
    cluster.run("kubectl apply -k k8s/overlays/local")
    job = yaml.safe_load((K8S / "fetch.yaml").read_text(encoding="utf-8"))
    cluster.api.apply({**job, "metadata": {**job["metadata"], "name": "fetch-of-yesterday"}}, namespace=SPACE)
    block = one_block("k8s/fetch.yaml").replace("--timeout=30s", "--timeout=1s")
    with cluster.controlled(fetch_of_yesterday=FAILED):
        assert cluster.finished(block).returncode == 0
    before = {name for name in cluster.objects() if name.startswith("Job/fetch-")}
    with cluster.controlled(**{name.removeprefix("Job/"): COMPLETE for name in before}, fetch=FAILED):
        told = cluster.finished(block)
    (failed,) = {name for name in cluster.objects() if name.startswith("Job/fetch-")} - before
    assert told.returncode != 0
    assert re.findall(r"jobs/\S+", told.stderr) == [failed.replace("Job", "jobs")]


@pytest.mark.parametrize("overlay", ["local", "production"])
def test_weights_are_fetched_by_a_pod_that_breaks_no_rule(overlays: dict[str, list[Manifest]], overlay: str) -> None:
    job = yaml.safe_load((K8S / "fetch.yaml").read_text(encoding="utf-8"))
    (space,) = [found["metadata"]["name"] for found in overlays[overlay] if found["kind"] == "Namespace"]
    objects = [*overlays[overlay], {**job, "metadata": {**job["metadata"], "name": "fetch-1", "namespace": space}}]
    assert not faults(objects[-1])
    assert check(objects) == dangling(objects) == []
    (pod,) = [pod for pod in workloads(objects) if pod.labels["proxykd.dev/role"] == "fetch"]
    (models,) = [mount for mount in pod.spec["containers"][0]["volumeMounts"] if mount["name"] == "models"]
    assert models == {"name": "models", "mountPath": "/models"}


def test_the_program_that_fetches_knows_its_arguments(tmp_path: Path) -> None:
    job = yaml.safe_load((K8S / "fetch.yaml").read_text(encoding="utf-8"))
    (container,) = job["spec"]["template"]["spec"]["containers"]
    program = Path(sys.executable).with_name(Path(container["command"][0]).name)
    variables = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    done = subprocess.run([program, *container["args"]], env=variables, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert "offline" in (done.stdout + done.stderr).lower()  # it would have asked the hub for that model


def left_by_runs() -> list[Manifest]:
    """A schedule, a step under way, and the token of a run."""
    labels = {"app.kubernetes.io/part-of": SPACE}
    claim = {"name": "journal", "persistentVolumeClaim": {"claimName": "proxykd-journal"}}
    container = {
        "name": "main", "image": REFERENCE, "resources": {"limits": {"memory": "1Gi"}, "requests": {"cpu": "1"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {"restartPolicy": "Never", "containers": [container], "volumes": [claim], "securityContext": security}
    job = {"backoffLimit": 0, "template": {"metadata": {"labels": labels}, "spec": pod}}
    return [
        {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "weekly", "labels": labels},
         "spec": {"schedule": "@weekly", "jobTemplate": {"spec": job}}},
        {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "step", "labels": labels}, "spec": job},
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "zenml-token-of-another"}},
    ]  # fmt: skip


def pod_of(job: Manifest) -> Manifest:
    """The pod that a Job made, as it failed."""
    name, labels = job["metadata"]["name"], job["spec"]["selector"]["matchLabels"]
    spec, status = job["spec"]["template"]["spec"], {"phase": "Failed"}
    meta = {"name": f"{name}-1", "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": status}


def mounted(cluster: Cluster) -> set[str]:
    """The claims that the pods of Jobs use."""
    pods = [pod for pod in workloads(cluster.objects().values()) if pod.owner["kind"] == "Job"]
    volumes = [volume for pod in pods for volume in pod.spec.get("volumes") or []]
    return {f"PersistentVolumeClaim/{one['persistentVolumeClaim']['claimName']}" for one in volumes
            if "persistentVolumeClaim" in one}  # fmt: skip


def images(objects: Iterable[Manifest]) -> set[str]:
    return {container["image"] for pod in workloads(objects) for container in pod.containers}


def test_what_is_forwarded_exists_and_is_what_the_stack_names(overlays: dict[str, list[Manifest]]) -> None:
    services = {called(found): found["spec"] for found in overlays["local"] if found["kind"] == "Service"}
    blocks_of_one = [block for block in BLOCKS if FORWARD in block]
    assert all(len(block.splitlines()) == 1 for block in blocks_of_one), "the first of two would block"
    forwards = re.findall(r"service/([a-z-]+) (\d+):(\d+)$", "".join(blocks_of_one), re.MULTILINE)
    for name, here, there in forwards:
        assert [str(port["port"]) for port in services[f"Service/{name}"]["ports"]] == [here] == [there]
    stack = load_stack("local-cluster")
    assert isinstance(stack, ClusterStackSpec)
    named = {stack.tracking_uri, stack.artifact_store.endpoint_url}
    assert named == {f"http://{name}:{port}" for name, port, _ in forwards}
    (settings,) = [found["data"] for found in overlays["local"] if found["kind"] == "ConfigMap"]
    assert settings["MLFLOW_S3_ENDPOINT_URL"] == stack.artifact_store.endpoint_url
    assert settings["AWS_DEFAULT_REGION"] == stack.artifact_store.region
    assert settings["MLFLOW_ARTIFACTS_DESTINATION"].split("/")[2] == stack.artifact_store.path.split("/")[2]


@pytest.mark.parametrize(
    ("overlay", "name"),
    [("local", "local-cluster"), ("staging", "kubernetes"), ("production", "kubernetes"), ("production", "kubeflow")],
)
def test_the_image_that_was_pushed_gets_into_overlay_and_stack(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, overlay: str, name: str
) -> None:
    block = one_block("image=$(cat build/image/reference)")
    cluster.run(block.replace("overlays/local/", f"overlays/{overlay}/").replace("local-cluster", name))
    monkeypatch.chdir(cluster.folder)
    stack = load_stack(f"k8s/stacks/{name}.yaml")
    assert isinstance(stack, ClusterStackSpec)
    assert (stack.image, stack.container_registry) == (REFERENCE, "registry.example/team")
    assert stack.context == yaml.safe_load(cluster.api.kubeconfig(SPACE).read_text())["current-context"]
    rendered = images(render(cluster.folder / "k8s" / "overlays" / overlay))
    assert REFERENCE in rendered
    assert not [image for image in rendered if image.endswith(REFERENCE.partition("@")[2]) and image != REFERENCE]
    assert not [image for image in rendered if "0" * 64 in image]


@pytest.mark.integration
@pytest.mark.parametrize("overlay", ["staging", "production"])
def test_the_other_overlays_are_admitted_too(cluster: Cluster, overlay: str) -> None:
    for _ in range(2):
        printed = cluster.run(f"kubectl apply -k k8s/overlays/{overlay}")
    assert not [line for line in printed.splitlines() if line.endswith("created")]
    queues: list[Any] = cluster.api.store.list(CORE["ClusterQueue"])
    assert {"proxykd", "proxykd-h100", "proxykd-cpu"} <= {found["metadata"]["name"] for found in queues}


@pytest.mark.integration
def test_one_of_two_overlays_goes_with_its_namespace_and_leaves_the_cluster_to_the_other(cluster: Cluster) -> None:
    namespace = one_block("component=namespace").replace("/local", "/staging")
    assert "proxykd-staging created" in cluster.run(namespace)
    for overlay in ("staging", "production"):
        cluster.run(f"kubectl apply -k k8s/overlays/{overlay}")
    kept = {called(one) for kind in CLUSTER_WIDE for one in cluster.api.store.list(CORE[kind])}
    before = cluster.objects().keys()
    cluster.run("kubectl delete namespace proxykd-staging")
    assert {called(one) for kind in CLUSTER_WIDE for one in cluster.api.store.list(CORE[kind])} == kept
    assert cluster.objects().keys() == before
    assert not cluster.api.store.list(CORE["ConfigMap"], "proxykd-staging")


def test_every_command_of_the_page_is_in_a_block_that_runs() -> None:
    assert len(BLOCKS) == 13
    assert all(line.startswith("make ") for line in BLOCKS[0].splitlines())
    inline = set(re.findall(r"`(kubectl [^`]*)`", PAGE))
    deletions = {f"kubectl delete namespace {name}" for name in (SPACE, "proxykd-staging")}
    assert inline == {*deletions, "kubectl -n proxykd logs job/mlflow-migration"}


def test_the_page_names_every_queue(overlays: dict[str, list[Manifest]]) -> None:
    queues = [found["metadata"]["name"] for found in overlays["production"] if found["kind"] == "LocalQueue"]
    assert queues
    assert all(f"`{name}`" in PAGE for name in queues)

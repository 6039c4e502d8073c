"""The kubelet double with real containers: what the engine enforces is told as a kubelet tells it."""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.k8s.cluster import Cluster, cluster
from tests.k8s.kinds import CORE
from tests.k8s.rbac import granted
from tests.k8s.runtimes import Containers
from tests.k8s.test_kubelet import settled, submit
from tests.support.confines import Confines, confines
from tests.support.containers import built_image
from tests.support.kubectl import render
from tests.support.program import CHECKOUT

pytestmark = [pytest.mark.containers, pytest.mark.timeout(3_000)]  # the first one builds the image

UID = 10001
MIB = 2**20
POD = {
    "securityContext": {
        "runAsNonRoot": True, "runAsUser": UID, "runAsGroup": UID, "fsGroup": UID,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
    "automountServiceAccountToken": False,
}  # fmt: skip
CONTAINER = {
    "resources": {"limits": {"memory": "256Mi"}},
    "securityContext": {
        "readOnlyRootFilesystem": True,
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    },
}


@pytest.fixture
def runtime() -> Containers:
    return Containers()


@pytest.fixture
def double(tmp_path: Path, runtime: Containers) -> Iterator[Cluster]:
    with cluster(tmp_path, runtime=runtime, addresses={"http://mlflow:5000": "http://127.1.2.3:5000"}) as found:
        yield found
    assert not [one for one in runtime.started.values() if one.inspect(".State.Status")]


def run(double: Cluster, program: str, *, pod: Any = None, container: Any = None, **spec: Any) -> Callable[[], Any]:
    """A Job of one pod of the image that runs a Python program; gives a function that reads it."""
    own = {**CONTAINER, "image": built_image(), **(container or {})}
    command = ["/opt/venv/bin/python", "-u", "-c", program]
    return submit(double, command, container=own, pod={**POD, **(pod or {})}, backoffLimit=0, **spec)


def end_of(double: Cluster) -> dict[str, Any]:
    """How the only pod's container ended."""
    (pod,) = double.api.store.list(CORE["Pod"], "proxykd")
    ended: dict[str, Any] = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    return ended


def log(double: Cluster) -> str:
    ((_, path),) = double.api.log_files.items()
    return path.read_text(encoding="utf-8")


def test_a_pod_writes_to_its_mounts_alone_and_knows_services_by_name(double: Cluster) -> None:
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}}
    size = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    double.api.apply({**claim, "spec": size}, namespace="proxykd")
    volumes = [{"name": "data", "persistentVolumeClaim": {"claimName": "data"}}, {"name": "tmp", "emptyDir": {}}]
    mounts = [{"name": "data", "mountPath": "/data"}, {"name": "tmp", "mountPath": "/tmp"}]
    program = """
import pathlib, socket
for place in ("/data", "/tmp", "/app", "/home/proxykd", "/var/tmp", "/dev/shm"):
    try:
        pathlib.Path(place, "x").write_text("x")
        print(place, "yes")
    except OSError as error:
        print(place, error.errno)
print(socket.gethostbyname("mlflow"), socket.gethostname() == socket.gethostbyaddr("127.0.0.1") or "named")
"""

    read = run(double, program, pod={"volumes": volumes}, container={"volumeMounts": mounts})

    assert settled(read)["type"] == "Complete", log(double)
    told = log(double).splitlines()
    assert told[:5] == ["/data yes", "/tmp yes", "/app 30", "/home/proxykd 30", "/var/tmp 30"]
    assert told[-1].startswith("127.1.2.3")
    written = double.kubelet.machine.claim("proxykd", "data") / "x"
    assert (written.stat().st_uid, written.stat().st_gid) == (UID, UID)


@pytest.mark.parametrize("is_restricted", [True, False])
def test_a_pod_is_held_as_its_specification_says(double: Cluster, runtime: Containers, is_restricted: bool) -> None:
    seen: list[Confines] = []

    def look(pod: Any, path: Path) -> bool:
        seen.extend(filter(None, [confines(runtime.started[pod["metadata"]["name"]])]))
        return bool(seen)

    double.kubelet.befall("killed", when=look)
    free = {"securityContext": {"allowPrivilegeEscalation": True}, "resources": {"limits": {"memory": "128Mi"}}}

    read = run(
        double,
        "import time; time.sleep(60)",
        pod={} if is_restricted else {"securityContext": {"runAsUser": 0}},
        container={} if is_restricted else free,
    )

    settled(read)
    if is_restricted:
        assert seen == [Confines((UID,) * 4, 0, True, True, False, 256 * MIB)]
    else:
        assert seen == [Confines((0,) * 4, seen[0].capabilities, False, False, False, 128 * MIB)]
        assert seen[0].capabilities


def test_a_pod_that_needs_more_memory_than_its_limit_is_told_to_be_out_of_it(double: Cluster) -> None:
    read = run(double, f"bytearray({2000 * MIB})")

    assert settled(read)["type"] == "Failed"
    ended = end_of(double)
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")


def test_a_first_process_that_does_not_heed_the_request_is_killed_after_its_grace(double: Cluster) -> None:
    """In a container nobody but the program itself makes SIGTERM end it."""
    double.kubelet.befall("evicted", app="work", when=lambda pod, path: b"up" in path.read_bytes())
    began = time.monotonic()

    read = run(double, "import time; print('up'); time.sleep(60)", labels={"app": "work"},
               pod={"terminationGracePeriodSeconds": 2})  # fmt: skip

    assert settled(read)["type"] == "Failed"
    assert time.monotonic() - began < 50
    assert end_of(double)["exitCode"] == 128 + signal.SIGKILL


def test_the_client_of_the_api_server_finds_its_account_by_itself(double: Cluster) -> None:
    overlay = [one for one in render(CHECKOUT / "k8s" / "overlays" / "local") if "Role" in one["kind"]]
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "proxykd-trainer"}}
    double.api.apply(account, *overlay, namespace="proxykd")
    double.api.access.is_enforced = True
    program = """
from kubernetes import client, config
config.load_incluster_config()
pods = client.CoreV1Api().list_namespaced_pod("proxykd").items
print([pod.status.phase for pod in pods])
try:
    client.CoreV1Api().list_namespaced_secret("proxykd")
except client.ApiException as error:
    print(error.status)
"""
    assert ("list", "", "secrets") not in granted(overlay, "proxykd-trainer")

    read = run(double, program, pod={"serviceAccountName": "proxykd-trainer", "automountServiceAccountToken": True})

    assert settled(read)["type"] == "Complete", log(double)
    assert log(double).splitlines() == ["['Running']", "403"]


def test_what_the_double_cannot_run_waits_and_says_why(double: Cluster) -> None:
    run(double, "", container={"lifecycle": {"preStop": {"exec": {"command": ["true"]}}}})

    deadline = time.monotonic() + 60
    while not (waiting := [one for one in map(_waiting, double.api.store.list(CORE["Pod"], "proxykd")) if one]):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert waiting[0]["reason"] == "CreateContainerError"
    assert "lifecycle" in waiting[0]["message"]


def _waiting(pod: dict[str, Any]) -> Any:
    return next((one["state"].get("waiting") for one in pod["status"].get("containerStatuses", [])), None)

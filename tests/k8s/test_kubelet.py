"""The kubelet and the Job controller double: real processes, and each mishap as a cluster would tell it."""

import base64
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config

from tests.k8s.cluster import Cluster, cluster
from tests.k8s.kinds import CORE

pytestmark = pytest.mark.integration

LIMIT_S = 60.0
DISRUPTION = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}
EXITS = {"action": "Count", "onExitCodes": {"operator": "NotIn", "values": [0]}}
SLEEP = ["sh", "-c", "echo up; exec sleep 60"]


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path) as found:
        yield found


def submit(double: Cluster, command: list[str], **spec: Any) -> Callable[[], dict[str, Any]]:
    """Create a Job through the API; gives a function that reads it."""
    pod = spec.pop("pod", {})
    container = {"name": "main", "image": "image", "command": command, **spec.pop("container", {})}
    labels = spec.pop("labels", {})
    template = {"metadata": {"labels": labels}, "spec": {"restartPolicy": "Never", "containers": [container], **pod}}
    body = {"metadata": {"name": "work", "labels": labels}, "spec": {"template": template, **spec}}
    objects = client.CustomObjectsApi(config.new_client_from_config(str(double.api.kubeconfig("proxykd"))))
    objects.create_namespaced_custom_object("batch", "v1", "proxykd", "jobs", body)
    return lambda: objects.get_namespaced_custom_object("batch", "v1", "proxykd", "jobs", "work")


def settled(read: Callable[[], dict[str, Any]], *types: str) -> dict[str, Any]:
    """The Job's last condition, once it is one of these."""
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        conditions = read().get("status", {}).get("conditions", [])
        if conditions and conditions[-1]["type"] in (types or ("Complete", "Failed")):
            return dict(conditions[-1])
        time.sleep(0.02)
    raise AssertionError(read())


def pods(double: Cluster) -> Any:
    core = client.CoreV1Api(config.new_client_from_config(str(double.api.kubeconfig("proxykd"))))
    return core, core.list_namespaced_pod("proxykd").items


def is_up(pod: dict[str, Any], log: Path) -> bool:
    return log.exists() and log.read_bytes() != b""


def test_a_command_runs_with_its_variables_and_volumes_and_its_log_is_kept(double: Cluster) -> None:
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}}
    coded = base64.b64encode(b"open sesame").decode()
    double.api.apply({**secret, "data": {"KEY": coded}}, namespace="proxykd")
    reference = {"secretKeyRef": {"name": "keys", "key": "KEY"}}
    container = {
        "env": [
            {"name": "OWN", "valueFrom": reference},
            {"name": "ME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
        ],
        "envFrom": [{"secretRef": {"name": "keys"}}],
        "volumeMounts": [{"name": "data", "mountPath": "/data"}, {"name": "keys", "mountPath": "/keys"}],
    }
    volumes = [{"name": "data", "emptyDir": {}}, {"name": "keys", "secret": {"secretName": "keys"}}]
    program = "import os; open('/data/x'.replace('/data', os.environ['D']), 'w').write(os.environ['OWN'])"
    container["env"].append({"name": "D", "value": "/data"})
    script = f'{{ python3 -c "{program}"; cat "$D/x" /keys/KEY; echo " $KEY $ME $HOSTNAME"; }}'

    read = submit(double, ["sh", "-c", script], container=container, pod={"volumes": volumes})

    assert settled(read)["type"] == "Complete"
    core, (pod,) = pods(double)
    name = pod.metadata.name
    assert core.read_namespaced_pod_log(name, "proxykd") == f"open sesameopen sesame open sesame {name} {name}\n"
    assert pod.status.container_statuses[0].state.terminated.exit_code == 0


@pytest.mark.parametrize(
    ("how", "code"), [("killed", 137), ("out of memory", 137), ("evicted", 143), ("node gone", 137)]
)
def test_a_disruption_costs_no_retry_and_a_failure_does(double: Cluster, how: Any, code: int) -> None:
    double.kubelet.befall(how, app="work", when=is_up)
    is_disruption = how in ("evicted", "node gone")
    # The second pod ends well: the first has left its mark.
    once = ["sh", "-c", "if [ -e /data/x ]; then exit 0; fi; : > /data/x; echo up; exec sleep 60"]
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "data"}}
    size = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    double.api.apply({**claim, "spec": size}, namespace="proxykd")
    mounts = {"volumeMounts": [{"name": "data", "mountPath": "/data"}]}
    volume = {"name": "data", "persistentVolumeClaim": {"claimName": "data"}}

    read = submit(
        double,
        once,
        labels={"app": "work"},
        backoffLimit=0,
        podFailurePolicy={"rules": [DISRUPTION, EXITS]},
        container=mounts,
        pod={"volumes": [volume], "terminationGracePeriodSeconds": 1},
    )

    assert settled(read)["type"] == ("Complete" if is_disruption else "Failed")
    first = next(pod for pod in pods(double)[1] if pod.status.phase == "Failed")
    ended = first.status.container_statuses[0].state.terminated
    assert ended.exit_code == code
    assert (ended.reason == "OOMKilled") is (how == "out of memory")
    assert bool([one for one in first.status.conditions if one.type == "DisruptionTarget"]) is is_disruption


def test_a_pod_on_a_node_that_cannot_be_reached_is_not_replaced_until_it_is_deleted(double: Cluster) -> None:
    double.kubelet.befall("node unreachable", app="work", when=is_up)
    submit(double, SLEEP, labels={"app": "work"}, backoffLimit=1)

    def awaited(number: int) -> Any:
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline:
            found = [one for one in pods(double)[1] if one.metadata.deletion_timestamp]
            if len(double.kubelet.starts) == number and (found or number == 2):
                return found
            time.sleep(0.02)
        raise AssertionError(double.kubelet.starts)

    (pod,) = awaited(1)
    time.sleep(0.5)
    assert [pod] == awaited(1)
    assert pod.status.phase == "Running"
    double.api.store.delete(CORE["Pod"], "proxykd", pod.metadata.name)
    assert not awaited(2)


def test_a_program_may_save_its_work_in_the_grace_period(double: Cluster) -> None:
    double.kubelet.befall("evicted", app="work", when=is_up)
    patient = "trap 'echo saved; exit 0' TERM; echo up; while :; do sleep 0.05; done"

    read = submit(double, ["sh", "-c", patient], labels={"app": "work"}, backoffLimit=0)

    settled(read)
    core, (pod,) = pods(double)
    assert "saved" in core.read_namespaced_pod_log(pod.metadata.name, "proxykd")


def test_retries_run_out(double: Cluster) -> None:
    read = submit(double, ["sh", "-c", "exit 3"], backoffLimit=2)

    assert settled(read)["reason"] == "BackoffLimitExceeded"
    assert len(pods(double)[1]) == 3


def test_a_job_past_its_deadline_is_ended(double: Cluster) -> None:
    read = submit(double, SLEEP, activeDeadlineSeconds=1)

    assert settled(read)["reason"] == "DeadlineExceeded"


def test_a_missing_image_or_secret_waits_and_says_why(double: Cluster) -> None:
    double.kubelet.befall("image missing", app="work")
    submit(double, SLEEP, labels={"app": "work"})

    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        found = pods(double)[1]
        if found and found[0].status.container_statuses:
            break
        time.sleep(0.02)
    assert found[0].status.container_statuses[0].state.waiting.reason == "ImagePullBackOff"


def test_a_closed_queue_holds_a_job_and_an_open_one_lets_it_go(double: Cluster) -> None:
    double.jobs.closed.add("gpu")
    read = submit(double, ["true"], labels={"kueue.x-k8s.io/queue-name": "gpu"})

    assert settled(read, "Suspended")
    assert not pods(double)[1]
    double.jobs.closed.remove("gpu")
    double.api.store.change(*_job_key(), lambda job: job["metadata"].setdefault("annotations", {}).update(looked="1"))
    assert settled(read)["type"] == "Complete"


def _job_key() -> Any:
    from tests.k8s.kinds import CORE

    return CORE["Job"], "proxykd", "work"


def test_deleting_a_job_ends_its_process(double: Cluster, tmp_path: Path) -> None:
    submit(double, SLEEP, pod={"terminationGracePeriodSeconds": 1})
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline and not double.kubelet.starts:
        time.sleep(0.02)
    running = next(iter(double.kubelet._running.values()))

    double.api.store.delete(*_job_key())

    assert running.processes["main"].wait(LIMIT_S) == -15


def test_indexed_pods_know_their_number(double: Cluster) -> None:
    read = submit(
        double, ["sh", "-c", "echo $JOB_COMPLETION_INDEX"], completions=3, parallelism=2, completionMode="Indexed"
    )

    assert settled(read)["type"] == "Complete"
    core, found = pods(double)
    logs = [core.read_namespaced_pod_log(pod.metadata.name, "proxykd") for pod in found]
    assert sorted(log.strip() for log in logs) == ["0", "1", "2"]

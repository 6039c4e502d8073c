"""The TrainJob and its runtime are what the cluster's schemas and Pod Security `restricted` ask for."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from cluster.manifest import TEMPLATE, train_job
from proxykd.config.launcher import LauncherSpec
from proxykd.launching.worker import LOST, TOLD
from tests.cluster.conftest import runtime
from tests.k8s.defaults import admitted
from tests.k8s.schemas import faults
from tests.k8s.train_jobs import child_job

OWNER = {"apiVersion": "batch/v1", "kind": "Job", "name": "step", "uid": "u"}


def full(**changes: Any) -> dict[str, Any]:
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}
    options = {
        "kind": "trainjob",
        "nodes": 2,
        "processes_per_node": 8,
        "queue": "proxykd-gpu",
        "priority": "proxykd-high",
        "cpu": "64",
        "memory": "512Gi",
        "gpus": 8,
        "node_selectors": {"proxykd.dev/pool": "h100"},
        "tolerations": [toleration],
        "grace_s": 600,
        "shm": "64Gi",
        "scratch": "40Gi",
    }
    environ = {
        "PROXYKD_HOME": "/var/lib/proxykd",
        "OPENAI_API_KEY": "secret",
        "HF_TOKEN": "secret",
        "OMP_NUM_THREADS": "3",
    }
    spec = LauncherSpec(**{**options, **changes})
    arguments = ["a.module", "/var/lib/proxykd/launches/x/job.json"]
    return train_job("x", spec, arguments=arguments, image="image@sha256:0", work="w", owner=OWNER, environ=environ)


def pod_of(body: dict[str, Any]) -> dict[str, Any]:
    made: dict[str, Any] = child_job(body, runtime(), "x-node-0")["spec"]["template"]
    return made


@pytest.mark.parametrize("body", [runtime(), full(), full(queue=None, gpus=0, cpu=None, memory=None, tolerations=())])
def test_every_field_is_one_that_the_definitions_know(body: dict[str, Any]) -> None:
    assert faults(body) == []


@pytest.mark.parametrize(
    ("cpu", "processes", "threads"), [("64", 8, "8"), ("96", 8, "12"), ("4500m", 2, "2"), ("1", 8, "1"), (None, 8, "3")]
)
def test_a_process_has_the_threads_of_its_own_pod(cpu: str | None, processes: int, threads: str) -> None:
    """Those of its step, which only follows it, where the placement leaves the processors to the runtime."""
    env = full(cpu=cpu, processes_per_node=processes)["spec"]["trainer"]["env"]
    assert {one["name"]: one["value"] for one in env}["OMP_NUM_THREADS"] == threads


def misspelt(body: dict[str, Any]) -> None:
    body["spec"]["trainer"]["numNode"] = 2


def ill_typed(body: dict[str, Any]) -> None:
    body["spec"]["trainer"]["numProcPerNode"] = "two"


def unpatchable(body: dict[str, Any]) -> None:
    patch = body["spec"]["runtimePatches"][0]["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"][0]
    patch["template"]["spec"]["backoffLimit"] = 9


@pytest.mark.parametrize("spoil", [misspelt, ill_typed, unpatchable])
def test_the_check_finds_what_the_definitions_do_not_know(spoil: Callable[[dict[str, Any]], None]) -> None:
    body = copy.deepcopy(full())
    spoil(body)
    assert faults(body)


def test_the_job_that_comes_of_it_is_valid_too() -> None:
    job = admitted(child_job(full(), runtime(), "x-node-0"))
    assert faults(job) == []


def test_a_training_says_who_it_is_for_whom_and_how_big() -> None:
    body = full()
    assert body["metadata"]["labels"] == {
        "app.kubernetes.io/part-of": "proxykd",
        "proxykd.dev/role": "train",
        "kueue.x-k8s.io/queue-name": "proxykd-gpu",
        "kueue.x-k8s.io/priority-class": "proxykd-high",
    }
    assert body["metadata"]["ownerReferences"] == [OWNER]
    trainer = body["spec"]["trainer"]
    assert (trainer["numNodes"], trainer["numProcPerNode"], trainer["image"]) == (2, 8, "image@sha256:0")
    assert trainer["resourcesPerNode"] == {
        "requests": {"cpu": "64", "memory": "512Gi", "ephemeral-storage": "40Gi", "nvidia.com/gpu": "8"},
        "limits": {"memory": "512Gi", "ephemeral-storage": "40Gi", "nvidia.com/gpu": "8"},
    }
    assert yaml.safe_load(TEMPLATE.read_text())["spec"]["trainer"] == {"command": trainer["command"]}, (
        "it is not changed"
    )


def test_no_secret_of_the_step_reaches_the_training() -> None:
    assert "secret" not in str(full())
    assert "envFrom" not in str(runtime())


def test_a_pod_is_what_pod_security_restricted_admits() -> None:
    pod = pod_of(full())["spec"]
    (container,) = pod["containers"]
    own, whole = container["securityContext"], pod["securityContext"]
    assert own == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert whole["runAsNonRoot"] is True
    assert whole["runAsUser"] == 10001
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
    assert all({"emptyDir", "persistentVolumeClaim"} & set(volume) for volume in pod["volumes"])
    mounted = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    assert {"/var/lib/proxykd", "/models", "/tmp", "/home/proxykd", "/dev/shm"} == set(mounted)
    assert mounted["/models"]["readOnly"] is True


def test_sizes_of_folders_reach_the_pods_and_change_nothing_else_of_them() -> None:
    plain, sized = (
        {one["name"]: one for one in pod_of(body)["spec"]["volumes"]} for body in (full(shm=None, scratch=None), full())
    )
    (told,) = runtime()["spec"]["template"]["spec"]["replicatedJobs"]
    own = told["template"]["spec"]["template"]["spec"]["volumes"]
    assert plain == {one["name"]: one for one in own}
    assert sized == {
        **plain,
        "shm": {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "64Gi"}},
        "tmp": {"name": "tmp", "emptyDir": {"sizeLimit": "40Gi"}},
        "home": {"name": "home", "emptyDir": {"sizeLimit": "40Gi"}},
    }


def test_preemption_comes_first_and_the_statuses_are_those_of_the_processes() -> None:
    job = child_job(full(), runtime(), "x-node-0")["spec"]
    preempted, wrong, cut_short = job["podFailurePolicy"]["rules"]
    assert preempted["action"] == cut_short["action"] == "Ignore"
    assert preempted["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert (wrong["action"], wrong["onExitCodes"]["values"]) == ("FailJob", [TOLD])
    assert cut_short["onExitCodes"]["values"] == [LOST]
    assert job["template"]["spec"]["restartPolicy"] == "Never", "failure policies need it"
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] == 600

"""A TrainJob that is followed ends in a return or in one clear error, whatever the cluster says of it."""

import os
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from cluster.api import ClusterApi
from cluster.following import AWAY_S, IMAGE_S, REFUSED_S, STARTS, UNHEARD_S, Follower
from cluster.manifest import train_job
from cluster.training_pods import LOST
from proxykd.config.launcher import LauncherSpec
from proxykd.exceptions import (
    ClusterAuthError,
    ClusterError,
    ClusterForbiddenError,
    ClusterUnreachableError,
    ModelError,
)
from tests.cluster.conftest import NAMESPACE, reach_as, runtime
from tests.k8s.api_server import ApiServer, api_server
from tests.k8s.cluster import Cluster
from tests.k8s.defaults import admitted
from tests.k8s.kinds import CORE

NAME = "proxykd-student-0"
Script = dict[float, Callable[[], Any]]


class Clock:
    """Time that passes by sleeping alone, and what happens at its hours."""

    def __init__(self) -> None:
        self.now, self.script = 0.0, dict[float, Callable[[], Any]]()

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for hour in sorted(hour for hour in self.script if hour <= self.now):
            self.script.pop(hour)()


class Scene:
    """A TrainJob of two nodes on an API server without controllers."""

    def __init__(self, server: ApiServer, api: ClusterApi) -> None:
        self.server, self.api, self.clock, self.said = server, api, Clock(), list[str]()
        self.spec = LauncherSpec(kind="trainjob", nodes=2, queue="proxykd-gpu", start_s=400.0, gpus=8)
        server.apply(runtime(), namespace=NAMESPACE)
        body = train_job(NAME, self.spec, arguments=["m", "j"], image="image", work="w", owner={}, environ={})
        server.store.create(CORE["TrainJob"], NAMESPACE, admitted(body))

    def follow(self, script: Script, checkpoint: Path | None = None) -> None:
        self.clock.script = dict(script)
        Follower(
            self.api,
            NAME,
            self.spec,
            advice="the batch",
            clock=self.clock.read,
            sleep=self.clock.sleep,
            say=self.said.append,
            checkpoint=checkpoint,
            catch_up_s=0.0,  # these pods write no log
        ).wait()

    def job(self, *, suspend: bool | None = None, **condition: str) -> None:
        def change(one: dict[str, Any]) -> None:
            one["spec"]["suspend"] = one["spec"]["suspend"] if suspend is None else suspend
            told = {"reason": "R", "message": "M", "lastTransitionTime": "2026-01-01T00:00:00Z"}
            if condition:
                one.setdefault("status", {})["conditions"] = [{**told, **condition}]

        self.server.store.change(CORE["TrainJob"], NAMESPACE, NAME, change)

    def pod(
        self, index: int, state: dict[str, Any], *, phase: str = "Running", suffix: str = "abcde", **status: Any
    ) -> None:
        labels = {"jobset.sigs.k8s.io/jobset-name": NAME, "batch.kubernetes.io/job-completion-index": str(index)}
        limits = {"memory": "8Gi"}
        container = {"name": "node", "image": "image", "resources": {"limits": limits}}
        told = {"name": "node", "image": "image", "imageID": "", "ready": True, "restartCount": 0, "state": state}
        body = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": f"{NAME}-node-0-{index}-{suffix}", "labels": labels},
            "spec": {"containers": [container]},
            "status": {"phase": phase, "containerStatuses": [told], **status},
        }
        self.server.apply(body, namespace=NAMESPACE)
        name = str(body["metadata"]["name"])  # type: ignore[index]
        self.server.store.change(CORE["Pod"], NAMESPACE, name, lambda one: one.update(status=body["status"]))


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Scene]:
    with api_server(tmp_path) as server:
        server.create_namespace(NAMESPACE)
        double = Cluster(server, None, None, None)  # type: ignore[arg-type]
        yield Scene(server, reach_as(double, "proxykd-trainer", deadline_s=0.0))


RUNNING = {"running": {"startedAt": "2026-01-01T00:00:00Z"}}
DONE = {"type": "Complete", "status": "True"}


def test_what_it_says_on_its_way_is_told_once(scene: Scene) -> None:
    scene.job(suspend=True)
    scene.follow(
        {
            10.0: lambda: scene.job(suspend=False),
            20.0: lambda: scene.pod(0, RUNNING),
            30.0: lambda: scene.pod(1, RUNNING),
            60.0: lambda: scene.job(**DONE),
        }
    )
    assert [one.removeprefix(f"TrainJob {NAME} ") for one in scene.said] == [
        "waits to be admitted",
        "0 of 2 nodes run",
        "1 of 2 nodes run",
        "runs on 2 nodes",
    ]


def test_the_queue_says_why(scene: Scene) -> None:
    scene.job(suspend=True)
    uid = scene.server.store.get(CORE["TrainJob"], NAMESPACE, NAME)["metadata"]["uid"]
    why = {"type": "QuotaReserved", "status": "False", "reason": "Pending", "message": "16 more nvidia.com/gpu needed"}
    metadata = {"name": "trainjob-w", "namespace": NAMESPACE, "labels": {"kueue.x-k8s.io/job-uid": uid}}
    body = {"apiVersion": "kueue.x-k8s.io/v1beta2", "kind": "Workload", "metadata": metadata, "spec": {}}
    scene.server.store.create(CORE["Workload"], NAMESPACE, {**body, "status": {"conditions": [why]}})
    with pytest.raises(ClusterError, match=r"16 more nvidia\.com/gpu needed"):
        scene.follow({})


def lose(scene: Scene, count: int) -> None:
    """As often, one node is preempted and the other ends because of it."""
    for number in range(count):
        ends = f"2026-01-01T0{number // 6}:{number % 6}0:00Z"
        state = {"terminated": {"exitCode": LOST, "finishedAt": ends}}
        taken = {"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}
        scene.pod(0, state, phase="Failed", suffix=f"lost{number}")
        scene.pod(1, state, phase="Failed", suffix=f"lost{number}", conditions=[taken])


def test_a_training_that_begins_again_and_again_without_a_checkpoint_is_ended(scene: Scene, tmp_path: Path) -> None:
    lose(scene, STARTS)
    for index in (0, 1):
        scene.pod(index, RUNNING)
    with pytest.raises(ModelError, match=rf"begun {STARTS} times without a new checkpoint"):
        scene.follow({60.0: lambda: scene.job(**DONE)}, tmp_path / "none")


def test_a_training_that_gets_on_between_its_losses_goes_on(scene: Scene, tmp_path: Path) -> None:
    lose(scene, STARTS)
    checkpoint = tmp_path / "run.safetensors"
    checkpoint.touch()
    written = datetime(2026, 1, 1, 0, 5, tzinfo=UTC).timestamp()  # after the first loss
    os.utime(checkpoint, (written, written))
    scene.follow({60.0: lambda: scene.job(**DONE)}, checkpoint)


@pytest.mark.parametrize("is_queued", [True, False])
def test_one_that_never_starts_ends_with_what_to_ask_for(scene: Scene, is_queued: bool) -> None:
    scene.job(suspend=is_queued)
    unplaced = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no node has 8 GPUs"}
    scene.pod(0, {"waiting": {"reason": "ContainerCreating"}}, phase="Pending", conditions=[unplaced])
    with pytest.raises(ClusterError, match=r"2 x 8 GPUs, queue 'proxykd-gpu'\) to run within 400 s.*placement") as told:
        scene.follow({})
    assert ("waits to be admitted" if is_queued else "no node has 8 GPUs") in str(told.value)
    assert 400.0 < scene.clock.now < 410.0


def test_one_that_was_preempted_may_wait_as_long_again_and_for_a_registry(scene: Scene) -> None:
    for index in (0, 1):
        scene.pod(index, RUNNING)
    scene.follow(
        {
            300.0: lambda: scene.job(suspend=True),
            301.0: lambda: scene.pod(1, {"terminated": {"exitCode": 143}}, phase="Failed"),
            450.0: lambda: scene.job(suspend=False),
            451.0: lambda: scene.pod(1, {"waiting": {"reason": "ErrImagePull"}}, phase="Pending"),
            440.0 + IMAGE_S: lambda: scene.pod(1, RUNNING),
            900.0: lambda: scene.job(**DONE),
        }
    )
    assert scene.clock.now >= 900.0


def test_a_node_that_does_not_answer_is_told_and_waited_for_as_for_a_start(scene: Scene) -> None:
    scene.pod(0, RUNNING)
    scene.pod(1, RUNNING)

    def leave() -> None:
        def change(pod: dict[str, Any]) -> None:
            pod["metadata"]["deletionTimestamp"], pod["spec"]["nodeName"] = "2026-01-01T00:00:00Z", "gpu-7"

        scene.server.store.change(CORE["Pod"], NAMESPACE, f"{NAME}-node-0-1-abcde", change)

    with pytest.raises(
        ClusterError, match=r"1 of 2 nodes run \(the node gpu-7 does not answer.*delete the Node object"
    ):
        scene.follow({1000.0: leave})
    assert 1390.0 < scene.clock.now < 1420.0


def test_a_missing_image_is_waited_for_a_little(scene: Scene) -> None:
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found: image"}}
    scene.pod(0, waiting, phase="Pending")
    with pytest.raises(ClusterError, match=r"not found: image.*push the image"):
        scene.follow({})
    assert IMAGE_S <= scene.clock.now < IMAGE_S + 10.0


def test_a_name_that_is_no_image_is_told_at_once(scene: Scene) -> None:
    scene.pod(0, {"waiting": {"reason": "InvalidImageName", "message": "Image!"}}, phase="Pending")
    with pytest.raises(ClusterError, match="Image!"):
        scene.follow({})
    assert scene.clock.now == 0.0


def test_used_up_memory_is_told_at_once(scene: Scene) -> None:
    scene.pod(1, {"terminated": {"exitCode": 137, "reason": "OOMKilled"}}, phase="Failed")
    with pytest.raises(ModelError, match=r"pod proxykd-student-0-node-0-1.*limit 8Gi.*lower the batch"):
        scene.follow({})


def test_a_failure_shows_its_reason_and_the_end_of_the_log(scene: Scene, tmp_path: Path) -> None:
    log = tmp_path / "node.log"
    log.write_text("early\n" * 50 + "RuntimeError: the last words\n")
    scene.server.log_files[NAMESPACE, f"{NAME}-node-0-0-abcde", "node"] = log
    scene.pod(0, {"terminated": {"exitCode": 1, "reason": "Error"}}, phase="Failed")
    scene.job(type="Failed", status="True", reason="FailedJobs", message="backoff limit")
    with pytest.raises(ModelError, match=r"FailedJobs: backoff limit(.|\n)*the last words") as told:
        scene.follow({})
    assert str(told.value).count("early") < 50


def test_one_that_somebody_removes_ends(scene: Scene) -> None:
    with pytest.raises(ClusterError, match=r"somebody removed it.*last checkpoint"):
        scene.follow({100.0: lambda: scene.server.store.delete(CORE["TrainJob"], NAMESPACE, NAME)})


def test_one_that_nobody_takes_up_names_the_controller(scene: Scene) -> None:
    with pytest.raises(ClusterError, match="Kubeflow Trainer"):
        scene.follow({})
    assert UNHEARD_S < scene.clock.now < UNHEARD_S + 10.0


def test_a_server_that_is_away_is_borne_for_half_an_hour(scene: Scene) -> None:
    scene.pod(0, RUNNING)
    scene.pod(1, RUNNING)
    scene.spec = scene.spec.model_copy(update={"start_s": 1e6})
    started: list[float] = []
    with pytest.raises(ClusterUnreachableError):
        scene.follow({50.0: lambda: (scene.server.close(), started.append(scene.clock.now))})
    assert scene.clock.now - started[0] >= AWAY_S - 10.0
    assert "goes on unseen" in scene.said[-1]


@pytest.mark.parametrize(("code", "error"), [(401, ClusterAuthError), (403, ClusterForbiddenError)])
def test_a_refusal_of_who_was_let_in_is_borne_for_a_minute(scene: Scene, code: int, error: type[ClusterError]) -> None:
    scene.pod(0, RUNNING)
    scene.pod(1, RUNNING)
    refuse = scene.server.trouble.add
    scene.follow({50.0: lambda: refuse(code, num_times=20), 200.0: lambda: scene.job(**DONE)})
    assert any("goes on unseen, as the API server refuses" in line for line in scene.said)
    scene.job(type="Complete", status="False")
    started: list[float] = []
    scene.clock.now = 0.0
    with pytest.raises(error):
        scene.follow({50.0: lambda: (refuse(code, num_times=10**6), started.append(scene.clock.now))})
    assert REFUSED_S <= scene.clock.now - started[0] < REFUSED_S + 10.0


@pytest.mark.parametrize("code", [401, 403])
def test_a_server_that_comes_back_and_refuses_at_first_ends_nothing(scene: Scene, code: int) -> None:
    scene.pod(0, RUNNING)
    scene.pod(1, RUNNING)
    scene.spec = scene.spec.model_copy(update={"start_s": 1e6})
    trouble = scene.server.trouble
    scene.follow(
        {
            50.0: lambda: trouble.add(503, num_times=10**6),
            50.0 + 5 * REFUSED_S: lambda: (trouble.faults.clear(), trouble.add(code, num_times=4)),
            100.0 + 5 * REFUSED_S: lambda: (scene.job(**DONE), trouble.add(503, num_times=2)),
        }
    )
    told = [line for line in scene.said if "goes on unseen" in line]
    assert "does not answer" in told[0]
    assert any("refuses" in line for line in told)


@pytest.mark.parametrize(("code", "error"), [(401, ClusterAuthError), (403, ClusterForbiddenError)])
def test_who_was_never_let_in_is_told_at_once(scene: Scene, code: int, error: type[ClusterError]) -> None:
    scene.server.trouble.add(code, num_times=10**6)
    with pytest.raises(error):
        scene.follow({})
    assert scene.clock.now == 0.0

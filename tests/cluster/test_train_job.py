"""A step's training in the pods of a TrainJob: the same student, through every fault that a cluster has."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from cluster.train_job import FOLDER
from proxykd.artifacts import SplitSet, ValidatedSet
from proxykd.config import RunSpec
from proxykd.exceptions import ArtifactError, ClusterError, ModelError
from proxykd.launching.work import Launcher
from proxykd.models.loading import load_saved
from proxykd.proxy.launch import align_proxy
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import Job, TrainingRun
from tests.cluster.conftest import CHECKOUT, NAMESPACE, MakeLauncher, manifest
from tests.k8s.cluster import Cluster
from tests.k8s.kinds import CORE
from tests.support.launched import launch
from tests.support.together import launch_together

MakeRun = Callable[..., RunSpec]
Corpus = tuple[ValidatedSet, SplitSet]
pytestmark = pytest.mark.integration
JOBSET = "jobset.sigs.k8s.io/jobset-name"


STEPS = 8


@dataclass(frozen=True)
class Here:
    """What two processes of this machine make of a short training and of an alignment.

    Attributes:
        job: The training; its inputs lie outside of what the pods see.
        student: What it makes.
        run: Its curve.
        proxy: The aligned proxy's weights.
    """

    job: Job
    student: PreTrainedModel
    run: TrainingRun
    proxy: dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def here(
    training_data: TrainingData, student_run: MakeRun, corpus: Corpus, tmp_path_factory: pytest.TempPathFactory
) -> Here:
    path = training_data.corpus.path
    job = Job(
        student=student_run(steps=STEPS, checkpoint_s=0.0).student.model_dump(mode="json"),
        alpha=1.0,
        learning_rate=1e-3,
        seed=0,
        corpus=str(path),
        targets=str(path.parent / "targets"),
        checkpoint=None,
    )
    folder = tmp_path_factory.mktemp("here")
    tasks = (
        lambda launcher: launch(job, processes=2, launcher=launcher),
        lambda launcher: aligned(corpus, launcher, folder, folder / "checkpoints"),
    )
    (student, run), proxy = launch_together(tasks, processes=2)
    return Here(job, student, run, proxy)


def aligned(corpus: Corpus, launcher: Launcher, folder: Path, checkpoints: Path) -> dict[str, torch.Tensor]:
    """The weights of a proxy that a launcher's processes warmed up; ``folder`` = of what they leave."""
    optimizer = {"learning_rate": 1e-3, "batch_size": 4}
    section = {"model": {"source": "embedded:student", "num_layers": 1, "max_seq_tokens": 120}, "preference": None}
    split = {"mode": "shared", "heldout": 0.05, "development": 0.2}
    warmup = {"optimizer": optimizer, "epochs": 0.2}
    run = RunSpec.view({"seed": 0, "split": split, "proxy": {**section, "warmup": warmup}, "staging": None})
    folders = {name: folder / name for name in ("output", "scratch")}
    for one in folders.values():
        one.mkdir(exist_ok=True)
    proxy = align_proxy(*corpus, run, checkpoints=checkpoints, launcher=launcher, **folders)
    return dict(load_saved(proxy.path / "model")[0].state_dict())


@pytest.fixture
def job(training_data: TrainingData, student_run: MakeRun, home: Path) -> Job:
    """The same for one process, and with a checkpoint that every pod sees."""
    corpus = training_data.corpus.path
    return Job(
        student=student_run(steps=4).student.model_dump(mode="json"),
        alpha=1.0,
        learning_rate=1e-3,
        seed=0,
        corpus=str(corpus),
        targets=str(corpus.parent / "targets"),
        checkpoint=str(home / "checkpoints" / "run.safetensors"),
    )


def train_jobs(double: Cluster) -> list[dict[str, Any]]:
    return double.api.store.list(CORE["TrainJob"])


def pods(double: Cluster) -> list[dict[str, Any]]:
    """Those that train."""
    found = double.api.store.list(CORE["Pod"])
    return [one for one in found if one["metadata"].get("labels", {}).get("proxykd.dev/role") == "train"]


def long(job: Job, student_run: MakeRun, *, steps: int = 400) -> Job:
    """One whose every step is saved, long enough to be cut short."""
    student = student_run(steps=steps, checkpoint_s=0.0).student.model_dump(mode="json")
    return replace(job, student=student, targets=None, alpha=0.0)


def has_saved(job: Job) -> Callable[[dict[str, Any], Path], bool]:
    return lambda pod, log: job.checkpoint is not None and Path(job.checkpoint).exists()


def wait_for(what: Callable[[], Any], *, seconds: float = 120.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


def test_two_pods_make_the_student_that_two_processes_here_make(
    double: Cluster, make_launcher: MakeLauncher, here: Here, home: Path
) -> None:
    there, run = launch(here.job, processes=2, launcher=make_launcher(nodes=2, queue="proxykd-gpu", gpus=0))
    assert run.curve == here.run.curve
    assert there.state_dict().keys() == here.student.state_dict().keys()
    for name, value in here.student.state_dict().items():
        torch.testing.assert_close(there.state_dict()[name], value, rtol=0.0, atol=0.0)
    assert len(double.kubelet.starts) == 2
    assert not train_jobs(double), "it is removed at the end"
    assert not list((home / FOLDER).iterdir())


def test_two_pods_align_the_proxy_as_two_processes_here(
    make_launcher: MakeLauncher, corpus: Corpus, here: Here, home: Path, tmp_path: Path
) -> None:
    there = aligned(corpus, make_launcher(nodes=2), tmp_path, home / "checkpoints")
    for name, value in here.proxy.items():
        torch.testing.assert_close(there[name], value, rtol=0.0, atol=0.0)


def test_the_error_of_a_process_is_the_error_of_the_step(
    double: Cluster, make_launcher: MakeLauncher, job: Job, tmp_path: Path
) -> None:
    (tmp_path / "broken.arrow").write_bytes(b"no corpus")
    with pytest.raises(ArtifactError, match="tokenised corpus"):
        launch(replace(job, corpus=str(tmp_path / "broken.arrow")), processes=1, launcher=make_launcher())
    assert len(double.kubelet.starts) == 1, "another try would not mend it"
    assert not train_jobs(double)


def test_a_training_that_loses_nodes_goes_on_from_its_checkpoint(
    double: Cluster, make_launcher: MakeLauncher, here: Here, home: Path
) -> None:
    """One is drained, with time for a checkpoint; another vanishes as soon as its pods are there again."""
    told = replace(here.job, checkpoint=str(home / "checkpoints" / "run.safetensors"))
    starts, index = double.kubelet.starts, "batch.kubernetes.io/job-completion-index"
    double.kubelet.befall("evicted", when=has_saved(told), **{index: "1"})
    double.kubelet.befall("node gone", when=lambda pod, log: len(starts) >= 4, **{index: "0"})
    _, run = launch(told, processes=2, launcher=make_launcher(nodes=2))
    assert [point["step"] for point in run.curve] == list(range(1, STEPS + 1))
    assert run.curve == [pytest.approx(point, rel=1e-4) for point in here.run.curve]
    assert 5 <= len(starts) <= 6, "both began again, and the one whose node vanished once more"


def test_a_training_that_the_queue_takes_back_goes_on_when_it_is_admitted_again(
    double: Cluster, make_launcher: MakeLauncher, job: Job, student_run: MakeRun
) -> None:
    told = long(job, student_run, steps=25)

    def take_back() -> None:
        wait_for(lambda: Path(str(told.checkpoint)).exists())
        double.jobs.closed.add("proxykd-gpu")
        (found,) = train_jobs(double)
        name = found["metadata"]["name"]
        double.api.store.change(CORE["TrainJob"], NAMESPACE, name, lambda one: one["spec"].update(suspend=True))
        wait_for(lambda: not pods(double) and not double.kubelet._running)
        double.jobs.closed.clear()
        double.api.store.wake()

    thief = threading.Thread(target=take_back)
    thief.start()
    _, run = launch(told, processes=1, launcher=make_launcher(queue="proxykd-gpu"))
    thief.join()
    assert [point["step"] for point in run.curve] == list(range(1, 26))
    assert len(double.kubelet.starts) == 2


def test_memory_that_is_used_up_ends_at_once_with_what_to_lower(
    double: Cluster, make_launcher: MakeLauncher, job: Job
) -> None:
    double.kubelet.befall("out of memory")
    with pytest.raises(ModelError, match=r"limit 2Gi.*student\.optimizer\.batch_size.*memory in the placement"):
        launch(job, processes=1, launcher=make_launcher(memory="2Gi"))
    assert not train_jobs(double)


def test_neither_a_pod_that_is_killed_nor_an_api_server_in_trouble_ends_a_training(
    double: Cluster, make_launcher: MakeLauncher, job: Job, student_run: MakeRun
) -> None:
    told = long(job, student_run, steps=20)
    double.kubelet.befall("killed", when=has_saved(told))
    double.api.trouble.add(429, num_times=2, verb="create", resource="trainjobs", retry_after_s=0.1)
    double.api.trouble.add(503, num_times=1, verb="create", resource="trainjobs", is_after=True)
    double.api.trouble.add(500, num_times=3, verb="get", resource="trainjobs")

    def leave() -> None:
        wait_for(lambda: len(double.kubelet.starts) == 2)
        double.api.go_away(6.0)  # longer than one call is tried here

    thread = threading.Thread(target=leave)
    thread.start()
    _, run = launch(told, processes=1, launcher=make_launcher())
    thread.join()
    assert len(run.curve) == 20
    assert len(double.kubelet.starts) == 2, "one TrainJob was made, and its pod tried again"


CODE = """
import json, os, sys
from pathlib import Path
from cluster.api import ClusterApi, Patience
from cluster.train_job import TrainJobLauncher
from proxykd.config.launcher import LauncherSpec
from proxykd.student.launch import Job
from tests.support.launched import work_of
from types import SimpleNamespace
from zenml.enums import ExecutionMode
from zenml.orchestrators import signal_handler
signal_handler.Client = None  # no server knows this step, so that a signal is an interruption
told = json.load(open(sys.argv[1]))
spec = LauncherSpec(kind="trainjob", queue=told["queue"], grace_s=20)
api = ClusterApi.connect(patience=Patience(deadline_s=5.0))
work = work_of(Job(**told["job"]), Path(sys.argv[1]).with_name("student"))
with signal_handler.SignalHandler(SimpleNamespace(name="student"), ExecutionMode.FAIL_FAST):
    print(json.dumps(TrainJobLauncher(spec, api, Path(told["home"])).launch(work).run.curve[-1]))
"""


@contextmanager
def start_step(
    double: Cluster, job: Job, home: Path, tmp_path: Path, *, queue: str | None = None
) -> Iterator["subprocess.Popen[str]"]:
    """A step as ZenML runs it, in a process that ends with the context, and whose pod was started by nobody."""
    container = {"name": "main", "image": "image", "command": ["sleep"]}
    pod = {"metadata": {"name": "step", "namespace": NAMESPACE}, "spec": {"containers": [container]}}
    double.api.apply({"apiVersion": "v1", "kind": "Pod", **pod, "status": {"phase": "Succeeded"}})
    file = tmp_path / "told.json"
    told = {"home": str(home), "queue": queue, "job": {name: getattr(job, name) for name in job.__slots__}}
    file.write_text(json.dumps(told))
    environ = {"KUBECONFIG": str(double.api.kubeconfig(NAMESPACE, account="proxykd-trainer")), "OMP_NUM_THREADS": "1"}
    environ["POD_NAME"] = "step"
    command = [sys.executable, "-c", CODE, str(file)]
    with subprocess.Popen(command, env={**os.environ, **environ}, stdout=subprocess.PIPE, text=True) as step:
        try:
            yield step
        finally:
            step.kill()


@pytest.mark.parametrize(("number", "is_queued"), [(signal.SIGINT, True), (signal.SIGTERM, False)])
def test_a_step_that_is_stopped_takes_its_training_with_it(
    double: Cluster,
    job: Job,
    student_run: MakeRun,
    home: Path,
    tmp_path: Path,
    number: signal.Signals,
    is_queued: bool,
) -> None:
    told = long(job, student_run, steps=100_000)
    double.jobs.closed |= {"proxykd-gpu"} if is_queued else set()
    with start_step(double, told, home, tmp_path, queue="proxykd-gpu") as step:
        if is_queued:
            user = f"system:serviceaccount:{NAMESPACE}:proxykd-trainer"
            wait_for(lambda: ("", "pods", "list") in double.api.access.used(user))
        else:
            wait_for(lambda: Path(str(told.checkpoint)).exists())
        step.send_signal(number)
        assert step.wait(60) != 0
    assert not train_jobs(double)
    assert not pods(double)
    wait_for(lambda: not double.kubelet._running, seconds=30.0)
    assert is_queued or Path(str(told.checkpoint)).exists(), "the same command goes on from here"


@pytest.mark.parametrize("is_evicted", [False, True])
def test_a_step_that_begins_again_follows_the_training_that_it_began(
    double: Cluster, job: Job, student_run: MakeRun, home: Path, tmp_path: Path, is_evicted: bool
) -> None:
    told = long(job, student_run, steps=40)
    corpus = tmp_path / "first" / "corpus.arrow"
    corpus.parent.mkdir()
    shutil.copyfile(told.corpus, corpus)
    with start_step(double, replace(told, corpus=str(corpus)), home, tmp_path) as step:
        wait_for(lambda: Path(str(told.checkpoint)).exists())
        if is_evicted:
            gone = [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]
            double.api.store.change(CORE["Pod"], NAMESPACE, "step", lambda one: one["status"].update(conditions=gone))
            step.terminate()
            assert step.wait(60) != 0
        step.kill()
    shutil.rmtree(corpus.parent)
    (uid,) = [one["metadata"]["uid"] for one in train_jobs(double)]
    with start_step(double, told, home, tmp_path) as step:
        printed, _ = step.communicate(timeout=240)
    assert step.returncode == 0
    assert json.loads(printed.splitlines()[-1])["step"] == 40
    assert len(double.kubelet.starts) == 1, uid


def test_a_runtime_that_is_not_there_is_told_at_once(double: Cluster, make_launcher: MakeLauncher, job: Job) -> None:
    with pytest.raises(ClusterError, match=r"another.*must be created"):
        launch(job, processes=1, launcher=make_launcher(runtime="another"))


def test_the_role_allows_what_is_called_and_nothing_else(double: Cluster, job: Job, home: Path, tmp_path: Path) -> None:
    role, binding = yaml.safe_load_all((CHECKOUT / "k8s/base/rbac/trainer.yaml").read_text())
    binding["subjects"][0]["namespace"] = NAMESPACE
    double.api.apply(role, binding, namespace=NAMESPACE)
    double.api.apply(manifest("v1", "ResourceQuota", "full", spec={"hard": {"pods": "0"}}))
    double.api.access.is_enforced = True
    double.jobs.closed.add("proxykd-gpu")
    user = f"system:serviceaccount:{NAMESPACE}:proxykd-trainer"
    with start_step(double, job, home, tmp_path, queue="proxykd-gpu") as step:
        wait_for(lambda: ("kueue.x-k8s.io", "workloads", "list") in double.api.access.used(user))
        double.jobs.closed.clear()
        wait_for(lambda: ("", "events", "list") in double.api.access.used(user))
        double.api.store.delete(CORE["ResourceQuota"], NAMESPACE, "full")
        assert step.wait(240) == 0
    used = double.api.access.used(user)
    allowed = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    assert used == allowed

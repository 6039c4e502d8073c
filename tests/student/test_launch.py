"""Several processes that share a run make what one makes, and none of them outlives the run."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from proxykd.config import RunSpec
from proxykd.config.models import StudentSpec
from proxykd.exceptions import ArtifactError, ModelError
from proxykd.models.loading import load_trainable
from proxykd.student import loop
from proxykd.student.checkpoints import Checkpoints
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import Job, TrainingRun
from proxykd.student.loop import train
from tests.support.launched import launch, launch_all

MakeRun = Callable[..., RunSpec]
Kept = tuple[Path, list[dict[str, float]]]
pytestmark = pytest.mark.integration


CASES: dict[str, dict[str, Any]] = {
    "packed": {"packing": True},
    "weighted": {},  # texts of which not every token is learnt
    "weighted, packed": {"packing": True},
    "adapters": {"gradient_checkpointing": True, "model": {"lora": {"rank": 2}}},
    "one text at a time": {"optimizer": {"batch_size": 1}},  # one of the two has nothing to do
    "plain": {},
    "saved by one": {"checkpoint_s": 0.0},
}
"""What two processes are told to make."""


def specify(student_run: MakeRun, case: str) -> StudentSpec:
    spec: StudentSpec = student_run(steps=4, **CASES[case]).student
    return spec


@pytest.fixture(scope="module")
def job(training_data: TrainingData, student_run: MakeRun) -> Job:
    folder = training_data.corpus.path
    return Job(
        student=specify(student_run, "plain").model_dump(mode="json"),
        alpha=1.0,
        learning_rate=1e-3,
        seed=0,
        corpus=str(folder),
        targets=str(folder.parent / "targets"),
        checkpoint=None,
    )


@pytest.fixture(scope="module")
def kept(training_data: TrainingData, student_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """The checkpoint of a training whose process was killed after two steps, and what these were."""
    path, spec = tmp_path_factory.mktemp("kept") / "run.safetensors", specify(student_run, "saved by one")
    real, steps, done = loop.train_step, iter(range(2)), list[dict[str, float]]()

    def step_or_die(*arguments: Any, **options: Any) -> Any:
        next(steps)
        done.append(real(*arguments, **options))
        return done[-1]

    model, checkpoints = load_trainable(spec.model, seed=0), Checkpoints(path, spec.checkpoint_s)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "train_step", step_or_die)
        with pytest.raises(StopIteration):
            train(model, training_data, spec, alpha=1.0, learning_rate=1e-3, seed=0, checkpoints=checkpoints)
    return path, done


@pytest.fixture(scope="module")
def together(
    job: Job, kept: Kept, student_run: MakeRun, mixed: TrainingData
) -> dict[str, tuple[PreTrainedModel, TrainingRun]]:
    """What two processes make of each case."""
    checkpoints, weighted = {"saved by one": str(kept[0])}, str(mixed.corpus.path)
    jobs = [
        replace(
            job,
            student=specify(student_run, case).model_dump(mode="json"),
            corpus=weighted if "weighted" in case else job.corpus,
            checkpoint=checkpoints.get(case),
        )
        for case in CASES
    ]
    return dict(zip(CASES, launch_all(jobs, processes=2), strict=True))


@pytest.mark.parametrize("case", ["packed", "weighted", "weighted, packed", "adapters", "one text at a time"])
def test_two_processes_make_what_one_makes(
    training_data: TrainingData,
    mixed: TrainingData,
    student_run: MakeRun,
    together: dict[str, tuple[PreTrainedModel, TrainingRun]],
    case: str,
) -> None:
    spec, data = specify(student_run, case), mixed if "weighted" in case else training_data
    model = load_trainable(spec.model, seed=0)
    alone = train(model, data, spec, alpha=1.0, learning_rate=1e-3, seed=0)
    plain = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    found, result = together[case]
    assert [point["step"] for point in result.curve] == [1, 2, 3, 4]
    for ours, theirs in zip(alone.curve, result.curve, strict=True):
        assert theirs == pytest.approx(ours, rel=1e-4)
    shared = found.state_dict()
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-4)


def test_what_one_process_saved_two_go_on_from(
    together: dict[str, tuple[PreTrainedModel, TrainingRun]], kept: Kept
) -> None:
    whole, again = (together[case][1].curve for case in ("plain", "saved by one"))
    assert again == [pytest.approx(point, rel=1e-4) for point in whole]
    assert [point.items() >= means.items() for point, means in zip(again, kept[1], strict=False)] == [True, True]


def test_the_error_of_a_process_is_the_error_of_the_run(job: Job, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="tokenised corpus"):
        launch(replace(job, corpus=str(tmp_path / "nothing.arrow")), processes=2)


def test_processes_that_just_end_are_told(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(ModelError, match=r"student\.processes"):
        launch(job, processes=2)


def test_no_process_outlives_a_killed_run(job: Job, student_run: MakeRun, tmp_path: Path) -> None:
    long = student_run(steps=100_000).student.model_dump(mode="json")
    job_file = tmp_path / "told.json"
    job_file.write_text(json.dumps(asdict(replace(job, student=long))))
    code = (
        "import json, sys; from proxykd.student.launch import Job; from tests.support.launched import launch;"
        "launch(Job(**json.load(open(sys.argv[1]))), processes=2)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(job_file)]) as parent:
        workers = _wait_for(lambda: _processes_below(job), 2 + 1, seconds=60.0)
        parent.send_signal(signal.SIGKILL)
    assert len(workers) >= 3
    assert not _wait_for(lambda: _processes_below(job), 0, seconds=30.0)


def _wait_for(found: Callable[[], list[int]], count: int, *, seconds: float) -> list[int]:
    deadline = time.monotonic() + seconds
    while (len(found()) < count if count else found()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found()


def _processes_below(job: Job) -> list[int]:
    """Those that were told a job's file in a folder of the run."""
    beginning, found = str(Path(job.corpus).parent), []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
            except OSError:
                continue
            is_told = any(word.startswith(beginning) and word.endswith("/job.json") for word in command)
            found += [int(folder.name)] if is_told else []
    return found

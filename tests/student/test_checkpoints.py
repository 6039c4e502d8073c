"""A run that is killed goes on with the bits it would have had."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from proxykd.config import RunSpec
from proxykd.models.loading import load_trainable
from proxykd.student import loop
from proxykd.student.checkpoints import Checkpoints
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import TrainingRun
from proxykd.student.loop import train

pytestmark = pytest.mark.integration

MakeRun = Callable[..., RunSpec]
State = dict[str, torch.Tensor]


class Killed(Exception):
    """The process was killed."""


def trained(data: TrainingData, run: RunSpec, checkpoints: Checkpoints | None) -> tuple[State, TrainingRun]:
    model = load_trainable(run.student.model, seed=0)
    result = train(model, data, run.student, alpha=1.0, learning_rate=1e-3, seed=3, checkpoints=checkpoints)
    return model.state_dict(), result


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch, data: TrainingData, run: RunSpec, path: Path) -> None:
    """Train until so many steps are done and saved, then die before the next."""
    real, done = loop.train_step, []

    def step_or_die(*args: object, **kwargs: object) -> object:
        if len(done) == step:
            raise Killed
        done.append(step)
        return real(*args, **kwargs)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", step_or_die)
        with pytest.raises(Killed):
            trained(data, run, Checkpoints(path, every_s=0.0))


@pytest.mark.parametrize("lora", [None, {"rank": 2, "dropout": 0.5}])
def test_a_killed_run_ends_as_if_nothing_had_happened(
    training_data: TrainingData,
    student_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lora: dict[str, float] | None,
) -> None:
    run, path = student_run(steps=5, model={"lora": lora}), tmp_path / "run.safetensors"
    whole, result = trained(training_data, run, None)
    killed_at(3, monkeypatch, training_data, run, path)
    again, resumed = trained(training_data, run, Checkpoints(path, every_s=1e9))
    assert resumed.curve == result.curve
    assert resumed.num_tokens == result.num_tokens
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_a_finished_run_is_not_trained_again(
    training_data: TrainingData, student_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = student_run(steps=3), tmp_path / "run.safetensors"
    whole, result = trained(training_data, run, Checkpoints(path, every_s=0.0))
    assert not any(name.startswith("exp_avg") for name in load_file(path)), "weights alone are needed of it"
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: pytest.fail("trained again"))
    again, resumed = trained(training_data, run, Checkpoints(path, every_s=0.0))
    assert resumed.curve == result.curve
    assert all(torch.equal(again[name], value) for name, value in whole.items())


def test_a_short_run_leaves_no_file(training_data: TrainingData, student_run: MakeRun, tmp_path: Path) -> None:
    trained(training_data, student_run(steps=2), Checkpoints(tmp_path / "run.safetensors", every_s=60.0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("harm", ["cut", "other model", "other release"])
def test_a_checkpoint_that_cannot_be_used_is_told_and_left(
    training_data: TrainingData,
    student_run: MakeRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    harm: str,
) -> None:
    run, path = student_run(steps=3), tmp_path / "run.safetensors"
    whole, _ = trained(training_data, run, None)
    killed_at(2, monkeypatch, training_data, run, path)
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-100])
    elif harm == "other model":
        tensors = load_file(path)
        tensors.pop(next(name for name in tensors if name.startswith("weight/")))
        save_file(tensors, path, metadata={"format": "training-1", "reached": "{}"})
    else:
        save_file(load_file(path), path, metadata={"format": "training-0"})
    monkeypatch.setenv("PROXYKD_PROGRESS", "lines")
    again, resumed = trained(training_data, run, Checkpoints(path, every_s=1e9))
    assert len(resumed.curve) == 3
    assert all(torch.equal(again[name], value) for name, value in whole.items())
    assert "begins anew" in "".join(capfd.readouterr())


def test_a_run_that_had_diverged_does_not_go_on(
    training_data: TrainingData, student_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, path = student_run(steps=5), tmp_path / "run.safetensors"
    real = loop.train_step
    monkeypatch.setattr(loop, "train_step", lambda *args, **more: {**real(*args, **more), "loss": float("nan")})
    assert len(trained(training_data, run, Checkpoints(path, every_s=0.0))[1].curve) == 1
    monkeypatch.setattr(loop, "train_step", lambda *_, **__: pytest.fail("went on"))
    assert len(trained(training_data, run, Checkpoints(path, every_s=0.0))[1].curve) == 1

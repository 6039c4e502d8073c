"""A training run that others may do: what they are told, and what they bring back.

Nothing here loads a model, so that the step that only follows a training needs no room for one.
"""

import dataclasses
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from proxykd.artifacts import link_file
from proxykd.launching.work import Work, read_result

MODEL = "model"
_MODULE = "proxykd.student.worker"


class TrainingRun(NamedTuple):
    """How a run went.

    Attributes:
        curve: One mapping a step: step (from 1), what ``train_step`` returns, lr. It ends early, with a loss that is no
            number, where the run diverged.
        seconds: Wall time of the steps.
        num_tokens: Prompt and completion tokens trained on, padding left out.
    """

    curve: list[dict[str, float]]
    seconds: float
    num_tokens: int


class Trained(NamedTuple):
    """What came of a run, beside the student itself.

    Attributes:
        run: How it went.
        is_finite: Whether all weights are numbers; None = another process has the whole model, and tells.
        development_nll: Nats a token on the job's texts of the development side, inf where the student has diverged;
            nan = the job has none, or another process tells.
    """

    run: TrainingRun
    is_finite: bool | None = None
    development_nll: float = math.nan

    def told(self) -> dict[str, Any]:
        """The same in JSON types."""
        return {**self._asdict(), "run": self.run._asdict()}

    @classmethod
    def heard(cls, told: Mapping[str, Any]) -> "Trained":
        """From what ``told`` returned."""
        return cls(**{**told, "run": TrainingRun(**told["run"])})


@dataclasses.dataclass(frozen=True, slots=True)
class Job:
    """A training run, told to the processes that share it.

    Attributes:
        student: The specification's section, in JSON types.
        alpha: Weight of the weighted divergence.
        learning_rate: Peak learning rate.
        seed: Decides the order of the examples and the dropout.
        corpus: File of the tokenised texts.
        targets: Folder of the targets; None = hard labels only.
        checkpoint: File of the run's checkpoint; None = it has none.
        development: File of tokenised texts on which the student is scored at the end; None = it is not.
        output: Folder for ``model/`` and ``result.json``; "" = whoever launches it says.
    """

    student: Mapping[str, Any]
    alpha: float
    learning_rate: float
    seed: int
    corpus: str
    targets: str | None
    checkpoint: str | None
    development: str | None = None
    output: str = ""

    def as_work(self, model: Path, here: Callable[[], Trained]) -> Work[Trained]:
        """The run as work for a launcher.

        Args:
            model: Folder that the student and its tokenizer are put into; not there yet.
            here: The same run in this process.
        """
        told = dataclasses.asdict(self)
        del told["output"]
        return Work(
            name="student",
            module=_MODULE,
            job=told,
            inputs=("corpus", "targets", "development"),
            identity=self.checkpoint or "",
            folder=Path(self.corpus).parent,
            advice="student.processes or student.optimizer.batch_size",
            here=here,
            collect=lambda made: _collect(model, made),
        )


def _collect(model: Path, made: Path) -> Trained:
    shutil.copytree(made / MODEL, model, copy_function=link_file)
    return Trained.heard(read_result(made))

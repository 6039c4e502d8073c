"""A training run that others may do: what they are told, and what they bring back."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.launching.work import Work, read_result
from proxykd.models.loading import load_saved
from proxykd.student.loop import TrainingRun

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MODEL = "model"
_MODULE = "proxykd.student.worker"


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
        output: Folder for ``model/`` and ``result.json``; "" = whoever launches it says.
    """

    student: Mapping[str, Any]
    alpha: float
    learning_rate: float
    seed: int
    corpus: str
    targets: str | None
    checkpoint: str | None
    output: str = ""

    def as_work(
        self, here: "Callable[[], tuple[PreTrainedModel, TrainingRun]]"
    ) -> "Work[tuple[PreTrainedModel, TrainingRun]]":
        """The run as work for a launcher.

        Args:
            here: The same run in this process.
        """
        told = dataclasses.asdict(self)
        del told["output"]
        return Work(
            name="student",
            module=_MODULE,
            job=told,
            inputs=("corpus", "targets"),
            identity=self.checkpoint or "",
            folder=Path(self.corpus).parent,
            advice="student.processes or student.optimizer.batch_size",
            here=here,
            collect=_collect,
        )


def _collect(output: Path) -> "tuple[PreTrainedModel, TrainingRun]":
    return load_saved(output / MODEL)[0], TrainingRun(**read_result(output))

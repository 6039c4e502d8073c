"""A training run by the processes of a launcher, without the stage around it."""

from dataclasses import replace
from typing import NoReturn

from transformers import PreTrainedModel

from proxykd.launching.torchrun import Torchrun
from proxykd.launching.work import Launcher, Work
from proxykd.student.launch import Job
from proxykd.student.loop import TrainingRun


def work_of(job: Job) -> Work[tuple[PreTrainedModel, TrainingRun]]:
    """The job as work that no launcher may do in this process."""
    return job.as_work(_not_here)


def launch(job: Job, *, processes: int, launcher: Launcher | None = None) -> tuple[PreTrainedModel, TrainingRun]:
    """The trained model and how the run went."""
    return (launcher or Torchrun(processes)).launch(work_of(replace(job, output="")))


def _not_here() -> NoReturn:
    raise AssertionError("the work was to be done by other processes")

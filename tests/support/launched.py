"""A training run by the processes of a launcher, without the stage around it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import PreTrainedModel

from proxykd.launching.torchrun import Torchrun
from proxykd.launching.work import Launcher, Work
from proxykd.models.loading import load_saved
from proxykd.student.launch import Job, Trained, TrainingRun
from tests.support.together import launch_together, not_here


def work_of(job: Job, folder: Path) -> Work[Trained]:
    """The job as work that no launcher may do in this process; the student comes into ``folder``."""
    return job.as_work(folder, not_here)


def launch_all(jobs: Sequence[Job], *, processes: int) -> list[tuple[PreTrainedModel, TrainingRun]]:
    """What the processes of one torchrun make of several jobs, one after another."""
    tasks = [lambda launcher, job=job: launch(job, processes=processes, launcher=launcher) for job in jobs]
    return launch_together(tasks, processes=processes)


def launch(job: Job, *, processes: int, launcher: Launcher | None = None) -> tuple[PreTrainedModel, TrainingRun]:
    """The trained model and how the run went."""
    with TemporaryDirectory() as name:
        folder = Path(name) / "model"
        trained = (launcher or Torchrun(processes)).launch(work_of(replace(job, output=""), folder))
        assert trained.is_finite
        return load_saved(folder)[0], trained.run

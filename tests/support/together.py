"""Several pieces of work by the processes of one torchrun, one after another: to start them takes longer than the work.

Its processes run ``python -m tests.support.together JOB``.
"""

import importlib
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NoReturn, TypeVar

from proxykd.launching.torchrun import Torchrun
from proxykd.launching.work import RESULT, Launcher, Work, finish, read_job, write_job
from proxykd.launching.worker import run_worker
from proxykd.world import current_world

T = TypeVar("T")


class Noted(Exception):
    """The work is to be done later."""


@dataclass
class Noting:
    """A launcher that does nothing but note what it was to do."""

    works: list[Work[Any]] = field(default_factory=list)

    def launch(self, work: Work[Any]) -> NoReturn:
        self.works.append(work)
        raise Noted


@dataclass
class Bringing:
    """A launcher whose work has been done, in a folder."""

    output: Path

    def launch(self, work: Work[T]) -> T:
        return finish(work, self.output, "none was made")


def launch_together(tasks: Sequence[Callable[[Launcher], T]], *, processes: int) -> list[T]:
    """What each task returns, whose work as many processes have done.

    Args:
        tasks: Each hands one piece of work to the launcher that it is told, and is called twice: to learn the work, and
            to collect what came of it.
        processes: Of the one torchrun that does all work.
    """
    noting = Noting()
    for task in tasks:
        with suppress(Noted):
            task(noting)
    with TemporaryDirectory() as name:
        folder = Path(name)
        outputs = [folder / str(number) for number in range(len(tasks))]
        jobs = [str(write_job(work, output)) for work, output in zip(noting.works, outputs, strict=True)]
        told = {"modules": [work.module for work in noting.works], "jobs": jobs}
        Torchrun(processes).launch(_all(told, folder))
        return [task(Bringing(output)) for task, output in zip(tasks, outputs, strict=True)]


def _all(told: dict[str, Any], folder: Path) -> Work[None]:
    return Work(
        name="works",
        module=__name__,
        job=told,
        inputs=("jobs",),
        identity="",
        folder=folder,
        advice="their number",
        here=not_here,
        collect=lambda made: None,
    )


def not_here() -> NoReturn:
    """In place of work that is for other processes."""
    raise AssertionError("the work was to be done by other processes")


def take_part(told: dict[str, Any]) -> dict[str, Any]:
    """This process's part of one work after another."""
    for module, path in zip(told["modules"], told["jobs"], strict=True):
        result = importlib.import_module(module).take_part(read_job(Path(path)))
        if current_world().rank == 0:
            Path(path).with_name(RESULT).write_text(json.dumps(dict(result)), encoding="utf-8")
    return {}


if __name__ == "__main__":
    sys.exit(run_worker(take_part, Path(sys.argv[1])))

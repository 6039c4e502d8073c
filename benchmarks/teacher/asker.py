"""What every asker shares: its arguments, the questions and its report.

Standard library only, because it is imported in the peers' environments too. An asker is a script of its own that asks
``count`` questions and, when it is done, writes what it knows of itself to a file; what it did is counted by the server
(``stub.py``) and by whoever started it (``launch.py``).
"""

import argparse
import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple


class Task(NamedTuple):
    """What an asker is to do.

    Attributes:
        base_url: Of the endpoint, up to and including the version.
        count: Number of questions.
        concurrency: Most calls in flight.
        folder: Its own; what it finds there is from a run that was killed.
        batch_size: Questions a batch, for those who ask in batches.
    """

    base_url: str
    count: int
    concurrency: int
    folder: Path
    batch_size: int

    @property
    def report_path(self) -> Path:
        """Where the report goes."""
        return self.folder / "report.json"

    def questions(self) -> Iterator[str]:
        """The questions, all different."""
        for number in range(self.count):
            yield f"Question {number}: which of the two trains arrives first, and by how many minutes?"


def parse_task() -> Task:
    """The task on the command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--base-url", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, default=50)
    return Task(**vars(parser.parse_args()))


@contextmanager
def asking(task: Task, *, packages: list[str], settings: str) -> Iterator[dict[str, int]]:
    """Note the CPU seconds spent before the asking, and write the report after it.

    Args:
        task: What is asked.
        packages: Whose versions are reported.
        settings: What was set other than its default, in words.

    Yields:
        A dict; the caller puts the number of rows with an answer under "delivered".
    """
    own, children = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    start_up_cpu_s = own.ru_utime + own.ru_stime + children.ru_utime + children.ru_stime
    result: dict[str, int] = {}
    yield result
    report = {
        **result,
        "start_up_cpu_s": start_up_cpu_s,
        "versions": {name: version(name) for name in packages},
        "settings": settings,
    }
    task.report_path.write_text(json.dumps(report), encoding="utf-8")

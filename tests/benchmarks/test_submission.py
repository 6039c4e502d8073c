"""The benchmark of submissions measures what it says, with few pods."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.cluster.submission import status

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / "benchmarks" / "cluster" / "submission.py"


@pytest.mark.long
def test_the_parts_of_a_submission_are_told() -> None:
    command = [sys.executable, str(SCRIPT), "--pods", "3", "--limit", "60"]
    done = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    first, *parts = done.stdout.splitlines()
    assert first.startswith("3 pods; ")
    seconds = {
        name.strip(): float(value) for name, value in (part.removesuffix(" s").rsplit(maxsplit=1) for part in parts)
    }
    together = ("submission, until the command is free", "the orchestrator's pod, to its first Job", "all further Jobs")
    assert seconds["in all"] > seconds["submission, until the command is free"] + 0.1
    assert seconds["in all"] == pytest.approx(sum(seconds[name] for name in together), abs=0.05)
    free = (seconds["submission, until the command is free"] + seconds["in all"]) / 2
    assert (status(seconds, free), status(seconds, seconds["in all"])) == (1, 0)


def test_a_limit_holds_for_the_last_job_and_not_only_until_the_command_is_free() -> None:
    parts = {"submission, until the command is free": 2.0, "in all": 12.0}
    assert [status(parts, limit) for limit in (1.0, 10.0, 12.0)] == [1, 1, 0]

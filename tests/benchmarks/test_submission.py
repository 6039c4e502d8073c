"""The benchmark of submissions measures what it says, with few pods."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
SCRIPT = CHECKOUT / "benchmarks" / "cluster" / "submission.py"


@pytest.mark.integration
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
    assert seconds["in all"] == pytest.approx(sum(seconds[name] for name in together), abs=0.05)

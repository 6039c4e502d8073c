"""The table of the registry's faults: it runs, finds every write point and nothing wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]


@pytest.mark.integration
def test_no_crash_and_no_race_loses_or_doubles_a_promotion() -> None:
    command = [sys.executable, "benchmarks/evaluation/registry_faults.py", "--crashes", "1", "--pairs", "3"]
    finished = subprocess.run(
        [*command, "--stores", "SQLite"], cwd=CHECKOUT, capture_output=True, text=True, timeout=600
    )
    rows = [line.strip("| ").split(" | ") for line in finished.stdout.splitlines()[2:]]
    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert [row[1] for row in rows] == [
        "two promoters at once",
        *["promote"] * 5,
        *["rollback"] * 5,
        *["run"] * 13,
    ]
    assert all(row[-3:] == ["0", "0", "0"] for row in rows)

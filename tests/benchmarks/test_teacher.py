"""The comparison of teacher engines: it runs, counts what it says and pins what it installs."""

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "teacher"


def _lines(script: str, *arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, str(FOLDER / script), *arguments]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout
    return [json.loads(line) for line in printed.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("path", sorted(FOLDER.parent.glob("*/requirements-*.txt")), ids=lambda path: path.stem)
def test_a_peer_is_pinned_exactly_and_comes_from_no_address(path: Path) -> None:
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")]
    assert lines
    assert all(re.fullmatch(r"[a-z0-9\[\]-]+==[0-9.]+", line) for line in lines)


@pytest.mark.integration
def test_floor_and_engine_deliver_all_rows_through_the_same_faults() -> None:
    options = ("--only", "aiohttp", "proxykd", "--count", "120", "--concurrency", "8", "--repeats", "1")
    _, *rows = _lines("compare.py", *options, "--fault-rate", "0.2")
    assert [(row["name"], row["delivered"], row["paid_twice"]) for row in rows] == [
        ("aiohttp", 120, 0),
        ("proxykd", 120, 0),
    ]
    assert len({row["extra_calls"] for row in rows}) == 1
    assert rows[0]["extra_calls"] > 0
    assert all(row["peak_in_flight"] == 8 for row in rows)


@pytest.mark.integration
def test_a_kill_costs_no_more_than_what_was_in_flight() -> None:
    row, *_ = _lines("kill.py", "--only", "proxykd", "--kills", "1", "--count", "80", "--concurrency", "8")
    assert row["delivered"] == 80
    assert 80 <= row["calls_in_all"] <= 88
    assert row["calls_in_all"] - 80 == row["paid_twice"]


@pytest.mark.integration
def test_a_rerun_on_a_full_journal_asks_nothing() -> None:
    rows = {row["phase"]: row for row in _lines("million.py", "--count", "300", "--asked")}
    assert rows["plan"]["known"] == rows["write"]["delivered"] == 300

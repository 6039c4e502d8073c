"""The comparison of fused losses: it runs, counts what it says and pins what it installs."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "objective"


def _printed(script: str, *arguments: str) -> list[str]:
    command = [sys.executable, str(FOLDER / script), *arguments]
    environment = {"PYTHONPATH": str(FOLDER.parents[1]), "PATH": ""}
    finished = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300, env=environment)
    return finished.stdout.splitlines()


@pytest.mark.long
def test_the_contenders_that_need_no_environment_of_their_own_run() -> None:
    names = ["proxykd", "dense-ce", "trl-gkd", "trl-chunked"]
    sizes = ("--vocab-sizes", "500", "--tokens", "9", "--hidden", "16", "--top-k", "5", "--repeats", "1")
    _, *rows = [json.loads(line) for line in _printed("compare.py", "--only", *names, *sizes) if line.startswith("{")]
    assert [row["name"] for row in rows] == names
    assert all(row["tokens_per_s"] > 0 and row["peak_mb"] >= row["before_mb"] > 0 for row in rows)
    # Both of TRL's paths are the same divergence.
    assert rows[2]["gradient_norm"] == pytest.approx(rows[3]["gradient_norm"], rel=1e-3)


@pytest.mark.long
def test_the_gradients_error_is_that_of_float32() -> None:
    *_, fused, dense = _printed("accuracy.py", "--vocab-sizes", "700", "--tokens", "9", "--hidden", "16")
    for line in (fused, dense):
        assert all(0.0 < float(cell) < 1e-5 for cell in line.strip("| ").split(" | ")[2:])

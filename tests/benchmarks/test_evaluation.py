"""The gate's rate and power, small: the simulation that the documentation's table comes from, and its benchmark."""

import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks" / "evaluation"
sys.path.insert(0, str(FOLDER))

from simulation import Cell, simulate  # noqa: E402

EVALUATIONS = 600


@pytest.mark.parametrize(
    ("kind", "gate", "num_prompts"),
    [("ratio", "sft", 30), ("binary", "sft", 30), ("clustered", "sft", 100)],
)
def test_no_true_difference_is_promoted_at_most_at_the_level(kind: str, gate: str, num_prompts: int) -> None:
    outcomes, _ = simulate(Cell(kind, gate, num_prompts, "studentised", EVALUATIONS, 199, 1))
    # At a true rate of 0.05, more than 44 of 600 happen once in 200 times; the seed is fixed.
    assert outcomes["promote"] <= 44
    assert outcomes["promote"] > 0


def test_the_textbooks_interval_would_not_hold_the_level() -> None:
    # What the test above can find: BCa's interval on the same evaluations.
    outcomes, _ = simulate(Cell("ratio", "sft", 30, "bca", EVALUATIONS, 199, 1))
    assert outcomes["promote"] > 44


@pytest.mark.parametrize("kind", ["ratio", "binary"])
def test_an_effect_as_large_as_the_detectable_one_is_found_with_the_power(kind: str) -> None:
    cell = Cell(kind, "sft", 100, "studentised", EVALUATIONS, 399, 1)
    _, detectable = simulate(cell)
    outcomes, _ = simulate(cell, effect=detectable)
    # 600 evaluations at 0.8: standard error 0.016; few resamples make the interval a little wider.
    assert 0.74 < outcomes["promote"] / EVALUATIONS < 0.86


@pytest.mark.integration
def test_the_benchmarks_run_as_their_documentation_says() -> None:
    def printed(script: str, *arguments: str) -> str:
        command = [sys.executable, str(FOLDER / script), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=300).stdout

    assert "promote" in printed("gate.py", "--tasks", "2", "--rows", "50", "--resamples", "200")
    table = printed("simulation.py", "--evaluations", "20", "--prompts", "30", "--only", "ratio", "--resamples", "99")
    assert len(table.splitlines()) == 5

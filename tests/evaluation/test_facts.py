"""What the report shows beside the numbers."""

from pathlib import Path

from proxykd.artifacts import CompletionSet
from proxykd.evaluation.facts import MAX_CURVE_POINTS, collect_spend, thin
from proxykd.records import Completion, Outcome


def test_spend_adds_up_every_completion(tmp_path: Path) -> None:
    completions = CompletionSet(tmp_path)
    completions.write(
        Completion(f"{row:016x}", 0, outcome, "", "", "", 10, 5 + row, 0.25, "m", "")
        for row, outcome in enumerate([Outcome.OK, Outcome.OK, Outcome.FAILED])
    )
    assert collect_spend(completions) == {
        "num_completions": 3,
        "outcomes": {"failed": 1, "ok": 2},
        "prompt_tokens": 30,
        "completion_tokens": 18,
        "cost_usd": 0.75,
    }


def test_spend_of_nothing_is_zero(tmp_path: Path) -> None:
    completions = CompletionSet(tmp_path)
    completions.write([])
    assert collect_spend(completions)["num_completions"] == 0


def test_thinned_curve_keeps_its_last_point() -> None:
    points = [{"step": float(step)} for step in range(1001)]
    thinned = thin(points)
    assert len(thinned) <= MAX_CURVE_POINTS
    assert thinned[-1] == {"step": 1000.0}
    assert thin(points[:3]) == points[:3]
    assert thin([]) == []

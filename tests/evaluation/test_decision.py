"""The promotion decision: what may never happen, and the bar it is held to."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config import RegistrySpec
from proxykd.evaluation.decision import decide
from proxykd.evaluation.report import refused

ENDS = st.tuples(st.floats(-1, 1), st.floats(-1, 1)).map(sorted)
CHAMPION = {"version": "4"}


def _report(
    low: float | None, high: float | None, *, against: str = "first_sft", nll: float | None = 1.0
) -> dict[str, Any]:
    value = 0.0 if low is None or high is None else (low + high) / 2
    found = {"metric": "heldout_nll", "arm": "registered", "against": against, "value": value, "low": low, "high": high}
    per_seed = {"7": nll, "8": 99.0}
    return {"arms": {"proxy_kd": {"heldout_nll": {"per_seed": per_seed}}}, "comparisons": [found]}


def _registry(**settings: float) -> RegistrySpec:
    return RegistrySpec(model_name="m", **settings)  # type: ignore[arg-type]


def test_clear_win_promotes() -> None:
    decision = decide(_report(-0.3, -0.1), _registry(), None)
    assert decision.outcome == "promote"
    assert "-0.2000 [-0.3000, -0.1000]" in decision.reasons[0]


@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_identical_arms_never_promote(champion: dict[str, str] | None) -> None:
    against = "first_sft" if champion is None else "champion"
    assert decide(_report(0.0, 0.0, against=against), _registry(), champion).outcome == "keep"


def test_interval_on_both_sides_of_the_margin_is_undecided() -> None:
    assert decide(_report(-0.3, 0.1), _registry(), None).outcome == "undecided"
    assert decide(_report(-0.3, -0.1), _registry(margin=0.2), None).outcome == "undecided"


@given(ENDS, st.floats(0, 1), st.floats(0, 1))
def test_larger_margin_never_turns_into_promotion(ends: list[float], margin: float, more: float) -> None:
    report = _report(*ends)
    if decide(report, _registry(margin=margin + more), None).outcome == "promote":
        assert decide(report, _registry(margin=margin), None).outcome == "promote"


@given(ENDS, st.floats(0, 1))
def test_promotion_needs_the_whole_interval_below_the_margin(ends: list[float], margin: float) -> None:
    assert (decide(_report(*ends), _registry(margin=margin), None).outcome == "promote") == (ends[1] < -margin)


def test_floor_holds_for_the_first_version_and_for_the_seed_that_is_registered() -> None:
    registry = _registry(max_heldout_nll=1.5)
    assert decide(_report(-0.3, -0.1, nll=1.5), registry, None).outcome == "promote"
    assert decide(_report(-0.3, -0.1, nll=1.6), registry, None).outcome == "keep"
    assert decide(_report(-0.3, -0.1, nll=None), registry, None).outcome == "undecided"
    assert decide(_report(-0.3, -0.1, nll=1.6, against="champion"), registry, CHAMPION).outcome == "promote"


def test_champion_is_the_bar_where_there_is_one() -> None:
    report = _report(-0.3, -0.1)  # beats SFT, was not compared with the champion
    decision = decide(report, _registry(), CHAMPION)
    assert decision.outcome == "undecided"
    assert "champion version 4" in decision.reasons[0]


def test_the_mean_over_seeds_decides_nothing() -> None:
    report = _report(-0.3, -0.1)
    report["comparisons"][0].update(arm="proxy_kd", against="sft")
    assert decide(report, _registry(), None).outcome == "undecided"


def test_a_refused_comparison_is_undecided_and_says_why() -> None:
    report = {"comparisons": [refused("heldout_nll", "registered", "champion", "another tokenizer")]}
    decision = decide(report, _registry(), CHAMPION)
    assert decision.outcome == "undecided"
    assert decision.reasons == ("proxy_kd cannot be compared with champion version 4: another tokenizer",)


def test_too_few_prompts_are_undecided() -> None:
    assert decide(_report(None, None), _registry(), None).outcome == "undecided"

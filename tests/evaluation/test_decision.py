"""The promotion decision: what may never happen, and the bars that it is held to."""

import copy
import math
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.config import GateSpec
from proxykd.evaluation.comparing import Wanted, refused
from proxykd.evaluation.decision import Decision, comparison, decide
from proxykd.evaluation.metrics import describe_metrics
from proxykd.evaluation.statistics import Settings

CHAMPION = {"version": "4"}
FULL: dict[str, Any] = {
    "guards": [{"metric": "top1_agreement", "margin": 0.02}, {"metric": "accuracy/*", "margin": 0.1}],
    "slices": [{"slice": "task=*", "margin": 0.1}],
    "limits": [{"name": "usd", "at_most": 5.0}, {"name": "heldout_nll", "at_most": 3.0}],
}
METRICS = ("heldout_nll", "top1_agreement", "accuracy/sums")


def _row(metric: str, against: str, value: float, half: float, *, part: str | None = None) -> dict[str, Any]:
    return {
        "metric": metric,
        "slice": part,
        "arm": "registered",
        "against": against,
        "value": value,
        "low": value - half,
        "high": value + half,
        "confidence": 0.9,
        "std_error": half / 1.645,
        "df": 100.0,
        "p_value": 0.001,
        "p_adjusted": 0.001,
        "mde": 1.5 * half,
        "test": "bootstrap",
        "num_prompts": 200,
        "num_clusters": 200,
    }


def _report(gain: float = 0.2, half: float = 0.1, *, guard: float = 0.0, part: float = 0.0) -> dict[str, Any]:
    """Gains in the metrics' own sense: positive = better."""
    rows = [_row("heldout_nll", bar, -gain, half) for bar in ("champion", "first_sft", "first_none")]
    for bar in ("champion", "first_sft"):
        rows += [_row("top1_agreement", bar, guard, 0.009), _row("accuracy/sums", bar, guard, 0.05)]
        rows += [_row("heldout_nll", bar, -part, 0.05, part=name) for name in ("task=a", "task=b")]
    return {
        "metrics": describe_metrics(METRICS),
        "slices": {"task=a": 100, "task=b": 100},
        "resources": {"usd": 1.0},
        "arms": {"proxy_kd": {"heldout_nll": {"per_seed": {"7": 1.0, "8": 99.0}}}},
        "comparisons": rows,
        "facts": {
            "validation": {
                "gate": {"is_open": True, "reasons": []},
                "rules": {"overlap": {"broken": 5, "measured": 100}},
                "verdicts": {"overlap": 0},
            }
        },
    }


def _policy(**changes: Any) -> GateSpec:
    return GateSpec.model_validate({**FULL, **changes})


def _outcome(report: dict[str, Any], champion: dict[str, str] | None = CHAMPION, **changes: Any) -> str:
    return decide(report, _policy(**changes), champion).outcome


def _failed(decision: Decision) -> list[str]:
    return [check.name for check in decision.checks if check.passed is False]


@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_a_clear_win_promotes_and_names_its_numbers(champion: dict[str, str] | None) -> None:
    decision = decide(_report(), _policy(), champion)
    assert decision.outcome == "promote"
    assert "-0.2000 [-0.3000, -0.1000] nats/token" in decision.reasons[0]
    assert "a change of 0.1500 would be found" in decision.reasons[0]
    assert decision.expected_champion == (None if champion is None else "4")
    assert all(check.passed for check in decision.checks)
    # Two bars or one, then two guards, two slices, two limits, validation and contamination.
    assert len(decision.checks) == (10 if champion else 9)


def test_the_default_policy_needs_nothing_but_an_evaluation() -> None:
    assert decide(_report(), GateSpec(), None).outcome == "promote"


@pytest.mark.parametrize("champion", [None, CHAMPION])
def test_equal_models_never_promote(champion: dict[str, str] | None) -> None:
    assert _outcome(_report(0.0, 0.0), champion) == "keep"
    assert _outcome(_report(0.0, 0.1), champion) == "undecided"


def test_champion_and_sft_must_both_be_beaten() -> None:
    report = _report()
    report["comparisons"][1].update(value=0.0, low=-0.1, high=0.1)
    assert _outcome(report) == "undecided"
    report["comparisons"][1].update(value=0.2, low=0.1, high=0.3)
    decision = decide(report, _policy(), CHAMPION)
    assert decision.outcome == "keep"
    assert _failed(decision) == ["primary heldout_nll against first_sft"]
    assert _outcome(report, beat_sft=False) == "promote"


def test_a_first_version_that_need_not_beat_sft_must_beat_the_untrained_student() -> None:
    report = _report()
    report["comparisons"] += [_row("top1_agreement", "first_none", 0.1, 0.01)]
    changes = {"guards": [], "slices": [], "beat_sft": False}
    assert _outcome(report, None, **changes) == "promote"
    report["comparisons"][2].update(value=0.0, low=0.0, high=0.0)
    assert _outcome(report, None, **changes) == "keep"


def test_mcnemar_must_agree_where_it_was_made() -> None:
    report = _report()
    report["comparisons"][0].update(test="mcnemar", p_value=0.06)
    assert _outcome(report) == "undecided"
    report["comparisons"][0].update(p_value=0.05)
    assert _outcome(report) == "promote"


@pytest.mark.parametrize("kind", ["guard", "part"])
def test_the_worst_guard_or_slice_blocks(kind: str) -> None:
    assert _outcome(_report(**{kind: -0.5})) == "keep"
    report = _report(gain=5.0)
    worst = next(row for row in report["comparisons"] if row["metric"] == "accuracy/sums")
    worst.update(value=-0.07, low=-0.12, high=-0.02)  # a loss of 0.1 is not ruled out, and not shown either
    decision = decide(report, _policy(), CHAMPION)
    assert decision.outcome == "undecided"
    assert decision.reasons == (
        next(check.text for check in decision.checks if check.name == "guard accuracy/sums against champion"),
    )


def test_correction_makes_claims_of_loss_rarer_and_promotions_no_likelier() -> None:
    report = _report()
    guard = next(row for row in report["comparisons"] if row["metric"] == "accuracy/sums")
    # A loss of 0.15 with a standard error of 0.025 against the margin of 0.1: p = 0.024, and 0.095 among four.
    guard.update(value=-0.15, low=-0.2, high=-0.1, std_error=0.025)
    assert _outcome(report, correction="none") == "keep"
    assert _outcome(report, correction="holm") == "undecided"


def test_limits_block_from_both_sides() -> None:
    assert _outcome(_report(), limits=[{"name": "usd", "at_most": 0.5}]) == "keep"
    assert _outcome(_report(), limits=[{"name": "usd", "at_least": 1.5}]) == "keep"
    # The registered seed has 1.0; the mean over seeds, 50, is no model.
    assert _outcome(_report(), limits=[{"name": "heldout_nll", "at_most": 1.0}]) == "promote"
    assert _outcome(_report(), limits=[{"name": "heldout_nll", "at_most": 0.9}]) == "keep"
    decision = decide(_report(), _policy(limits=[{"name": "tokens_per_s", "at_least": 9}]), CHAMPION)
    assert decision.outcome == "undecided"
    assert "measure it, or drop it" in decision.reasons[0]


def test_data_gates_must_be_green() -> None:
    report = _report()
    report["facts"]["validation"]["gate"] = {"is_open": False, "reasons": ["too many refusals"]}
    decision = decide(report, _policy(), CHAMPION)
    assert decision.outcome == "keep"
    assert "too many refusals" in decision.reasons[0]
    assert _outcome(report, require_validation=False) == "promote"
    report = _report()
    report["facts"]["validation"]["rules"]["overlap"]["broken"] = 40
    assert _failed(decide(report, _policy(), CHAMPION)) == ["contamination"]
    report["facts"]["validation"]["verdicts"]["overlap"] = 40  # they do not teach
    assert _outcome(report) == "promote"


def _broken_reports() -> dict[str, tuple[dict[str, Any], str]]:
    found: dict[str, tuple[dict[str, Any], str]] = {}

    def broken(name: str, says: str) -> dict[str, Any]:
        found[name] = (_report(), says)
        return found[name][0]

    del broken("a missing comparison", "evaluate the student with this metric")["comparisons"][0]
    broken("a value that is NaN", "look at both models' predictions")["comparisons"][0]["value"] = math.nan
    broken("a null value", "look at both models' predictions")["comparisons"][0]["value"] = None
    broken("no interval", "hold out more prompts")["comparisons"][0]["low"] = None
    broken("an endless interval", "hold out more prompts")["comparisons"][0]["high"] = math.inf
    broken("too few prompts", "gate asks for 20; hold out more")["comparisons"][0]["num_clusters"] = 19
    broken("a small slice", "gate asks for 20; hold out more")["comparisons"][5]["num_clusters"] = 19
    broken("another level", "compare again")["comparisons"][0]["confidence"] = 0.95
    broken("no slice", "name what it has, or drop the rule")["slices"] = {}
    broken("no metric that fits", "name what it has, or drop the rule")["metrics"].pop("accuracy/sums")
    broken("no direction", "name another one")["metrics"]["heldout_nll"]["direction"] = "none"
    broken("no validation", "evaluate again with it")["facts"]["validation"].pop("gate")
    broken("no overlap", "validate again")["facts"]["validation"]["rules"]["overlap"] = {"broken": 0, "measured": 0}
    broken("no cost", "was not measured")["resources"] = {}
    report = broken("different prompts", "score both on the same held-out prompts")
    wanted = Wanted("heldout_nll", None, "registered", "champion")
    why = "different prompts: score both on the same held-out prompts"
    report["comparisons"][0] = refused(wanted, why, Settings(confidence=0.9))
    return found


BROKEN = _broken_reports()


@pytest.mark.parametrize("name", sorted(BROKEN))
def test_what_cannot_be_used_is_undecided_and_says_what_to_do(name: str) -> None:
    report, says = copy.deepcopy(BROKEN[name])
    decision = decide(report, _policy(), CHAMPION)
    assert decision.outcome == "undecided"
    assert says in decision.reasons[0]
    # Nor does anything else that is bad turn it into a decision.
    report["arms"]["proxy_kd"]["heldout_nll"]["per_seed"]["7"] = 99.0
    assert decide(report, _policy(), CHAMPION).outcome == "undecided"


GAINS = st.floats(-0.5, 0.5)


@given(GAINS, GAINS, GAINS, st.floats(0, 0.3), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=150, deadline=None)
def test_a_better_candidate_never_falls(
    gain: float, guard: float, part: float, half: float, more: float, more_guard: float, more_part: float
) -> None:
    order = {"keep": 0, "undecided": 1, "promote": 2}
    before = _outcome(_report(gain, half, guard=guard, part=part))
    after = _outcome(_report(gain + more, half, guard=guard + more_guard, part=part + more_part))
    assert order[after] >= order[before]


@given(GAINS, st.floats(0, 0.3), st.floats(0, 0.3), st.floats(0, 0.3))
@settings(max_examples=100, deadline=None)
def test_a_stricter_margin_never_promotes_more(gain: float, half: float, margin: float, more: float) -> None:
    report = _report(gain, half)
    if _outcome(report, primary={"margin": margin + more}) == "promote":
        assert _outcome(report, primary={"margin": margin}) == "promote"


@given(st.randoms(use_true_random=False), GAINS, GAINS, GAINS)
@settings(max_examples=50, deadline=None)
def test_the_order_of_the_policy_and_of_the_report_decides_nothing(
    random: Any, gain: float, guard: float, part: float
) -> None:
    report, policy = _report(gain, guard=guard, part=part), copy.deepcopy(FULL)
    before = decide(report, _policy(), CHAMPION)
    random.shuffle(report["comparisons"])
    for rules in policy.values():
        random.shuffle(rules)
    after = decide(report, GateSpec.model_validate(policy), CHAMPION)
    assert after.outcome == before.outcome
    assert {asdict(check)["name"]: check for check in after.checks} == {check.name: check for check in before.checks}


@given(GAINS, st.floats(0, 0.3))
@settings(max_examples=60, deadline=None)
def test_promotion_needs_the_whole_interval_beyond_the_margin(gain: float, half: float) -> None:
    assert (_outcome(_report(gain, half), primary={"margin": 0.05}) == "promote") == (gain - half > 0.05)


def test_the_mean_over_seeds_decides_nothing() -> None:
    report = _report()
    for row in report["comparisons"]:
        row.update(arm="proxy_kd", against="sft")
    assert _outcome(report, None) == "undecided"
    assert comparison(report, "heldout_nll", "proxy_kd", "sft") is not None

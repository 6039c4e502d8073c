"""From sums to rows: pairing, clusters, slices, seeds and every reason not to compare."""

import math
from typing import Any

import numpy as np
import pytest

from proxykd.evaluation.comparing import Sums, Wanted, compare, measure
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.statistics import Settings, holm

SETTINGS = Settings(resamples=200)
METRIC, IDS = "heldout_nll", [f"p{idx}" for idx in range(40)]


def _sums(shift: float = 0.0, *, seed: int = 0, ids: list[str] = IDS) -> dict[str, tuple[float, float]]:
    levels = np.random.default_rng(seed).normal(1.0 + shift, 0.1, len(ids))
    return {name: (5.0 * float(level), 5.0) for name, level in zip(ids, levels, strict=True)}


def _compare(
    first: Sums, other: Sums, *, part: str | None = None, prompts: PromptTable | None = None, metric: str = METRIC
) -> dict[str, Any]:
    sums = {metric: {"registered": {0: first}, "champion": {0: other}}}
    wanted = [Wanted(metric, part, "registered", "champion")]
    (row,) = compare(sums, wanted, prompts or PromptTable(), SETTINGS, seeds_in_interval=True)
    return row


def test_the_order_of_the_rows_does_not_matter() -> None:
    first, other = _sums(-0.1), _sums(seed=1)
    row = _compare(first, other)
    assert row["num_prompts"] == row["num_clusters"] == 40
    assert row["value"] == pytest.approx(-0.1, abs=0.08)
    assert _compare(first, dict(reversed(other.items()))) == row
    assert _compare(dict(reversed(first.items())), other) == row


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda sums: sums.pop("p3"), "1 of 40 rows are missing and 0 are others; score both on the same"),
        (lambda sums: sums.update(extra=(1.0, 1.0)), "0 of 40 rows are missing and 1 are others"),
        (lambda sums: sums.update(p3=(math.nan, 5.0)), "no number for 1 prompts; look at that model's predictions"),
        (lambda sums: sums.update(p3=(math.inf, 5.0)), "no number for 1 prompts"),
        (lambda sums: sums.update(p3=(1.0, -5.0)), "no number for 1 prompts"),
        (lambda sums: sums.clear(), "hold out more prompts"),
        (lambda sums: sums.update(dict.fromkeys(sums, (0.0, 0.0))), "nothing to divide by"),
    ],
    ids=["missing row", "other row", "NaN", "infinite", "negative count", "no row", "no tokens"],
)
def test_what_cannot_be_compared_is_refused(change: Any, says: str) -> None:
    other = _sums()
    change(other)
    row = _compare(_sums(), other)
    assert says in row["refusal"]
    assert [row[key] for key in ("value", "low", "high", "p_value", "p_adjusted", "mde")] == [None] * 6


def test_a_metric_that_was_not_measured_is_refused() -> None:
    wanted = [Wanted("accuracy/sums", None, "registered", "champion")]
    (row,) = compare({METRIC: {}}, wanted, PromptTable(), SETTINGS, seeds_in_interval=False)
    assert "was not measured" in row["refusal"]


def test_slices_are_compared_on_their_prompts_and_an_empty_one_is_refused() -> None:
    prompts = PromptTable({}, {"task=a": frozenset(IDS[:10]), "task=gone": frozenset({"elsewhere"})})
    first, other = _sums(-0.1), _sums(seed=1)
    row = _compare(first, other, part="task=a", prompts=prompts)
    few = _compare({name: first[name] for name in IDS[:10]}, {name: other[name] for name in IDS[:10]})
    assert (row["slice"], row["num_prompts"], row["value"]) == ("task=a", 10, few["value"])
    for name in ("task=gone", "task=never"):
        assert "in the slice task=" in _compare(first, other, part=name, prompts=prompts)["refusal"]


def test_prompts_of_a_group_are_one_unit() -> None:
    prompts = PromptTable({name: f"g{idx // 4}" for idx, name in enumerate(IDS)})
    row = _compare(_sums(-0.1), _sums(seed=1), prompts=prompts)
    assert (row["num_prompts"], row["num_clusters"]) == (40, 10)


def test_several_seeds_widen_the_interval_only_where_the_method_is_asked_about() -> None:
    first = {seed: _sums(shift, seed=seed) for seed, shift in ((1, -0.3), (2, -0.1), (3, -0.2))}
    sums = {METRIC: {"proxy_kd": first, "sft": {seed: _sums(seed=9) for seed in (1, 2, 3)}}}
    wanted = [Wanted(METRIC, None, "proxy_kd", "sft")]
    method, models = (
        compare(sums, wanted, PromptTable(), SETTINGS, seeds_in_interval=is_method)[0] for is_method in (True, False)
    )
    assert method["value"] == models["value"]
    assert method["high"] - method["low"] > 1.5 * (models["high"] - models["low"])
    assert (method["over"], models["over"]) == ("prompts and seeds", "prompts")
    assert set(method["per_seed"]) == {"1", "2", "3"}
    measured = measure(sums, PromptTable(), SETTINGS, seeds_in_interval=True)
    assert (measured["proxy_kd"][METRIC]["over"], measured["sft"][METRIC]["over"]) == ("prompts and seeds", "prompts")


def test_p_asks_whether_the_arm_is_better_whichever_way_the_metric_counts() -> None:
    better, worse = _sums(-0.3), _sums(seed=1)
    assert _compare(better, worse)["p_value"] < 0.05 < _compare(worse, better)["p_value"]
    agreement = "top1_agreement"
    assert (
        _compare(better, worse, metric=agreement)["p_value"]
        > 0.05
        > _compare(worse, better, metric=agreement)["p_value"]
    )
    length = [_compare(*pair, metric="length")["p_value"] for pair in ((better, worse), (worse, better))]
    assert max(length) < 0.05


def test_p_is_corrected_over_the_metrics_and_slices_of_two_arms() -> None:
    prompts = PromptTable({}, {"a": frozenset(IDS[:20]), "b": frozenset(IDS[20:])})
    sums = {METRIC: {"registered": {0: _sums(-0.05)}, "champion": {0: _sums(seed=1)}, "first_sft": {0: _sums(seed=2)}}}
    wanted = [Wanted(METRIC, part, "registered", "champion") for part in (None, "a", "b")]
    wanted.append(Wanted(METRIC, None, "registered", "first_sft"))
    rows = compare(sums, wanted, prompts, SETTINGS, seeds_in_interval=False)
    assert [row["p_adjusted"] for row in rows[:3]] == holm([row["p_value"] for row in rows[:3]])
    assert rows[3]["p_adjusted"] == rows[3]["p_value"]


def test_prompts_that_one_side_has_nothing_on_are_left_out_on_both() -> None:
    # The judge could not read a verdict on the champion's answers to half of the prompts, on which the other lost.
    first = {name: (float(idx % 2), 1.0) for idx, name in enumerate(IDS)}
    other = {name: (pair if pair[0] else (0.0, 0.0)) for name, pair in first.items()}
    row = _compare(first, other, metric="win_rate/teacher")
    assert (row["value"], row["num_prompts"], row["num_clusters"]) == (0.0, 20, 20)
    assert row["low"] < 0.0 < row["high"]
    few = {name: (pair if name == "p1" else (0.0, 0.0)) for name, pair in first.items()}
    apart = {name: (0.0, 0.0) if name in ("p1", "p2") else (1.0, 1.0) for name in IDS}
    assert "no prompt" in _compare(few, apart, metric="win_rate/teacher")["refusal"]

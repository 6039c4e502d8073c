"""Bootstrap intervals: what must hold whatever the numbers, and small cases computed by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.evaluation import statistics
from proxykd.exceptions import ShapeError

SUMS = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 40)), min_size=2, max_size=30)


def _arm(pairs: list[tuple[float, int]]) -> statistics.Arm:
    above, below = zip(*pairs, strict=True)
    return statistics.arm(above, below)


def test_ratio_of_sums_is_not_the_mean_of_ratios() -> None:
    # (6 + 4) / (3 + 1) = 2.5, whereas the mean of 2 and 4 is 3.
    assert statistics.ratio(statistics.arm([6.0, 4.0], [3.0, 1.0])) == 2.5


def test_interval_of_two_prompts_by_hand() -> None:
    # Draws of two prompts with values 0 and 1: means 0, 1/2, 1/2, 1 with odds 1/4 each. A quarter of all resamples
    # lies at either end, so the 90 % interval reaches both ends and the 40 % interval is the middle.
    sums = statistics.arm([0.0, 1.0])
    assert statistics.interval(sums, confidence=0.9) == (0.5, 0.0, 1.0)
    assert statistics.interval(sums, confidence=0.4) == (0.5, 0.5, 0.5)


@given(SUMS)
@settings(max_examples=30, deadline=None)
def test_interval_lies_within_the_single_prompts(pairs: list[tuple[float, int]]) -> None:
    sums = _arm(pairs)
    ratios = sums.numerators / sums.denominators
    found = statistics.interval(sums, resamples=200)
    assert found.low <= found.high
    assert found.low >= ratios.min() - 1e-9
    assert found.high <= ratios.max() + 1e-9


def test_interval_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(7)
    num_covered = 0
    for trial in range(300):
        tokens = rng.integers(5, 30, size=60)
        nll = tokens * (1.5 + 0.3 * rng.standard_normal(60))  # true ratio 1.5
        found = statistics.interval(statistics.arm(nll, tokens), confidence=0.9, resamples=300, seed=trial)
        num_covered += found.low <= 1.5 <= found.high
    # 300 trials at 0.9: standard error 0.017; percentile intervals are slightly too narrow at 60 prompts.
    assert 0.84 <= num_covered / 300 <= 0.95


def test_interval_of_whole_prompts_is_wider_than_one_of_their_tokens() -> None:
    rng = np.random.default_rng(3)
    levels = rng.standard_normal(50)
    by_prompt = statistics.interval(statistics.arm(20 * levels, np.full(50, 20.0)))
    by_token = statistics.interval(statistics.arm(np.repeat(levels, 20)))
    assert by_prompt.high - by_prompt.low > 3 * (by_token.high - by_token.low)


@given(SUMS)
@settings(max_examples=30, deadline=None)
def test_identical_arms_do_not_differ(pairs: list[tuple[float, int]]) -> None:
    assert statistics.paired_difference(_arm(pairs), _arm(pairs), resamples=200) == (0.0, 0.0, 0.0, 1.0, 1.0)


@given(SUMS)
@settings(max_examples=30, deadline=None)
def test_swapping_the_arms_mirrors_the_difference(pairs: list[tuple[float, int]]) -> None:
    first, other = _arm(pairs), _arm([(above + below % 3, below) for above, below in pairs])
    forth = statistics.paired_difference(first, other, resamples=200)
    back = statistics.paired_difference(other, first, resamples=200)
    assert forth.value == pytest.approx(-back.value)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low))
    assert (forth.p_below, forth.p_above) == (back.p_above, back.p_below)


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    rng = np.random.default_rng(5)
    hard = rng.uniform(10, 200, size=80)
    tokens = np.full(80, 20.0)
    first, other = statistics.arm(hard - 1.0, tokens), statistics.arm(hard, tokens)
    difference = statistics.paired_difference(first, other)
    assert difference.value == pytest.approx(-0.05)
    assert (difference.low, difference.high) == pytest.approx((-0.05, -0.05))
    assert difference.p_below == pytest.approx(1 / 2001)
    assert statistics.interval(first).high > statistics.interval(other).low


def test_one_prompt_has_a_value_but_no_interval() -> None:
    found = statistics.interval(statistics.arm([6.0], [3.0]))
    assert found.value == 2.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    difference = statistics.paired_difference(statistics.arm([6.0], [3.0]), statistics.arm([9.0], [3.0]))
    assert difference.value == -1.0
    assert (difference.p_below, difference.p_above) == (1.0, 1.0)


@pytest.mark.parametrize("tokens", [[], [0.0], [0.0, 0.0]])
def test_without_tokens_there_is_no_value(tokens: list[float]) -> None:
    found = statistics.interval(statistics.arm([0.0] * len(tokens), tokens))
    assert all(math.isnan(number) for number in found)


def test_resamples_without_tokens_are_left_out_of_the_interval() -> None:
    found = statistics.interval(statistics.arm([2.0, 2.0, 0.0], [1.0, 1.0, 0.0]))
    assert found == (2.0, 2.0, 2.0)


def test_seeds_are_averaged_prompt_by_prompt() -> None:
    seeds = [statistics.arm([2.0, 4.0], [1.0, 2.0]), statistics.arm([4.0, 8.0], [1.0, 2.0])]
    mean = statistics.mean_over_seeds(seeds)
    assert mean.numerators.tolist() == [3.0, 6.0]
    assert statistics.ratio(mean) == np.mean([statistics.ratio(one) for one in seeds]) == 3.0
    assert statistics.spread([statistics.ratio(one) for one in seeds]) == pytest.approx(math.sqrt(2))
    assert math.isnan(statistics.spread([1.0]))


def test_blocks_of_draws_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = statistics.arm(np.arange(10.0), np.arange(1.0, 11.0))
    whole = statistics.interval(sums, resamples=500)
    monkeypatch.setattr(statistics, "_MAX_DRAWS_AT_ONCE", 70)
    assert statistics.interval(sums, resamples=500) == whole


def test_arms_of_different_length_are_refused() -> None:
    with pytest.raises(ShapeError, match="two vectors"):
        statistics.arm([1.0], [1.0, 2.0])
    with pytest.raises(ShapeError, match="same prompts"):
        statistics.paired_difference(statistics.arm([1.0]), statistics.arm([1.0, 2.0]))
    with pytest.raises(ShapeError, match="seeds need"):
        statistics.mean_over_seeds([statistics.arm([1.0]), statistics.arm([1.0, 2.0])])

"""Intervals: what must hold whatever the numbers, and small cases computed by hand."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats

from proxykd.evaluation import resampling, statistics
from proxykd.evaluation.drawing import count_draws
from proxykd.evaluation.intervals import NO_SEEDS, Method, SeedSpread
from proxykd.evaluation.statistics import Arm, Contrast, Settings
from proxykd.exceptions import ShapeError

METHODS: tuple[Method, ...] = ("studentised", "percentile", "bca")
FAST = Settings(resamples=200)
SUMS = st.lists(st.tuples(st.floats(0, 50), st.integers(1, 40)), min_size=2, max_size=30)


def _arm(pairs: list[tuple[float, int]]) -> Arm:
    above, below = zip(*pairs, strict=True)
    return statistics.arm(above, below)


def _normal(n: int, *, seed: int = 0, mean: float = 0.0) -> Arm:
    return statistics.arm(np.random.default_rng(seed).normal(mean, 1.0, n))


def test_ratio_of_sums_is_not_the_mean_of_ratios() -> None:
    # (6 + 4) / (3 + 1) = 2.5, whereas the mean of 2 and 4 is 3.
    assert statistics.ratio(statistics.arm([6.0, 4.0], [3.0, 1.0])) == 2.5


def test_percentile_interval_of_two_prompts_by_hand() -> None:
    # Draws of two prompts with values 0 and 1: means 0, 1/2, 1/2, 1 with odds 1/4 each. A quarter of all resamples
    # lies at either end, so the 90 % interval reaches both ends and the 40 % interval is the middle.
    sums = statistics.arm([0.0, 1.0])
    assert statistics.interval(sums, Settings(confidence=0.9, method="percentile"))[:3] == (0.5, 0.0, 1.0)
    assert statistics.interval(sums, Settings(confidence=0.4, method="percentile"))[:3] == (0.5, 0.5, 0.5)


def test_counts_are_whole_draws_and_the_same_for_the_same_seed() -> None:
    first = np.vstack(list(resampling.draw_counts(7, 100, 3)))
    assert first.shape == (100, 7)
    assert (first.sum(axis=1) == 7).all()
    assert np.array_equal(first, np.vstack(list(resampling.draw_counts(7, 100, 3))))
    assert not np.array_equal(first, np.vstack(list(resampling.draw_counts(7, 100, 4))))


def test_blocks_of_draws_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    sums = statistics.arm(np.arange(10.0), np.arange(1.0, 11.0))
    whole = statistics.interval(sums, Settings(resamples=500))
    monkeypatch.setattr(resampling, "_MAX_COUNTS_AT_ONCE", 70)
    drawn = np.vstack(list(resampling.draw_counts(10, 500, 0)))
    assert len(drawn) == 500
    assert statistics.interval(sums, Settings(resamples=500)) == pytest.approx(whole)


def test_every_unit_is_drawn_as_often_as_every_other() -> None:
    # 20,000 draws of each of 7 units: the sum of (count - 20,000)^2 / 20,000 is chi-square with 6 degrees of freedom.
    totals = np.vstack(list(resampling.draw_counts(7, 20_000, 5))).sum(axis=0)
    assert ((totals - 20_000) ** 2 / 20_000).sum() < 22.5, "p = 0.001"


def test_words_that_would_favour_a_unit_are_left_out() -> None:
    # 2^32 mod 3 = 1: the word 0 alone is left out, and the words that follow are used instead.
    third = 2**32 // 3 + 1
    counts = np.zeros(3)
    count_draws(np.array([0, third, 2 * third, 5, 7], np.uint32), counts)
    assert counts.tolist() == [1.0, 1.0, 1.0]


def test_draws_are_the_multinomial_ones_of_a_slow_oracle() -> None:
    """Means, variances and covariances of the counts: 1, 1 - 1/n and -1/n."""
    counts = np.vstack(list(resampling.draw_counts(4, 40_000, 1)))
    covariance = np.cov(counts.T)
    assert counts.mean(axis=0) == pytest.approx(np.ones(4), abs=0.02)
    assert np.diag(covariance) == pytest.approx(np.full(4, 0.75), abs=0.02)
    assert covariance[np.triu_indices(4, 1)] == pytest.approx(np.full(6, -0.25), abs=0.02)


@pytest.mark.parametrize("is_shared", [True, False])
def test_resampled_values_and_errors_are_those_of_the_drawn_rows(is_shared: bool) -> None:
    rng = np.random.default_rng(1)
    above, below = rng.normal(size=(2, 12)), rng.integers(1, 9, size=(2, 12)).astype(float)
    below = np.stack([below[0], below[0]]) if is_shared else below
    (found,) = resampling.resample([resampling.Units(above, below)], resamples=5, seed=2)
    (counts,) = resampling.draw_counts(12, 5, 2)
    for row, value, error in zip(counts.astype(int), found.values, found.std_errors, strict=True):
        drawn = np.repeat(np.arange(12), row)
        n, d = above[:, drawn], below[:, drawn]
        ratios = n.sum(1) / d.sum(1)
        assert value == pytest.approx(ratios[0] - ratios[1])
        influence = (n - ratios[:, None] * d) / d.sum(1, keepdims=True)
        assert error == pytest.approx(np.sqrt(np.sum((influence[0] - influence[1]) ** 2) * 12 / 11))


def test_standard_error_and_degrees_of_freedom_of_a_mean_are_students() -> None:
    # Equal denominators: a_i = n / (n - 1), so se^2 = s^2 / n and df = n - 1.
    sums = _normal(9)
    found = statistics.interval(sums, FAST)
    assert found.std_error == pytest.approx(stats.sem(sums.numerators))
    assert found.df == pytest.approx(8)


@pytest.mark.parametrize("tokens", [np.arange(1.0, 15.0), np.r_[900.0, 700.0, np.ones(12)], np.full(14, 3.0)])
def test_standard_error_and_degrees_of_freedom_are_bell_and_mccaffreys_by_matrices(tokens: NDArray[np.float64]) -> None:
    # A ratio is the mean of z_i = n_i / d_i with weights h_i; with R = I - 1 h' its residuals are R z.
    above = np.random.default_rng(8).normal(size=14) * tokens
    shares = tokens / tokens.sum()
    away = np.eye(14) - np.outer(np.ones(14), shares)
    weights = shares**2 / (away @ away.T).diagonal()
    form = away.T @ np.diag(weights) @ away
    found = statistics.interval(statistics.arm(above, tokens), FAST)
    assert found.std_error == pytest.approx(np.sqrt(above / tokens @ form @ (above / tokens)))
    assert found.df == pytest.approx(np.trace(form) ** 2 / np.trace(form @ form))


@pytest.mark.parametrize(("method", "theirs"), [("percentile", "percentile"), ("bca", "BCa")])
def test_percentile_and_bca_are_scipys(method: Method, theirs: str) -> None:
    rng = np.random.default_rng(9)
    below = rng.integers(1, 30, 40).astype(float)
    first = rng.gamma(2.0, 1.0, 40) * below
    other = 0.9 * first + rng.normal(size=40)

    def difference(first: Any, other: Any, below: Any, axis: int) -> Any:
        return (first.sum(axis) - other.sum(axis)) / below.sum(axis)

    settings = Settings(resamples=10_000, method=method)
    found = statistics.paired_difference(statistics.arm(first, below), statistics.arm(other, below), settings)
    ends = stats.bootstrap(
        (first, other, below), difference, paired=True, n_resamples=10_000, method=theirs, rng=rng
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((ends.low, ends.high), abs=0.05 * (ends.high - ends.low))


def test_few_long_prompts_leave_few_degrees_of_freedom() -> None:
    tokens = np.array([1000.0, 1000.0] + [1.0] * 98)
    found = statistics.interval(statistics.arm(tokens * np.linspace(0, 1, 100), tokens), FAST)
    assert found.df < 2


@pytest.mark.parametrize("method", METHODS)
def test_p_is_the_tail_at_which_the_interval_touches_zero(method: Method) -> None:
    first, other = _normal(40, mean=-0.3), statistics.arm(np.zeros(40))
    p = statistics.paired_difference(first, other, Settings(method=method)).p_below
    assert 0.001 < p < 0.3
    for factor, excludes in ((0.95, False), (1.05, True)):
        at_p = Settings(method=method, confidence=1 - 2 * p * factor)
        assert (statistics.paired_difference(first, other, at_p).high < 0) == excludes


@given(SUMS, st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_identical_arms_do_not_differ(pairs: list[tuple[float, int]], method: Method) -> None:
    found = statistics.paired_difference(_arm(pairs), _arm(pairs), Settings(resamples=200, method=method))
    assert found[:3] == (0.0, 0.0, 0.0)
    assert (found.p_below, found.p_above) == (1.0, 1.0)


@given(SUMS, st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_swapping_the_arms_mirrors_the_difference(pairs: list[tuple[float, int]], method: Method) -> None:
    first, other = _arm(pairs), _arm([(above + below % 3, below) for above, below in pairs])
    forth = statistics.paired_difference(first, other, Settings(resamples=200, method=method))
    back = statistics.paired_difference(other, first, Settings(resamples=200, method=method))
    assert forth.value == pytest.approx(-back.value)
    assert (forth.low, forth.high) == pytest.approx((-back.high, -back.low), rel=1e-6, abs=1e-9)
    assert (forth.p_below, forth.p_above) == pytest.approx((back.p_above, back.p_below), rel=1e-3)


@given(SUMS, st.floats(0.01, 5), st.sampled_from(METHODS))
@settings(max_examples=40, deadline=None)
def test_a_better_arm_has_a_better_interval(pairs: list[tuple[float, int]], gain: float, method: Method) -> None:
    first, other = _arm(pairs), _arm([(above * 0.9 + below % 3, below) for above, below in pairs])
    better = Arm(first.numerators - gain * first.denominators, first.denominators)
    before, after = (statistics.paired_difference(one, other, Settings(0.9, 200, method)) for one in (first, better))
    assert after.value == pytest.approx(before.value - gain)
    assert after.high <= before.high + 1e-9
    assert after.p_below <= before.p_below + 1e-3


def test_paired_difference_sees_what_unpaired_intervals_hide() -> None:
    rng = np.random.default_rng(5)
    hard, tokens = rng.uniform(10, 200, size=80), np.full(80, 20.0)
    first, other = statistics.arm(hard - 1.0, tokens), statistics.arm(hard, tokens)
    difference = statistics.paired_difference(first, other)
    assert difference.value == pytest.approx(-0.05)
    assert (difference.low, difference.high) == pytest.approx((-0.05, -0.05))
    assert difference.p_below == pytest.approx(1 / 2001)
    assert statistics.interval(first).high > statistics.interval(other).low


def test_interval_of_whole_prompts_is_wider_than_one_of_their_tokens() -> None:
    levels = np.random.default_rng(3).standard_normal(50)
    by_prompt = statistics.interval(statistics.arm(20 * levels, np.full(50, 20.0)))
    by_token = statistics.interval(statistics.arm(np.repeat(levels, 20)))
    assert by_prompt.high - by_prompt.low > 3 * (by_token.high - by_token.low)


def test_clusters_are_drawn_whole() -> None:
    levels = np.random.default_rng(4).standard_normal(30)
    samples = statistics.arm(np.repeat(levels, 4))
    clusters = np.repeat(np.arange(30), 4)
    whole = statistics.interval(statistics.in_clusters(samples, clusters))
    assert whole.num_units == 30
    assert whole.high - whole.low > 1.7 * (lambda one: one.high - one.low)(statistics.interval(samples))


def test_one_prompt_has_a_value_but_no_interval() -> None:
    found = statistics.interval(statistics.arm([6.0], [3.0]))
    assert found.value == 2.0
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    difference = statistics.paired_difference(statistics.arm([6.0], [3.0]), statistics.arm([9.0], [3.0]))
    assert difference.value == -1.0
    assert (difference.p_below, difference.p_above, difference.test) == (1.0, 1.0, "none")


@pytest.mark.parametrize("tokens", [[], [0.0], [0.0, 0.0]])
def test_without_tokens_there_is_no_value(tokens: list[float]) -> None:
    found = statistics.interval(statistics.arm([0.0] * len(tokens), tokens))
    assert all(math.isnan(one) for one in found[:3])


def test_a_number_that_is_none_gives_no_interval() -> None:
    found = statistics.interval(statistics.arm([1.0, math.nan, 2.0]))
    assert all(math.isnan(one) for one in found[:3])


def test_prompts_without_tokens_count_for_nothing() -> None:
    with_empty = statistics.interval(statistics.arm([2.0, 3.0, 0.0], [1.0, 1.0, 0.0]), FAST)
    assert with_empty == statistics.interval(statistics.arm([2.0, 3.0], [1.0, 1.0]), FAST)


def test_ten_right_of_ten_do_not_make_the_eleventh_certain() -> None:
    found = statistics.interval(statistics.arm(np.ones(10)), is_judgement=True)
    assert (found.value, found.high) == (1.0, 1.0)
    assert 0.6 < found.low < 0.95


def test_models_that_never_differed_are_not_shown_to_be_equal() -> None:
    same = statistics.arm(np.ones(30))
    found = statistics.paired_difference(same, same, Settings(confidence=0.9), is_judgement=True)
    assert found.value == 0.0
    # Bonett and Price: one win and one loss among 32: 1.694 * sqrt(2 / 32 / 31) = 0.076 (t with 31 df).
    assert found.high == pytest.approx(0.076, abs=0.01)
    assert found.low == pytest.approx(-found.high, abs=0.01)


def test_accuracy_on_the_same_questions_is_tested_by_mcnemar() -> None:
    first, other = statistics.arm([1.0] * 8 + [0.0] * 12), statistics.arm([0.0] * 7 + [1.0] * 2 + [0.0] * 11)
    # 7 wins, 1 loss: P(Bin(8, 1/2) >= 7) = 9 / 256.
    found = statistics.paired_difference(first, other, is_judgement=True)
    assert found.test == "mcnemar"
    assert found.p_above == pytest.approx(9 / 256)
    twice = Arm(np.r_[first.numerators[:10], 2.0], np.r_[np.ones(10), 2.0])
    assert statistics.paired_difference(twice, twice, is_judgement=True).test == "bootstrap"


def test_seeds_are_averaged_prompt_by_prompt() -> None:
    seeds = [statistics.arm([2.0, 4.0], [1.0, 2.0]), statistics.arm([4.0, 8.0], [1.0, 2.0])]
    mean = statistics.mean_over_seeds(seeds)
    assert mean.numerators.tolist() == [3.0, 6.0]
    assert statistics.ratio(mean) == np.mean([statistics.ratio(one) for one in seeds]) == 3.0
    assert statistics.spread([statistics.ratio(one) for one in seeds]) == pytest.approx(math.sqrt(2))
    assert math.isnan(statistics.spread([1.0]))


def test_the_spread_over_seeds_widens_the_interval() -> None:
    first, other = _normal(50, mean=-1.0), statistics.arm(np.zeros(50))
    plain = statistics.paired_difference(first, other, FAST)
    widened = statistics.paired_difference(first, other, FAST, seeds=SeedSpread(0.5, 2.0))
    assert widened.value == plain.value
    assert widened.high > 0 > plain.high
    assert widened.p_below > 0.05 > plain.p_below
    assert widened.std_error == pytest.approx(math.hypot(plain.std_error, 0.5))
    # All of it from seeds: the interval is Student's with their degrees of freedom.
    alone = statistics.paired_difference(other, other, FAST, seeds=SeedSpread(0.5, 2.0))
    assert alone.high == pytest.approx(0.5 * stats.t.ppf(0.975, 2))


def test_spread_of_seeds_by_hand() -> None:
    # Values 1, 2, 3: variance 1, over 3 seeds 1/3 with 2 df. Twice that adds up to 2/3 with 4 df.
    assert statistics.seed_spread([1.0, 2.0, 3.0]) == pytest.approx((math.sqrt(1 / 3), 2))
    assert statistics.seed_spread([1.0, 2.0, 3.0], [5.0, 6.0, 7.0]) == pytest.approx((math.sqrt(2 / 3), 4))
    assert statistics.seed_spread([1.0], [2.0]) == NO_SEEDS


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_the_raw_and_bonferronis_p(p_values: list[float]) -> None:
    adjusted = statistics.holm(p_values)
    assert all(p <= a <= min(1.0, p * len(p_values)) + 1e-12 for p, a in zip(p_values, adjusted, strict=True))
    order = np.argsort(p_values, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_many_contrasts_at_once_are_each_what_they_are_alone() -> None:
    contrasts = [Contrast(_normal(size, seed=size), _normal(size, seed=size + 1)) for size in (20, 35, 20)]
    together = statistics.estimate(contrasts, FAST)
    for contrast, found in zip(contrasts, together, strict=True):
        assert found[:-1] == pytest.approx(statistics.estimate([contrast], FAST)[0][:-1])


def test_arms_of_different_length_are_refused() -> None:
    with pytest.raises(ShapeError, match="two vectors"):
        statistics.arm([1.0], [1.0, 2.0])
    with pytest.raises(ShapeError, match="same prompts"):
        statistics.paired_difference(statistics.arm([1.0]), statistics.arm([1.0, 2.0]))
    with pytest.raises(ShapeError, match="seeds need"):
        statistics.mean_over_seeds([statistics.arm([1.0]), statistics.arm([1.0, 2.0])])

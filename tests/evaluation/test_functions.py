"""Metrics that are no ratio of sums: the same draws, a slow oracle, and how often the ends miss."""

import numpy as np
import pytest

from proxykd.evaluation import functions, resampling
from proxykd.evaluation.calibration import bin_outcomes, expected_calibration_error
from proxykd.evaluation.comparing import Wanted, compare
from proxykd.evaluation.functions import Columns, binned_error, distributions, exponential, mean_of
from proxykd.evaluation.intervals import NO_SEEDS
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.statistics import Settings


def columns(seed: int, count: int = 40, bins: int = 5, shift: float = 0.0) -> Columns:
    """Gaps and numbers of confident answers, some of which are wrong more often than they say."""
    rng = np.random.default_rng(seed)
    confidences = rng.uniform(0.3, 1.0, count)
    right = rng.random(count) < confidences - shift
    sums = bin_outcomes(confidences, right, np.arange(count), num_prompts=count, bins=bins)
    gaps = np.stack([sums[..., 1] - sums[..., 2], sums[..., 0]], axis=-1).reshape(count, -1)
    return Columns(gaps, binned_error)


def test_the_error_of_bins_is_the_one_of_the_calibration() -> None:
    rng = np.random.default_rng(0)
    confidences, right = rng.random(50), rng.random(50) < 0.5
    sums = bin_outcomes(confidences, right, np.zeros(50), num_prompts=1, bins=7)[0]
    gaps = np.stack([sums[:, 1] - sums[:, 2], sums[:, 0]], axis=-1).ravel()
    assert binned_error(gaps) == pytest.approx(float(expected_calibration_error(sums)))


def test_nothing_to_divide_by_is_no_number() -> None:
    assert np.isnan(binned_error(np.zeros(4)))
    assert np.isnan(exponential(np.zeros(2)))


@pytest.mark.parametrize("method", ["percentile", "bca", "studentised"])
def test_resampled_differences_are_those_of_the_drawn_rows(method: str) -> None:
    first, other = columns(1), columns(2)
    (found,) = distributions([(first, other)], resamples=50, seed=3, method=method)  # type: ignore[arg-type]
    (counts,) = resampling.draw_counts(40, 50, 3)
    slow = []
    for row in counts.astype(int):
        drawn = np.repeat(np.arange(40), row)
        ends = [np.abs(one.sums[drawn, 0::2].sum(0)).sum() / one.sums[drawn, 1::2].sum() for one in (first, other)]
        slow.append(ends[0] - ends[1])
    assert found.ascending == pytest.approx(np.sort(slow))


def test_metrics_over_equally_many_units_share_their_draws() -> None:
    pair = columns(1), columns(2)
    alone = distributions([pair], resamples=80, seed=0, method="percentile")[0]
    beside = distributions([(columns(3), columns(4)), pair], resamples=80, seed=0, method="percentile")[1]
    assert np.array_equal(alone.ascending, beside.ascending)


def test_the_error_of_a_ratio_is_the_one_of_the_ratios() -> None:
    """With f = n / d the jackknife gives what ``compute_moments`` has in closed form."""
    from proxykd.evaluation.intervals import compute_moments

    rng = np.random.default_rng(5)
    above, below = rng.normal(1, 0.3, size=(2, 200)), rng.integers(1, 9, size=200).astype(float)
    above *= below

    def divided(totals: resampling.Floats) -> resampling.Floats:
        return np.asarray(totals[..., 0] / totals[..., 1])

    sides = [Columns(np.stack([one, below], axis=1), divided) for one in above]
    (found,) = distributions([(sides[0], sides[1])], resamples=100, seed=0, method="studentised")
    expected = compute_moments(resampling.Units(above, np.stack([below, below])))
    assert found.moments.std_error == pytest.approx(expected.std_error, rel=0.01)
    assert found.moments.df == pytest.approx(expected.df)


def test_seeds_of_bins_are_averaged_and_do_not_cancel() -> None:
    up, down = np.array([3.0, 10.0]), np.array([-3.0, 10.0])
    assert mean_of(binned_error, 2)(np.concatenate([up, down])) == pytest.approx(0.3)


@pytest.mark.parametrize(("metric", "power"), [("perplexity", np.exp), ("ece/sums", None)])
def test_they_are_compared_like_every_other_metric(metric: str, power: object) -> None:
    rng = np.random.default_rng(0)
    if metric == "perplexity":
        tokens = rng.integers(5, 50, 200)
        sides = [
            dict(enumerate(zip(tokens * rng.normal(level, 0.1, 200), tokens, strict=True))) for level in (1.0, 1.5)
        ]
        named = {"heldout_nll": sides}
    else:
        sides = [
            dict(enumerate(map(tuple, columns(seed, 200, shift=shift).sums))) for seed, shift in ((1, 0), (2, 0.3))
        ]
        named = {metric: sides}
    sums = {
        name: {arm: {0: {str(key): pair for key, pair in one.items()}} for arm, one in zip("ab", both, strict=True)}
        for name, both in named.items()
    }
    wanted = [Wanted(metric, None, "a", "b"), Wanted(metric, None, "b", "a")]
    ours, theirs = compare(sums, wanted, PromptTable(), Settings(resamples=500), seeds_in_interval=False)
    assert ours["value"] == pytest.approx(-theirs["value"])
    assert ours["low"] < ours["value"] < ours["high"] < 0 < theirs["low"]
    assert ours["p_value"] < 0.01 < 0.9 < theirs["p_value"]
    assert ours["num_clusters"] == 200
    if power is not None:
        ratios = [sum(n for n, _ in one.values()) / sum(d for _, d in one.values()) for one in sides]
        assert ours["value"] == pytest.approx(np.exp(ratios[0]) - np.exp(ratios[1]))


@pytest.mark.parametrize("metric", ["perplexity", "ece"])
def test_equal_models_are_rarely_told_apart(metric: str) -> None:
    """With no difference an end misses 0 with odds of at most its tail: 300 trials, 5 % each, 24 is 2.3 sigma more."""
    misses = np.zeros(2, int)
    for trial in range(300):
        if metric == "ece":
            both = columns(2 * trial, 60, shift=0.1), columns(2 * trial + 1, 60, shift=0.1)
        else:
            rng = np.random.default_rng(trial)
            tokens = np.ceil(np.exp(rng.normal(3.0, 0.7, 60)))
            both = tuple(  # type: ignore[assignment]
                Columns(np.stack([tokens * rng.normal(1.0, 0.3, 60), tokens], axis=1), exponential) for _ in "ab"
            )
        settings = Settings(confidence=0.9, resamples=400, seed=trial)
        (found,) = functions.estimate_functions([both], settings, [NO_SEEDS])
        misses += found.low > 0, found.high < 0
    assert (misses <= 24).all(), misses

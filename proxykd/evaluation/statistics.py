"""Intervals and paired differences by bootstrap over prompts.

A prompt is the unit that is drawn (a cluster): the tokens of one prompt are not independent of each other, so
drawing tokens would give intervals that are far too narrow. Every metric here is a ratio of sums over prompts,

    value = sum_i numerators[i] / sum_i denominators[i],

with tokens (NLL, KL, agreement) or ones (accuracy) below. Each resample draws as many prompts as there are, with
replacement; the interval is the percentile interval. Two arms are compared on the same draws (paired), which removes
the difficulty of the prompts from the comparison.

Several seeds of an arm are averaged prompt by prompt before the bootstrap, so the interval speaks of the prompts;
the spread over seeds is reported beside it.

The functions know nothing of models, files or metrics' names.

References: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 13 and 16.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxykd.exceptions import ShapeError

_MAX_DRAWS_AT_ONCE = 1 << 22


class Interval(NamedTuple):
    """A value with its interval.

    Attributes:
        value: The metric on all prompts; NaN if its denominator is 0.
        low: Lower end; NaN where fewer than two prompts have a denominator, because nothing can be said then.
        high: Upper end; NaN likewise.
    """

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """The paired difference of two arms, ``arm - other``.

    Attributes:
        value: Difference of the two metrics on all prompts; NaN if a denominator is 0.
        low: Lower end of its interval; NaN with fewer than two prompts.
        high: Upper end of its interval; NaN with fewer than two prompts.
        p_below: One-sided p: how often a resample says that ``arm`` is not below ``other``; in (0, 1], and 1 where
            nothing can be said. Small = ``arm`` is below ``other``.
        p_above: The same for "not above".
    """

    value: float
    low: float
    high: float
    p_below: float
    p_above: float


class Arm(NamedTuple):
    """One arm's sums for each prompt.

    Attributes:
        numerators: float [num_prompts].
        denominators: float [num_prompts], >= 0.
    """

    numerators: NDArray[np.float64]
    denominators: NDArray[np.float64]


def arm(numerators: ArrayLike, denominators: ArrayLike | None = None) -> Arm:
    """Sums for each prompt as arrays; without denominators every prompt counts 1 and the metric is a mean.

    Raises:
        ShapeError: if the two are not vectors of the same length.
    """
    above = np.asarray(numerators, dtype=np.float64)
    below = np.ones_like(above) if denominators is None else np.asarray(denominators, dtype=np.float64)
    if above.ndim != 1 or above.shape != below.shape:
        raise ShapeError(f"expected two vectors of one length, got shapes {above.shape} and {below.shape}")
    return Arm(above, below)


def ratio(sums: Arm) -> float:
    """``sum(numerators) / sum(denominators)``; NaN if the denominator is 0.

    Example:
        >>> ratio(arm([6.0, 4.0], [3.0, 1.0]))
        2.5
    """
    return float(_ratio(sums.numerators.sum(), sums.denominators.sum()))


def interval(sums: Arm, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> Interval:
    """The metric with its percentile interval over prompts.

    Args:
        sums: Sums for each prompt.
        confidence: Level in (0, 1).
        resamples: Number of bootstrap resamples.
        seed: Seed of the draws.
    """
    value = ratio(sums)
    if np.count_nonzero(sums.denominators) < 2:
        return Interval(value, np.nan, np.nan)
    values = np.concatenate([_resampled(sums, draws) for draws in _draws(len(sums.numerators), resamples, seed)])
    return Interval(value, *_percentiles(values, confidence))


def paired_difference(
    first: Arm, other: Arm, *, confidence: float = 0.95, resamples: int = 2000, seed: int = 0
) -> Difference:
    """``first - other`` on the same prompts, with its interval and one-sided p values.

    The p value counts resamples, (1 + number against) / (1 + resamples), so it is never 0; it is the level at which
    the one-sided percentile interval touches 0.

    Args:
        first: Sums for each prompt of one arm.
        other: Sums for each prompt of the arm that it is compared with, in the same order of prompts.
        confidence: Level in (0, 1).
        resamples: Number of bootstrap resamples.
        seed: Seed of the draws; the same seed draws the same prompts.

    Raises:
        ShapeError: if the arms have different numbers of prompts.
    """
    if first.numerators.shape != other.numerators.shape:
        raise ShapeError(
            f"paired arms need the same prompts, got {len(first.numerators)} and {len(other.numerators)} of them"
        )
    value = ratio(first) - ratio(other)
    if min(np.count_nonzero(first.denominators), np.count_nonzero(other.denominators)) < 2:
        return Difference(value, np.nan, np.nan, 1.0, 1.0)
    draws = _draws(len(first.numerators), resamples, seed)
    values = np.concatenate([_resampled(first, drawn) - _resampled(other, drawn) for drawn in draws])
    # A resample without a single token says nothing for either side, so it counts against both.
    p_below = (1 + np.count_nonzero(~(values < 0))) / (1 + len(values))
    p_above = (1 + np.count_nonzero(~(values > 0))) / (1 + len(values))
    return Difference(value, *_percentiles(values, confidence), float(p_below), float(p_above))


def mean_over_seeds(arms: list[Arm]) -> Arm:
    """The seeds of an arm averaged prompt by prompt; its ratio is the mean of theirs where the tokens agree.

    Raises:
        ShapeError: if the seeds have different numbers of prompts.
    """
    if len({one.numerators.shape for one in arms}) != 1:
        raise ShapeError(f"seeds need the same prompts, got {[len(one.numerators) for one in arms]} of them")
    return Arm(
        np.mean([one.numerators for one in arms], axis=0),
        np.mean([one.denominators for one in arms], axis=0),
    )


def spread(values: ArrayLike) -> float:
    """Sample standard deviation over seeds (divides by their number minus 1); NaN with fewer than two.

    Example:
        >>> spread([1.0, 3.0])
        1.4142135623730951
    """
    array = np.asarray(values, dtype=np.float64)
    return float(np.std(array, ddof=1)) if len(array) > 1 else float("nan")


def _draws(num_prompts: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks [some resamples, num_prompts] of drawn prompt indices, so that memory stays bounded."""
    rng = np.random.default_rng(seed)
    rows = max(1, _MAX_DRAWS_AT_ONCE // max(1, num_prompts))
    for start in range(0, resamples, rows):
        yield rng.integers(num_prompts, size=(min(rows, resamples - start), num_prompts))


def _resampled(sums: Arm, draws: NDArray[np.int64]) -> NDArray[np.float64]:
    return _ratio(sums.numerators[draws].sum(axis=1), sums.denominators[draws].sum(axis=1))


def _ratio(above: NDArray[np.float64] | np.float64, below: NDArray[np.float64] | np.float64) -> NDArray[np.float64]:
    quotient = np.full(np.shape(above), np.nan)
    np.divide(above, below, out=quotient, where=below != 0)
    return quotient


def _percentiles(values: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    tail = (1 - confidence) / 2
    low, high = np.quantile(values[~np.isnan(values)], [tail, 1 - tail])
    return float(low), float(high)

"""Ends of intervals for a difference of two ratios of sums, from its bootstrap and from its units.

Three methods give the end at a one-sided tail a (the interval [end(a), end(1 - a)] misses on each side with odds a):

    percentile    the a-quantile of the resampled differences
    bca           the same with the tail moved for bias and acceleration (Efron and Tibshirani, chapter 14)
    studentised   the further of two, which fail in different ways:
                  - the bootstrap-t end, value - se * quantile of (resampled - value) / its own se   (chapter 12)
                  - the t end with the se and the degrees of freedom of a few large units (below)

Percentile and BCa ends are too near at few units of unequal size: ``benchmarks/evaluation/simulation.py`` shows by how
much. Where some units hold many more tokens than others, what counts is less than their number. With shares h_i of the
denominator and influences u_i (sum 0), as for a mean of independent values with equal variance (Bell and McCaffrey
2002; Imbens and Kolesar 2016):

    se^2 = sum_i a_i u_i^2,   a_i = 1 / (1 - 2 h_i + H),   H = sum_i h_i^2
    df   = H^2 / sum_ij b_i b_j (delta_ij - h_i - h_j + H)^2,   b_i = a_i h_i^2

Seeds. The spread over seeds is independent of the draw of prompts. Its own t interval is joined to the end of the
prompts by the square root of the sum of squares (Zou and Donner 2008), for any of the methods.

Hall's transformation for skewness (1992) was tried and left out: it holds the level better where the difference grows
with the length of a prompt, but its ends run off to infinity at thirty prompts.

References: Efron and Tibshirani, An Introduction to the Bootstrap (1993); Bell and McCaffrey, Bias reduction in
standard errors for linear regression with multi-stage samples (2002); Imbens and Kolesar, Robust standard errors in
small samples (2016); Zou and Donner, Construction of confidence limits about effect measures (2008).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtr, ndtri, stdtr, stdtrit

from proxykd.evaluation.resampling import Floats, Resampled, Units

Method = Literal["studentised", "percentile", "bca", "further"]
"""How ends are found; ``further`` = the further of BCa's and of a t interval's, for what has no error in a resample."""

_NUM_HALVINGS = 20


class SeedSpread(NamedTuple):
    """What the seeds add to the uncertainty of a difference.

    Attributes:
        std_error: Standard error of the mean over seeds, >= 0.
        df: Its degrees of freedom, > 0.
    """

    std_error: float
    df: float


NO_SEEDS = SeedSpread(0.0, 1.0)
"""The seeds add nothing: the question is about these models."""


class Moments(NamedTuple):
    """What the units say of a difference without resampling.

    Attributes:
        value: The difference of the two ratios.
        std_error: As in the module's docstring; 0 where all units agree.
        df: Degrees of freedom of ``std_error``, > 0.
    """

    value: float
    std_error: float
    df: float


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where the true difference may lie.

    Attributes:
        moments: Of the units.
        ascending: For ``studentised`` (resampled - value) / its standard error, else the resampled differences.
        bias: BCa's, a normal quantile; 0 for the other methods.
        acceleration: BCa's, from leaving out one unit at a time; 0 for the other methods.
        seeds: What the seeds add.
        method: Which ends ``lower`` and ``upper`` give.
    """

    moments: Moments
    ascending: Floats
    bias: float
    acceleration: float
    seeds: SeedSpread
    method: Method

    @property
    def std_error(self) -> float:
        """Of the difference, over prompts and whatever ``seeds`` adds."""
        return float(np.hypot(self.moments.std_error, self.seeds.std_error))

    @property
    def df(self) -> float:
        """Degrees of freedom of ``std_error`` (Welch and Satterthwaite)."""
        parts = ((self.moments.std_error, self.moments.df), (self.seeds.std_error, self.seeds.df))
        below = sum(error**4 / df for error, df in parts)
        return float(self.std_error**4 / below) if below > 0 else self.moments.df

    def lower(self, tail: float) -> float:
        """The lower end: the truth is below it with odds ``tail``, at most 1/2."""
        return self._end(tail, is_lower=True)

    def upper(self, tail: float) -> float:
        """The upper end: the truth is above it with odds ``tail``, at most 1/2."""
        return self._end(tail, is_lower=False)

    def _end(self, tail: float, *, is_lower: bool) -> float:
        if self.seeds.std_error == 0.0:
            return self._end_of_prompts(tail, is_lower=is_lower)
        sign = -1.0 if is_lower else 1.0
        distance = max(0.0, sign * (self._end_of_prompts(tail, is_lower=is_lower) - self.moments.value))
        over_seeds = self.seeds.std_error * float(stdtrit(self.seeds.df, 1.0 - tail))
        return self.moments.value + sign * float(np.hypot(distance, over_seeds))

    def _end_of_prompts(self, tail: float, *, is_lower: bool) -> float:
        if self.method == "studentised":
            # The quantile of t that stands against the end: the lower one for the upper end.
            against = 1.0 - tail if is_lower else tail
            found = _quantile(self.ascending, against), float(stdtrit(self.moments.df, against))
            further = max(found) if is_lower else min(found)
            return self.moments.value - self.moments.std_error * further
        at = tail if is_lower else 1.0 - tail
        by_draws = _quantile(self.ascending, at if self.method == "percentile" else self._moved(at))
        if self.method != "further":
            return by_draws
        by_t = self.moments.value + self.moments.std_error * float(stdtrit(self.moments.df, at))
        return min(by_draws, by_t) if is_lower else max(by_draws, by_t)

    def _moved(self, tail: float) -> float:
        shifted = self.bias + float(ndtri(tail))
        return float(ndtr(self.bias + shifted / (1.0 - self.acceleration * shifted)))


def distribution(units: Units, resampled: Resampled, *, seeds: SeedSpread, method: Method) -> Distribution:
    """Where the true difference may lie.

    Args:
        units: At least two with a denominator.
        resampled: From ``resampling.resample`` of the same units.
        seeds: What the seeds add.
        method: How ends are found.
    """
    moments = compute_moments(units)
    is_value = ~np.isnan(resampled.values)
    values = resampled.values[is_value]
    if method == "studentised":
        centred, errors = values - moments.value, resampled.std_errors[is_value]
        # A resample of equal units has no spread but rounding; it says nothing of how many errors it is away.
        values = np.divide(centred, errors, out=np.zeros_like(values), where=errors > 1e-4 * moments.std_error)
    bias, acceleration = 0.0, 0.0
    if method == "bca" and moments.std_error > 0.0:
        bias, acceleration = compute_bias(values, moments.value), _acceleration(units)
    return Distribution(moments, np.sort(values), bias, acceleration, seeds, method)


def compute_moments(units: Units) -> Moments:
    """What the units say of the difference of their two ratios.

    Args:
        units: At least two with a denominator, on either side.
    """
    totals = units.denominators.sum(axis=1, keepdims=True)
    ratios = units.numerators.sum(axis=1, keepdims=True) / totals
    influences = (units.numerators - ratios * units.denominators) / totals
    influence, shares = influences[0] - influences[1], (units.denominators / totals).mean(axis=0)
    if units.shares_denominators:  # exact where the two sides are the same
        gaps, below = units.numerators[0] - units.numerators[1], units.denominators[0]
        value = float(gaps.sum() / totals[0, 0])
        influence = (gaps - value * below) / totals[0, 0]
    else:
        value = float(ratios[0, 0] - ratios[1, 0])
    weights, df = small_sample(shares)
    std_error = float(np.sqrt(np.sum(weights * influence**2)))
    if std_error <= 1e-12 * (np.abs(ratios).max() + abs(value)):
        return Moments(value, 0.0, df)
    return Moments(value, std_error, df)


def p_values(distribution: Distribution) -> tuple[float, float]:
    """One-sided p that the difference is not below 0, and that it is not above 0.

    Each is the tail at which the end of the interval touches 0, so that p and interval say the same.
    """
    smallest, value = 1.0 / (1.0 + len(distribution.ascending)), distribution.moments.value
    if distribution.std_error == 0.0:
        return (smallest if value < 0.0 else 1.0), (smallest if value > 0.0 else 1.0)
    if distribution.method == "studentised" and distribution.seeds.std_error == 0.0:
        return _studentised_p_values(distribution)
    if distribution.upper(0.5) < 0.0:
        p = _last_tail(lambda tail: distribution.upper(tail) >= 0.0, smallest)
        return p, 1.0 - p
    if distribution.lower(0.5) > 0.0:
        p = _last_tail(lambda tail: distribution.lower(tail) <= 0.0, smallest)
        return 1.0 - p, p
    return 0.5, 0.5


def _studentised_p_values(distribution: Distribution) -> tuple[float, float]:
    """The further of two ends touches 0 at the larger of their tails."""
    ascending, moments = distribution.ascending, distribution.moments
    away, count = moments.value / moments.std_error, len(distribution.ascending)
    below = (1 + int(np.searchsorted(ascending, away, "right"))) / (1 + count)
    above = (1 + count - int(np.searchsorted(ascending, away, "left"))) / (1 + count)
    return max(below, float(stdtr(moments.df, away))), max(above, float(stdtr(moments.df, -away)))


def _last_tail(touches: Callable[[float], bool], smallest: float) -> float:
    """The largest tail in [smallest, 1/2] at which the end still touches."""
    low, high = smallest, 0.5
    if not touches(low):
        return smallest
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if touches(middle) else (low, middle)
    return high


def small_sample(shares: Floats) -> tuple[Floats, float]:
    """(a_i, df) of the module's docstring for shares h_i; the double sum is expanded into sums over i."""
    squares = float(np.sum(shares**2))
    own = 1.0 - 2.0 * shares + squares
    weights = 1.0 / np.maximum(own, 1e-12)
    parts = weights * shares**2
    s0, s1, s2 = float(parts.sum()), float((parts * shares).sum()), float((parts * shares**2).sum())
    diagonal = float(np.sum(parts**2 * (own**2 - (squares - 2.0 * shares) ** 2)))
    double = squares**2 * s0**2 + 2.0 * s0 * s2 + 2.0 * s1**2 - 4.0 * squares * s0 * s1
    return weights, max(squares**2 / max(diagonal + double, 1e-300), 1e-3)


def _quantile(ascending: Floats, tail: float) -> float:
    """The order statistic at which (1 + number beyond) / (1 + number of resamples) is at most ``tail``, outwards."""
    count = len(ascending)
    if tail <= 0.5:
        return float(ascending[max(int(np.floor(tail * (count + 1) + 1e-9)), 1) - 1])
    return float(ascending[count - max(int(np.floor((1.0 - tail) * (count + 1) + 1e-9)), 1)])


def compute_bias(values: Floats, value: float) -> float:
    """BCa's: the normal quantile of the share of resampled values that lie below the value."""
    below = (np.count_nonzero(values < value) + 0.5 * np.count_nonzero(values == value)) / len(values)
    return float(ndtri(np.clip(below, 1.0 / len(values), 1.0 - 1.0 / len(values))))


def _acceleration(units: Units) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):
        above = units.numerators.sum(axis=1, keepdims=True) - units.numerators
        ratios = above / (units.denominators.sum(axis=1, keepdims=True) - units.denominators)
    return compute_acceleration((ratios[0] - ratios[1])[np.isfinite(ratios).all(axis=0)])


def compute_acceleration(left_out: Floats) -> float:
    """BCa's: the skewness of the values without one unit each, over 6."""
    gaps = left_out.mean() - left_out if len(left_out) else np.zeros(1)
    below = float(np.sum(gaps**2)) ** 1.5
    return float(np.sum(gaps**3) / (6.0 * below)) if below > 0.0 else 0.0

"""Intervals of what is no ratio of sums over prompts, from the same draws as those that are.

Such a metric is a function f of the totals of several columns of sums,

    perplexity   f(n, d) = exp(n / d)                          n = NLL, d = tokens
    ECE          f(n_1, d_1, ..., n_B, d_B) = sum_b |n_b| / sum_b d_b
                 n_b = sum of confidences minus outcomes in bin b, d_b = their number

so a resample needs the columns' totals alone, and these are a product of the same counts. Nothing is assumed of f,
which has no gradient where a bin is calibrated: influences come from leaving out one unit at a time,

    u_i = (mean_j f_(j) - f_(i)) (1 - h_i),      h_i = share of the unit in the denominators

which for a ratio are those of ``intervals.compute_moments``; standard error and degrees of freedom follow as there.
``studentised`` ends are here the further of BCa's and of the t interval's: a bootstrap-t needs an error in each
resample. ECE is biased upwards, by what luck gives (``proxykd.evaluation.calibration``), and more so for the better
calibrated of two arms, so that a loss is found too small by up to that much; a Brier score has no such bias.

References: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 11 and 14.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.evaluation.intervals import (
    NO_SEEDS,
    Distribution,
    Method,
    Moments,
    SeedSpread,
    compute_acceleration,
    compute_bias,
    small_sample,
)
from proxykd.evaluation.resampling import Floats, draw_counts
from proxykd.evaluation.statistics import Estimate, Settings, estimate_of

Function = Callable[[Floats], Floats]
"""Totals, float [..., columns] -> values, float [...]; NaN where there is nothing to divide by."""


class Columns(NamedTuple):
    """One side of a difference.

    Attributes:
        sums: float [units, columns]: numerators and denominators in turn.
        function: What is made of their totals.
    """

    sums: Floats
    function: Function

    @property
    def denominators(self) -> Floats:
        """Of each unit, float [units]."""
        return np.asarray(self.sums[:, 1::2].sum(axis=1), dtype=np.float64)

    def in_clusters(self, clusters: NDArray[np.int64]) -> "Columns":
        """The sums of whole clusters; ``clusters`` has the index of each unit's, from 0."""
        found = np.zeros((int(clusters.max()) + 1 if len(clusters) else 0, self.sums.shape[1]))
        np.add.at(found, clusters, self.sums)
        return self._replace(sums=found)

    @property
    def value(self) -> float:
        """On all units."""
        return float(self.function(self.sums.sum(axis=0)))


def exponential(totals: Floats) -> Floats:
    """exp(n / d) of totals [..., 2]; infinity where it is too large to be a number.

    Example:
        >>> exponential(np.array([0.0, 4.0]))
        array(1.)
    """
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.asarray(np.exp(totals[..., 0] / totals[..., 1]), dtype=np.float64)


def binned_error(totals: Floats) -> Floats:
    """sum_b |n_b| / sum_b d_b of totals [..., 2 bins].

    Example:
        >>> binned_error(np.array([1.0, 4.0, -2.0, 6.0]))
        array(0.3)
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        apart = np.abs(totals[..., 0::2]).sum(axis=-1)
        return np.asarray(apart / totals[..., 1::2].sum(axis=-1), dtype=np.float64)


def mean_of(function: Function, num_seeds: int) -> Function:
    """The mean over seeds, whose columns stand one after the other."""

    def mean(totals: Floats) -> Floats:
        parts = [function(part) for part in np.split(totals, num_seeds, axis=-1)]
        return np.asarray(np.mean(parts, axis=0), dtype=np.float64)

    return mean


def estimate_functions(
    differences: Sequence[tuple[Columns, Columns]], settings: Settings, seeds: Sequence[SeedSpread]
) -> list[Estimate]:
    """Differences of metrics that are no ratio of sums, on the draws of those that are.

    Args:
        differences: Both sides over the same units in the same order.
        settings: How.
        seeds: What the seeds add to each.

    Returns:
        One for each difference, in order.
    """
    measured = [_measured_columns(*difference) for difference in differences]
    found = [Estimate(first.value - other.value, num_units=len(first.sums)) for first, other in measured]
    sampled = [idx for idx, (first, _) in enumerate(measured) if len(first.sums) > 1 and np.isfinite(found[idx].value)]
    made = distributions(
        [measured[idx] for idx in sampled],
        resamples=settings.resamples,
        seed=settings.seed,
        method=settings.method,
        seeds=[seeds[idx] for idx in sampled],
    )
    for idx, one in zip(sampled, made, strict=True):
        if not np.isfinite(one.moments.std_error):
            continue
        ends = one.lower(settings.tail), one.upper(settings.tail)
        found[idx] = estimate_of(one, found[idx].value, ends, found[idx].num_units, settings)
    return found


def distributions(
    differences: Sequence[tuple[Columns, Columns]],
    *,
    resamples: int,
    seed: int,
    method: Method,
    seeds: Sequence[SeedSpread] = (),
) -> list[Distribution]:
    """Where the true differences, first minus other, may lie.

    Args:
        differences: Both sides over the same units, at least two, in the same order.
        resamples: Number of resamples.
        seed: Seed of the draws.
        method: How ends are found.
        seeds: What the seeds add to each difference; () = nothing.
    """
    drawn = [np.empty(resamples) for _ in differences]
    for size in dict.fromkeys(len(first.sums) for first, _ in differences):
        start = 0
        for counts in draw_counts(size, resamples, seed):
            for values, (first, other) in zip(drawn, differences, strict=True):
                if len(first.sums) == size:
                    found = [side.function(counts @ side.sums) for side in (first, other)]
                    values[start : start + len(counts)] = found[0] - found[1]
            start += len(counts)
    spreads = seeds or [NO_SEEDS] * len(differences)
    return [
        _distribution(difference, values, spread, "further" if method == "studentised" else method)
        for difference, values, spread in zip(differences, drawn, spreads, strict=True)
    ]


def _distribution(
    difference: tuple[Columns, Columns], values: Floats, seeds: SeedSpread, method: Method
) -> Distribution:
    first, other = difference
    value = first.value - other.value
    left_out = [side.function(side.sums.sum(axis=0) - side.sums) for side in difference]
    jackknifed = left_out[0] - left_out[1]
    shares = np.mean([side.denominators / side.denominators.sum() for side in difference], axis=0)
    weights, df = small_sample(shares)
    influence = (np.mean(jackknifed) - jackknifed) * (1.0 - shares)
    std_error = float(np.sqrt(np.sum(weights * influence**2)))
    if std_error <= 1e-12 * (abs(first.value) + abs(other.value)):
        return Distribution(Moments(value, 0.0, df), np.sort(values), 0.0, 0.0, seeds, method)
    bias, acceleration = compute_bias(values, value), compute_acceleration(jackknifed)
    return Distribution(Moments(value, std_error, df), np.sort(values), bias, acceleration, seeds, method)


def _measured_columns(first: Columns, other: Columns) -> tuple[Columns, Columns]:
    """Both sides over the units that either has a denominator for."""
    has_any = (first.denominators > 0) | (other.denominators > 0)
    return first._replace(sums=first.sums[has_any]), other._replace(sums=other.sums[has_any])

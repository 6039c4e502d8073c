"""Intervals and paired differences over prompts, for many metrics at once.

A prompt is the unit that is drawn, and where prompts share a group, the group (a cluster): tokens and samples of one
prompt are not independent of each other, so drawing them would give intervals that are far too narrow. Every metric
here is a ratio of sums over prompts,

    value = sum_i numerators[i] / sum_i denominators[i],

with tokens (NLL, KL, agreement) or ones (accuracy) below. Two arms are compared on the same prompts (paired), which
removes the difficulty of the prompts from the comparison.

Two questions can be asked of arms with several seeds. "Is this model better than that one, on other prompts?" takes
one seed of each. "Is the method better, on other prompts and with other seeds?" takes the mean over seeds, prompt by
prompt, and lets the spread of the seeds' differences widen the interval (``SeedSpread``).

Judgements from 0 to 1 get one win and one loss of an average unit added before their interval is taken (Bonett and
Price 2012; Agresti and Caffo 2000), because ten right answers of ten do not show that the eleventh will be right. On
questions judged once, right or wrong, their p is that of McNemar's exact test.

The functions know nothing of models, files or metrics' names.

References: Efron and Tibshirani, An Introduction to the Bootstrap (1993); Bonett and Price, Adjusted Wald confidence
interval for a difference of binomial proportions based on paired data (2012); Holm, A simple sequentially rejective
multiple test procedure (1979).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtr, stdtrit

from proxykd.evaluation.intervals import NO_SEEDS, Distribution, Method, SeedSpread, distribution, p_values
from proxykd.evaluation.mcnemar import mcnemar_mde, mcnemar_p_value
from proxykd.evaluation.resampling import Resampled, Units, resample
from proxykd.exceptions import ShapeError

Test = Literal["bootstrap", "mcnemar", "none"]


class Arm(NamedTuple):
    """One arm's sums for each prompt.

    Attributes:
        numerators: float [num_prompts].
        denominators: float [num_prompts], >= 0.
    """

    numerators: NDArray[np.float64]
    denominators: NDArray[np.float64]


class Contrast(NamedTuple):
    """What an interval is wanted of.

    Attributes:
        first: The arm.
        other: The arm that it is held against, over the same prompts in the same order; None = the metric of ``first``.
        is_judgement: Each unit is a judgement, or a sum of judgements, from 0 to 1.
        seeds: What the seeds add; ``NO_SEEDS`` where the question is about these models.
    """

    first: Arm
    other: Arm | None = None
    is_judgement: bool = False
    seeds: SeedSpread = NO_SEEDS


@dataclass(frozen=True, slots=True)
class Settings:
    """How intervals are made.

    Attributes:
        confidence: Two-sided level in (0, 1); each end misses with (1 - confidence) / 2.
        resamples: Number of bootstrap resamples.
        method: How ends are found.
        power: With which the minimum detectable effect would be found.
        seed: Seed of the draws.
    """

    confidence: float = 0.95
    resamples: int = 2000
    method: Method = "studentised"
    power: float = 0.8
    seed: int = 0

    @property
    def tail(self) -> float:
        """With which each end misses."""
        return (1.0 - self.confidence) / 2.0


class Estimate(NamedTuple):
    """A value or a paired difference, ``first - other``, with its interval.

    Attributes:
        value: On all prompts; NaN if a denominator is 0.
        low: Lower end; NaN where fewer than two units have a denominator, because nothing can be said then.
        high: Upper end; NaN likewise.
        std_error: Standard error; NaN likewise.
        df: Its degrees of freedom; NaN likewise.
        p_below: One-sided p that the difference is not below 0; 1 where nothing can be said.
        p_above: One-sided p that it is not above 0.
        mde_below: Smallest true difference below 0 that would have been found; NaN where nothing can be said.
        mde_above: The same above 0; both are positive.
        num_units: Units with a denominator.
        test: Where the p comes from.
    """

    value: float
    low: float = float("nan")
    high: float = float("nan")
    std_error: float = float("nan")
    df: float = float("nan")
    p_below: float = 1.0
    p_above: float = 1.0
    mde_below: float = float("nan")
    mde_above: float = float("nan")
    num_units: int = 0
    test: Test = "none"


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
    below = float(sums.denominators.sum())
    return float(sums.numerators.sum()) / below if below else float("nan")


def in_clusters(sums: Arm, clusters: NDArray[np.int64]) -> Arm:
    """The sums of whole clusters of prompts.

    Args:
        sums: Sums for each prompt.
        clusters: Index of the cluster of each prompt, from 0.

    Example:
        >>> in_clusters(arm([1.0, 2.0, 4.0]), np.array([0, 1, 0])).numerators.tolist()
        [5.0, 2.0]
    """
    count = int(clusters.max()) + 1 if len(clusters) else 0
    above, below = (np.bincount(clusters, weights=weights, minlength=count) for weights in sums)
    return Arm(above.astype(np.float64), below.astype(np.float64))


def interval(sums: Arm, settings: Settings | None = None, *, is_judgement: bool = False) -> Estimate:
    """The metric with its interval over prompts."""
    return estimate([Contrast(sums, None, is_judgement)], settings or Settings())[0]


def paired_difference(
    first: Arm,
    other: Arm,
    settings: Settings | None = None,
    *,
    is_judgement: bool = False,
    seeds: SeedSpread = NO_SEEDS,
) -> Estimate:
    """``first - other`` on the same prompts.

    Raises:
        ShapeError: if the arms have different numbers of prompts.
    """
    return estimate([Contrast(first, other, is_judgement, seeds)], settings or Settings())[0]


def estimate(contrasts: Sequence[Contrast], settings: Settings) -> list[Estimate]:
    """All intervals from one set of draws; contrasts over equally many units share theirs.

    Args:
        contrasts: What is wanted.
        settings: How.

    Returns:
        One for each contrast, in order.

    Raises:
        ShapeError: if the two arms of a contrast have different numbers of prompts.
    """
    measured = [_measured_units(contrast) for contrast in contrasts]
    sampled = [idx for idx, units in enumerate(measured) if _can_be_drawn(units)]
    padded = [_with_a_win_and_a_loss(measured[idx], contrasts[idx]) for idx in sampled]
    draws = resample(padded, resamples=settings.resamples, seed=settings.seed)
    found = [
        Estimate(_value(contrast), num_units=units.numerators.shape[1])
        for contrast, units in zip(contrasts, measured, strict=True)
    ]
    for idx, units, drawn in zip(sampled, padded, draws, strict=True):
        found[idx] = _estimate(contrasts[idx], measured[idx], units, drawn, settings)
    return found


def mean_over_seeds(arms: Sequence[Arm]) -> Arm:
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


def seed_spread(first: Sequence[float], other: Sequence[float] = ()) -> SeedSpread:
    """What the seeds of two arms add to the uncertainty of the difference of their means (Welch).

    Part of this spread is the draw of the prompts, which the interval over prompts counts too, so the two together are
    wide rather than narrow. An arm with one seed adds nothing: of its spread nothing is known.

    Args:
        first: The metric of each seed of an arm.
        other: The metric of each seed of the other arm; empty = there is none.
    """
    parts = [(spread(values) ** 2 / len(values), len(values) - 1) for values in (first, other) if len(values) > 1]
    variance = sum(part for part, _ in parts)
    if not variance > 0.0:
        return NO_SEEDS
    return SeedSpread(float(np.sqrt(variance)), float(variance**2 / sum(part**2 / df for part, df in parts)))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p values: the odds that any claim with one of at most a is wrong are at most a.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    order = np.argsort(p_values, kind="stable")
    factors = np.arange(len(order), 0, -1)
    raised = np.minimum(1.0, np.maximum.accumulate(np.asarray(p_values, dtype=np.float64)[order] * factors))
    adjusted = np.empty(len(order))
    adjusted[order] = raised
    return [float(value) for value in adjusted]


def p_beyond(value: float, std_error: float, df: float) -> float:
    """One-sided p of a t test that a quantity with this estimate is not above 0; 1 or 0 where there is no error.

    Example:
        >>> round(p_beyond(2.0, 1.0, 10.0), 4)
        0.0367
    """
    if not std_error > 0.0:
        return 0.0 if value > 0.0 else 1.0
    return float(stdtr(df, -value / std_error))


def _value(contrast: Contrast) -> float:
    return ratio(contrast.first) - (0.0 if contrast.other is None else ratio(contrast.other))


def _measured_units(contrast: Contrast) -> Units:
    """Both sides over the prompts that either has a denominator for."""
    first, other = contrast.first, contrast.other
    if other is None:
        other = Arm(np.zeros_like(first.numerators), first.denominators)
    if first.numerators.shape != other.numerators.shape:
        raise ShapeError(
            f"paired arms need the same prompts, got {len(first.numerators)} and {len(other.numerators)} of them"
        )
    has_any = (first.denominators > 0) | (other.denominators > 0)
    return Units(
        np.stack([first.numerators[has_any], other.numerators[has_any]]),
        np.stack([first.denominators[has_any], other.denominators[has_any]]),
    )


def _can_be_drawn(units: Units) -> bool:
    has_both = units.numerators.shape[1] > 1 and bool((units.denominators.sum(axis=1) > 0).all())
    return has_both and bool(np.isfinite(units.numerators).all() and np.isfinite(units.denominators).all())


def _with_a_win_and_a_loss(units: Units, contrast: Contrast) -> Units:
    if not contrast.is_judgement:
        return units
    average = units.denominators.mean(axis=1)
    loss = average[1] if contrast.other is not None else 0.0
    more = np.array([[average[0], 0.0], [0.0, loss]])
    below = np.repeat(average[:, None], 2, axis=1)
    return Units(np.hstack([units.numerators, more]), np.hstack([units.denominators, below]))


def _estimate(contrast: Contrast, units: Units, padded: Units, drawn: Resampled, settings: Settings) -> Estimate:
    found = distribution(padded, drawn, seeds=contrast.seeds, method=settings.method)
    value, tail = _value(contrast), settings.tail
    if contrast.other is not None and units.shares_denominators:
        value = float((units.numerators[0] - units.numerators[1]).sum() / units.denominators[0].sum())
    low, high = found.lower(tail), found.upper(tail)
    if contrast.is_judgement:
        low, high = max(low, -1.0 if contrast.other is not None else 0.0), min(high, 1.0)
    plain = estimate_of(found, value, (low, high), units.numerators.shape[1], settings)
    return _with_mcnemar(plain, units, settings) if _is_mcnemar(contrast, units) else plain


def estimate_of(
    found: Distribution, value: float, ends: tuple[float, float], num_units: int, settings: Settings
) -> Estimate:
    """What is said of a value whose distribution is known; its interval holds the value.

    Args:
        found: Where the truth may lie.
        value: On all units.
        ends: Of the interval.
        num_units: Units with a denominator.
        settings: How.
    """
    return Estimate(
        value,
        min(ends[0], value),
        max(ends[1], value),
        found.std_error,
        found.df,
        *p_values(found),
        *_detectable(found, settings),
        num_units,
        "bootstrap",
    )


def _detectable(found: Distribution, settings: Settings) -> tuple[float, float]:
    """The way from the value to the end that decides, and the way that the value itself strays with the power."""
    if found.std_error == 0.0:
        return 0.0, 0.0
    strays = found.std_error * float(stdtrit(found.df, settings.power))
    centre = found.moments.value
    return found.upper(settings.tail) - centre + strays, centre - found.lower(settings.tail) + strays


def _is_mcnemar(contrast: Contrast, units: Units) -> bool:
    is_judged_once = bool((units.denominators == 1.0).all() and np.isin(units.numerators, (0.0, 1.0)).all())
    return contrast.is_judgement and contrast.other is not None and contrast.seeds.std_error == 0.0 and is_judged_once


def _with_mcnemar(plain: Estimate, units: Units, settings: Settings) -> Estimate:
    gaps = units.numerators[0] - units.numerators[1]
    wins, losses = int(np.count_nonzero(gaps > 0)), int(np.count_nonzero(gaps < 0))
    mde = mcnemar_mde(wins + losses, len(gaps), level=settings.tail, power=settings.power)
    return plain._replace(
        p_below=mcnemar_p_value(losses, wins),
        p_above=mcnemar_p_value(wins, losses),
        mde_below=float(np.maximum(plain.mde_below, mde)),
        mde_above=float(np.maximum(plain.mde_above, mde)),
        test="mcnemar",
    )

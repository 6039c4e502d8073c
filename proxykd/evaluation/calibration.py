"""Calibration: does a model's confidence say how often it is right?

Outcomes (1 = right) are put into B bins of equal width by their confidence c. With n_b outcomes in bin b, their mean
y_b and their mean confidence c_b,

    ECE        = sum_b n_b / n |y_b - c_b|                                  (Guo et al. 2017, arXiv:1706.04599, Eq. 3)
    ECE_0      = sum_b n_b / n sqrt(2 c_b (1 - c_b) / (pi n_b))             what luck alone gives a calibrated model
    squared    = sum_b n_b / n [ (y_b - c_b)^2 - y_b (1 - y_b) / (n_b - 1) ]     (Kumar et al. 2019, arXiv:1909.10155)

ECE is biased upwards: it is above 0 for a perfectly calibrated model, by about ECE_0 (the mean of the absolute value
of a normal variable). ``squared`` is not biased: around 0 for a calibrated model, sometimes below it. A resample has
the luck of its own draw besides, so quantiles of resampled ECEs alone would miss the truth of a calibrated model, and
often the ECE itself. With their quantiles q and mean m, the interval of ECE is

    low  = min(ECE, 2 ECE - q_high, ECE - ECE_0 - (m - q_low)), at least 0        high = max(q_high, 2 ECE - q_low)

Sums for each prompt and bin (number, confidences, outcomes) are all that is kept, so intervals come from drawing
prompts, as everywhere else; outcomes of one prompt (the tokens of a text, say) need not be independent of each other.
ECE_0 and ``squared`` treat them as if they were, so for tokens ECE_0 is a lower bound of what luck gives.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from proxykd.exceptions import ShapeError

DEFAULT_BINS = 15
"""Bins of equal width, as in Guo et al. 2017."""

_DRAWN_AT_ONCE = 1 << 22


class Reliability(NamedTuple):
    """Number, confidences and outcomes of each prompt in each bin.

    Attributes:
        prompt_ids: The prompts.
        sums: float64 [num_prompts, bins, 3]: number of outcomes, sum of confidences, sum of outcomes.
    """

    prompt_ids: tuple[str, ...]
    sums: NDArray[np.float64]


def bin_outcomes(
    confidences: ArrayLike, outcomes: ArrayLike, prompt_idx: ArrayLike, *, num_prompts: int, bins: int
) -> NDArray[np.float64]:
    """Sums for each prompt and bin.

    Args:
        confidences: In [0, 1], [num_outcomes]; 1 belongs to the last bin.
        outcomes: 0 or 1, [num_outcomes].
        prompt_idx: Prompt of each outcome, [num_outcomes].
        num_prompts: Number of prompts.
        bins: Number of bins.

    Returns:
        float64 [num_prompts, bins, 3], as in ``Reliability``.

    Raises:
        ShapeError: if the lengths differ or a confidence lies outside [0, 1].
    """
    given, right = np.asarray(confidences, np.float64), np.asarray(outcomes, np.float64)
    prompts = np.asarray(prompt_idx, np.int64)
    if not (given.shape == right.shape == prompts.shape and given.ndim == 1):
        raise ShapeError(
            f"expected three vectors of one length, got shapes {given.shape}, {right.shape}, {prompts.shape}"
        )
    if not np.all((given >= 0.0) & (given <= 1.0)):
        raise ShapeError(f"expected confidences in [0, 1], got {given.min()} to {given.max()}")
    cells = prompts * bins + np.minimum((given * bins).astype(np.int64), bins - 1)
    parts = [
        np.bincount(cells, weights=weights, minlength=num_prompts * bins)
        for weights in (np.ones_like(given), given, right)
    ]
    return np.stack(parts, axis=-1).astype(np.float64).reshape(num_prompts, bins, 3)


def expected_calibration_error(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """ECE of sums over prompts.

    Args:
        sums: float64 [..., bins, 3].

    Returns:
        float64 [...], in [0, 1]; NaN where there is no outcome.
    """
    total = sums[..., 0].sum(axis=-1)
    apart = np.abs(sums[..., 2] - sums[..., 1]).sum(axis=-1)
    found: NDArray[np.float64] = np.full(np.shape(total), np.nan)
    np.divide(apart, total, out=found, where=total > 0)
    return found


def error_by_luck(sums: NDArray[np.float64]) -> float:
    """ECE_0: what a calibrated model with these confidences has on average; float64 [bins, 3] -> a number."""
    count, confidence, _ = _filled(sums, 1)
    return float((np.sqrt(2 * confidence * (1 - confidence) / (np.pi * count)) * count).sum() / max(count.sum(), 1.0))


def squared_error(sums: NDArray[np.float64]) -> float | None:
    """The squared calibration error without bias, float64 [bins, 3] -> a number; None without a bin of two outcomes.

    Bins of one outcome are left out.
    """
    count, confidence, outcome = _filled(sums, 2)
    if not len(count):
        return None
    unbiased = (outcome - confidence) ** 2 - outcome * (1 - outcome) / (count - 1)
    return float((count * unbiased).sum() / count.sum())


def calibration(
    seeds: Mapping[int, Reliability], *, confidence: float, resamples: int, seed: int = 0
) -> dict[str, Any]:
    """The calibration of one arm, JSON values.

    Args:
        seeds: Seed -> its sums over the same prompts.
        confidence: Level of the interval.
        resamples: Bootstrap resamples over prompts.
        seed: Seed of the draws.

    Returns:
        ``value`` (mean of the seeds' ECE), ``low`` and ``high`` (interval over prompts as in the module's docstring;
        None with fewer than two), ``per_seed``, ``by_luck``, ``squared`` (both of the first seed), ``num_outcomes``,
        ``num_prompts`` and ``bins``: ``{low, high, count, confidence, outcome}`` of the first seed, without empty bins.
    """
    sums = [one.sums for one in seeds.values()]
    per_seed = {str(name): _number(expected_calibration_error(one.sums.sum(axis=0))) for name, one in seeds.items()}
    found = [value for value in per_seed.values() if value is not None]
    low, high = _interval(sums, confidence, resamples, seed)
    first = sums[0].sum(axis=0)
    return {
        "value": float(np.mean(found)) if found else None,
        "low": low,
        "high": high,
        "per_seed": per_seed,
        "by_luck": error_by_luck(first),
        "squared": squared_error(first),
        "num_outcomes": int(first[:, 0].sum()),
        "num_prompts": int((sums[0][:, :, 0].sum(axis=1) > 0).sum()),
        "bins": reliability_bins(first),
    }


def reliability_bins(sums: NDArray[np.float64]) -> list[dict[str, float]]:
    """The points of a reliability diagram: float64 [bins, 3] -> one mapping a bin that is not empty."""
    width = 1 / len(sums)
    return [
        {
            "low": place * width,
            "high": (place + 1) * width,
            "count": int(count),
            "confidence": float(confidence / count),
            "outcome": float(outcome / count),
        }
        for place, (count, confidence, outcome) in enumerate(sums)
        if count > 0
    ]


def _interval(
    seeds: Sequence[NDArray[np.float64]], confidence: float, resamples: int, seed: int
) -> tuple[float | None, float | None]:
    """The interval of the module's docstring for the mean ECE of the seeds, all on the same draws of prompts."""
    num_prompts, bins, _ = seeds[0].shape
    if num_prompts < 2:
        return None, None
    rng, values = np.random.default_rng(seed), []
    rows = max(1, _DRAWN_AT_ONCE // num_prompts)
    for start in range(0, resamples, rows):
        size = min(rows, resamples - start)
        draws = rng.multinomial(num_prompts, np.full(num_prompts, 1 / num_prompts), size=size).astype(np.float64)
        drawn = [(draws @ one.reshape(num_prompts, -1)).reshape(size, bins, 3) for one in seeds]
        values.append(np.mean([expected_calibration_error(one) for one in drawn], axis=0))
    every, totals = np.concatenate(values), [one.sum(axis=0) for one in seeds]
    every, found = every[np.isfinite(every)], float(np.mean([expected_calibration_error(one) for one in totals]))
    if not len(every):
        return None, None
    tail, luck = (1 - confidence) / 2, float(np.mean([error_by_luck(one) for one in totals]))
    below, above = np.quantile(every, [tail, 1 - tail])
    low = min(found, 2 * found - above, found - luck - (float(every.mean()) - below))
    return max(0.0, float(low)), min(1.0, float(max(found, above, 2 * found - below)))


def _filled(sums: NDArray[np.float64], least: int) -> tuple[NDArray[np.float64], ...]:
    """Number, mean confidence and mean outcome of the bins with at least ``least`` outcomes."""
    kept = sums[sums[:, 0] >= least]
    count = kept[:, 0]
    return count, np.clip(kept[:, 1] / count, 0, 1), kept[:, 2] / count


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None

"""Bootstrap draws of whole units (prompts or groups of them), shared by every metric.

Metrics are ratios of sums, so a resample needs no rows, only how often each unit was drawn: with counts c [resamples,
units] and the sums of all metrics side by side as columns s [units, columns], one matrix product c @ s gives the sums
of every resample of every metric. The counts depend on the number of units, the number of resamples and the seed
alone; metrics over equally many units share them. They are made and used block by block, so memory does not grow with
the number of resamples.

Sharing draws between metrics leaves each interval what it is. What it changes is how the errors of two intervals go
together, and nothing here relies on that: Holm's correction holds under any dependence.

References: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 12 and 16.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_MAX_COUNTS_AT_ONCE = 1 << 17


class Units(NamedTuple):
    """The sums of the two sides of a difference for each unit; the other side is all 0 / 1 where there is none.

    Attributes:
        numerators: float [2, units].
        denominators: float [2, units], >= 0.
    """

    numerators: Floats
    denominators: Floats

    @property
    def shares_denominators(self) -> bool:
        """Whether the difference of the two ratios is one ratio."""
        return bool(np.array_equal(*self.denominators))


class Resampled(NamedTuple):
    """The difference in each resample, float [resamples]; NaN where a resample has no denominator.

    Attributes:
        values: The difference of the two ratios.
        std_errors: Its linearised standard error within the resample, >= 0.
    """

    values: Floats
    std_errors: Floats


def draw_counts(num_units: int, resamples: int, seed: int, *, num_columns: int = 1) -> Iterator[Floats]:
    """Blocks [some resamples, num_units] of how often each unit was drawn; every row adds up to ``num_units``.

    Args:
        num_units: At least 1.
        resamples: Rows of all blocks together.
        seed: Seed of the draws.
        num_columns: Of what the counts will be multiplied with: the more, the larger the blocks. A block that few
            columns wait for stays in the processor's cache; the draws are the same.
    """
    from proxykd.evaluation.drawing import count_draws, num_words

    bits, words = np.random.PCG64([seed, num_units]), num_words(num_units)
    rows = max(1, _MAX_COUNTS_AT_ONCE * max(1, num_columns // 16) // num_units)
    for start in range(0, resamples, rows):
        counts = np.zeros((min(rows, resamples - start), num_units))
        for row in counts:
            count_draws(bits.random_raw(-(-words // 2)).view(np.uint32), row)
        yield counts


def resample(all_units: Sequence[Units], *, resamples: int, seed: int) -> list[Resampled]:
    """The bootstrap distributions of many differences at once.

    Args:
        all_units: One for each difference, each with at least one unit.
        resamples: Number of resamples.
        seed: Seed of the draws.

    Returns:
        One for each of ``all_units``, in order.
    """
    found: dict[int, Resampled] = {}
    by_size: dict[int, list[int]] = {}
    for idx, units in enumerate(all_units):
        by_size.setdefault(units.numerators.shape[1], []).append(idx)
    for size, members in by_size.items():
        resampled = _resample_equal([all_units[idx] for idx in members], size, resamples, seed)
        found.update(zip(members, resampled, strict=True))
    return [found[idx] for idx in range(len(all_units))]


def _resample_equal(all_units: Sequence[Units], size: int, resamples: int, seed: int) -> list[Resampled]:
    """The same for differences over equally many units."""
    columns = [_columns(units) for units in all_units]
    ends = np.cumsum([0, *(part.shape[1] for part in columns)])
    sums, out, start = np.hstack(columns), np.empty((2, len(all_units), resamples)), 0
    for counts in draw_counts(size, resamples, seed, num_columns=int(ends[-1])):
        totals = np.asfortranarray(counts @ sums)
        for idx in range(len(all_units)):
            out[:, idx, start : start + len(totals)] = _evaluate(totals[:, ends[idx] : ends[idx + 1]], size)
        start += len(totals)
    return [Resampled(out[0, idx], out[1, idx]) for idx in range(len(all_units))]


def _columns(units: Units) -> Floats:
    """What has to be added up over a resample: the sums, and the products that the standard error needs."""
    if units.shares_denominators:
        parts = [units.numerators[0] - units.numerators[1], units.denominators[0]]
    else:
        parts = [units.numerators[0], units.denominators[0], units.numerators[1], units.denominators[1]]
    products = [parts[row] * parts[column] for row in range(len(parts)) for column in range(row + 1)]
    return np.stack([*parts, *products], axis=1)


def _evaluate(totals: Floats, num_units: int) -> tuple[Floats, Floats]:
    """(values, standard errors) from the totals [resamples, columns] of ``_columns``.

    With the gradient g of the value with respect to the totals, the influence of a unit is g . its sums, so the sum of
    squared influences is g' M g with M the matrix of the products' totals.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        if totals.shape[1] == 5:
            above, below, *products = totals.T
            values = above / below
            gradient = [1.0 / below, -values / below]
        else:
            above, below, other_above, other_below, *products = totals.T
            first, other = above / below, other_above / other_below
            values = first - other
            gradient = [1.0 / below, -first / below, -1.0 / other_below, other / other_below]
    squares, pairs = np.zeros(len(totals)), iter(products)
    for row, slope in enumerate(gradient):
        for column in range(row + 1):
            factor = 1.0 if row == column else 2.0
            squares += factor * slope * gradient[column] * next(pairs)
    # No spread at all leaves rounding behind, of either sign.
    return values, np.sqrt(np.maximum(squares, 0.0) * (num_units / max(1, num_units - 1)))

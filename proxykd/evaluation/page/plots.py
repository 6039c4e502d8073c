"""Where the marks of a plot stand: axes, ticks and lines as numbers, which the template draws as SVG.

Across, everything is a percentage of the plot's width and text is HTML or has a fixed size, so one drawing fits a phone
and a wide screen without a script and without distortion. Down, a plot has a fixed height in pixels.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

INSET = 3.0
"""Percent of the width that stays free at either end, so that no mark is cut."""

_WIDE = 20.0
"""An axis that spans more than this ratio of positive values is logarithmic where its caller allows it."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One direction of a plot.

    Attributes:
        low: Value at the near end.
        high: Value at the far end, > low.
        is_log: Whether equal ratios are equally far apart; ``low`` is > 0 then.
        ticks: (value, text) of the grid lines.
    """

    low: float
    high: float
    is_log: bool
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """How far along the axis a value is, 0 to 1; values beyond an end stand at that end."""
        low, high, found = self.low, self.high, value
        if self.is_log:
            low, high, found = math.log(low), math.log(high), math.log(max(value, self.low))
        return min(1.0, max(0.0, (found - low) / (high - low)))

    def across(self, value: float) -> float:
        """The same in percent of the width, inset at both ends."""
        return round(INSET + (100 - 2 * INSET) * self.share(value), 2)

    def down(self, value: float, height: float) -> float:
        """The same in pixels from the top, small values at the bottom.

        Args:
            value: What is drawn.
            height: Of the plot, pixels.
        """
        return round(height * (1 - self.share(value)), 1)


def axis(values: Iterable[float], *, count: int = 4, may_be_log: bool = False) -> Axis:
    """An axis that shows every value.

    Args:
        values: What is drawn; not finite ones do not count.
        count: About how many ticks.
        may_be_log: Whether it becomes logarithmic where the values are positive and span a factor above 20.

    Example:
        >>> axis([0.13, 0.87]).ticks
        ((0.2, '0.2'), (0.4, '0.4'), (0.6, '0.6'), (0.8, '0.8'))
        >>> axis([1, 3000], may_be_log=True).ticks
        ((1, '1'), (10, '10'), (100, '100'), (1000, '1,000'))
    """
    finite = [value for value in values if math.isfinite(value)]
    low, high = min(finite, default=0.0), max(finite, default=1.0)
    if may_be_log and low > 0 and high > _WIDE * low:
        return Axis(low, high, True, _log_ticks(low, high))
    if low == high:
        room = abs(low) / 10 or 1.0
        low, high = low - room, high + room
    return Axis(low, high, False, _ticks(low, high, count))


def _ticks(low: float, high: float, count: int) -> tuple[tuple[float, str], ...]:
    """Multiples of 1, 2 or 5 times a power of ten that lie between the ends."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.99)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [round(idx * step, digits + 2) for idx in range(first, last + 1)]
    return tuple((value, tick_text(value, digits)) for value in values)


def _log_ticks(low: float, high: float) -> tuple[tuple[float, str], ...]:
    """Powers of ten; where fewer than three lie between the ends, their doubles and fives too."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    whole = [power for power in powers if low <= 10**power <= high]
    if len(whole) > 2:
        return tuple((10**power, tick_text(10**power, max(0, -power))) for power in whole[:: -(-len(whole) // 5)])
    values = [(factor * 10.0**power, max(0, -power)) for power in powers for factor in (1, 2, 5)]
    return tuple((value, tick_text(value, digits)) for value, digits in values if low <= value <= high)


def tick_text(value: float, digits: int) -> str:
    """A tick's value as short as it can be.

    Example:
        >>> [tick_text(*given) for given in ((0.25, 2), (20000, 0), (3e6, 0), (-0.0, 1))]
        ['0.25', '20,000', '3M', '0']
    """
    if value == 0:
        return "0"
    for size, name in ((1e9, "G"), (1e6, "M")):
        if abs(value) >= size:
            return f"{value / size:.3g}{name}"
    return f"{value:,.{digits}f}"


def line(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """Points of a polyline in a square of 100 by 100, its origin at the top left.

    Example:
        >>> line([(0, 1), (2, 3)], axis([0, 2]), axis([1, 3]))
        '3,100 97,0'
    """
    return " ".join(f"{x.across(left):g},{y.down(up, 100):g}" for left, up in points)


def smoothed(values: Sequence[float], width: int) -> list[float]:
    """The mean of each value and those of its neighbours, ``width // 2`` on either side, that there are.

    Example:
        >>> smoothed([1, 2, 6, 3], 3)
        [1.5, 3.0, 3.6666666666666665, 4.5]
    """
    sums = [0.0, *accumulate(values)]
    half, count = width // 2, len(values)
    ends = [(max(0, idx - half), min(count, idx + half + 1)) for idx in range(count)]
    return [(sums[high] - sums[low]) / (high - low) for low, high in ends]


def pareto_front(points: Sequence[tuple[float, float]], *, is_lower_better: bool) -> list[int]:
    """Indices of the points that no other beats: none is as cheap and better, or as good and cheaper.

    Args:
        points: (cost, quality).
        is_lower_better: Of quality; less cost is always better.

    Returns:
        Indices in the order of cost.

    Example:
        >>> pareto_front([(1, 5.0), (2, 4.0), (3, 4.5), (2, 4.2)], is_lower_better=True)
        [0, 1]
    """
    sign = 1 if is_lower_better else -1
    best, front = math.inf, []
    for idx in sorted(range(len(points)), key=lambda idx: (points[idx][0], sign * points[idx][1])):
        if sign * points[idx][1] < best:
            best = sign * points[idx][1]
            front.append(idx)
    return front


def staircase(points: Sequence[tuple[float, float]]) -> list[tuple[tuple[float, float], tuple[float, float]]]:
    """The lines between points of a front: along at the same quality, then to the next one's.

    Example:
        >>> staircase([(1, 5), (2, 4)])
        [((1, 5), (2, 5)), ((2, 5), (2, 4))]
    """
    steps = []
    for (left, up), (right, down) in pairwise(points):
        steps += [((left, up), (right, up)), ((right, up), (right, down))]
    return steps


def curve_keys(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[str]:
    """What the curves measure, without the step and the learning rate, the loss first."""
    keys = {key for points in curves.values() for point in points for key in point} - {"step", "lr", "learning_rate"}
    return sorted(keys, key=lambda key: (key != "loss", key))

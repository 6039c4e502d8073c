"""``report["calibration"]`` -> reliability diagrams: how often answers were right at each confidence.

Both axes go from 0 to 1. A model whose answers of confidence c are right with odds c lies on the diagonal; below it, it
is surer than it should be. The area of a dot grows with the number of outcomes in its bin.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from proxykd.evaluation.page.plots import axis, line
from proxykd.evaluation.page.views import Json, arm_label, colours, interval_text, number

HEIGHT = 200
"""Pixels of a diagram, without its axis."""

_SMALLEST, _GROWTH = 2.5, 4.0


@dataclass(frozen=True, slots=True)
class ArmLine:
    """One arm in a diagram.

    Attributes:
        label: Of the arm.
        colour: Number of its colour.
        points: Of the line, in a square of 100 by 100.
        dots: (percent across, pixels down, radius, text) of the bins.
        text: Its ECE with interval, and what luck alone gives.
    """

    label: str
    colour: int
    points: str
    dots: tuple[tuple[float, float, float, str], ...]
    text: str


@dataclass(frozen=True, slots=True)
class Diagram:
    """The arms on one source of outcomes.

    Attributes:
        title: A task, or the next tokens of the teacher's texts.
        ticks: (percent across, pixels down, text), of both axes.
        diagonal: The line of the calibrated, as ``points``.
        arms: Those with outcomes.
    """

    title: str
    ticks: tuple[tuple[float, float, str], ...]
    diagonal: str
    arms: tuple[ArmLine, ...]


def diagrams(report: Json) -> list[Diagram]:
    """One diagram a source; [] where nothing was measured."""
    shades = colours(report.get("arms", {}))
    made = [_diagram(source, by_arm, shades) for source, by_arm in report.get("calibration", {}).items()]
    return [one for one in made if one.arms]


def _diagram(source: str, by_arm: Mapping[str, Json], shades: Mapping[str, int]) -> Diagram:
    x, y = axis([0.0, 1.0]), axis([0.0, 1.0])
    ticks = tuple((x.across(value), y.down(value, HEIGHT), text) for value, text in x.ticks)
    title = "next tokens of the teacher's texts" if source == "tokens" else source
    diagonal = line([(0.0, 0.0), (1.0, 1.0)], x, y)
    arms = []
    for arm, found in by_arm.items():
        bins = found.get("bins", ())
        total = sum(one["count"] for one in bins)
        dots = tuple(
            (
                x.across(one["confidence"]),
                y.down(one["outcome"], HEIGHT),
                round(_SMALLEST + _GROWTH * math.sqrt(one["count"] / total), 1),
                f"{arm_label(arm)}: sure {one['confidence']:.0%}, right {one['outcome']:.0%} of {one['count']:,}",
            )
            for one in bins
        )
        points = line([(one["confidence"], one["outcome"]) for one in bins], x, y)
        if dots:
            text = f"{interval_text(found)} ({number(found.get('by_luck'))} by luck)"
            arms.append(ArmLine(arm_label(arm), shades.get(arm, 5), points, dots, text))
    return Diagram(title, ticks, diagonal, tuple(arms))

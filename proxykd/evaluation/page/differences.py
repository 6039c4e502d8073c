"""The paired differences of a report -> rows of forest plots, over all prompts and by slice."""

from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import Any

from proxykd.evaluation.metrics import Metric, described
from proxykd.evaluation.page.plots import Axis, axis
from proxykd.evaluation.page.views import (
    Group,
    Json,
    Mark,
    bounds,
    interval_text,
    is_known,
    number,
    numbers,
    pair_of,
    places,
    primary_metric,
    primary_pair,
)
from proxykd.evaluation.report import metrics_of

MAX_ROWS = 150
"""Rows of one group of differences; what is beyond them stays in ``report.json``, and the page says how many."""


def difference_groups(report: Json, pair: tuple[str, str]) -> list[Group]:
    """The differences of two arms over all prompts, one group for each unit."""
    made = [one for one in report.get("comparisons", ()) if not one.get("slice") and pair_of(one) == pair]
    families: dict[str, list[Json]] = {}
    for one in made:
        families.setdefault(_family(one["metric"], described(report, one["metric"])), []).append(one)
    named = [(_family_title(report, family), rows) for family, rows in families.items()]
    return [_difference_group(report, title, rows, _metric_row) for title, rows in named]


def slice_groups(report: Json, pair: tuple[str, str]) -> list[Group]:
    """The differences of two arms by slice, one group for each metric."""
    made = [one for one in report.get("comparisons", ()) if one.get("slice") and pair_of(one) == pair]
    by_metric: dict[str, list[Json]] = {}
    for one in made:
        by_metric.setdefault(one["metric"], []).append(one)
    first = primary_metric(report)
    ordered = sorted(by_metric.items(), key=lambda item: item[0] != first)
    return [
        _difference_group(report, f"{described(report, name).label} by slice", rows, _slice_row)
        for name, rows in ordered
    ]


def other_pairs(report: Json) -> list[tuple[str, str]]:
    """The pairs of arms that were compared beside the primary one, in the order of the report."""
    first = primary_pair(report)
    return [pair for pair in dict.fromkeys(map(pair_of, report.get("comparisons", ()))) if pair != first]


def _difference_group(report: Json, title: str, found: Sequence[Json], row_label: Callable[[Json, Json], str]) -> Group:
    metrics = [described(report, one["metric"]) for one in found]
    asked = [_bound(report, one, metric) for one, metric in zip(found, metrics, strict=True)]
    drawn = [value for one in found for value in numbers(one)]
    scale = axis([0.0, *drawn, *_bands(found), *(value for value in asked if value is not None)])
    rows = [
        _difference_mark(one, metric, scale, row_label(report, one), bound)
        for one, metric, bound in zip(found, metrics, asked, strict=True)
    ]
    directions = {metric.direction for metric in metrics}
    sides = {"lower": "left of zero is better", "higher": "right of zero is better"}
    levels = sorted({f"{one['confidence']:.0%}" for one in found if is_known(one.get("confidence"))})
    notes = [f"{' and '.join(levels)} intervals"] if levels else []
    caption = "; ".join(notes + [sides[name] for name in directions if len(directions) == 1 and name in sides])
    return Group(title, caption, scale, tuple(rows[:MAX_ROWS]), scale.across(0.0), max(0, len(rows) - MAX_ROWS))


def _bound(report: Json, one: Json, metric: Metric) -> float | None:
    """The difference that the policy asks for, or the loss that it allows; None where it says nothing."""
    for name, part, value in bounds(report):
        if fnmatchcase(one["metric"], name) and fnmatchcase(one.get("slice") or "", part):
            return -value if metric.direction == "lower" else value
    return None


def _difference_mark(one: Json, metric: Metric, scale: Axis, label: str, bound: float | None) -> Mark:
    if refusal := one.get("refusal"):
        return Mark(label, 0, f"not compared: {refusal}", None, None, None)
    at, low, high = places(one, scale)
    mde, adjusted = one.get("mde"), one.get("p_adjusted")
    return Mark(
        label,
        0,
        interval_text(one, is_signed=True),
        at,
        low,
        high,
        note=_better(one, metric),
        cells=(
            f"±{number(mde)}" if is_known(mde) else "-",
            _p_text(adjusted if is_known(adjusted) else one.get("p_value")),
            number(one.get("num_prompts")),
        ),
        bound=None if bound is None else scale.across(bound),
        band=(scale.across(-abs(mde)), scale.across(abs(mde))) if mde is not None and is_known(mde) else None,
    )


def _p_text(value: Any) -> str:
    """A p as it is printed: none is ever 0.

    Example:
        >>> [_p_text(value) for value in (0.00004, 0.0312, None)]
        ['<0.0001', '0.0312', '-']
    """
    if not is_known(value):
        return "-"
    return "<0.0001" if value < 0.0001 else f"{value:.4f}"


def _better(one: Json, metric: Metric) -> str:
    """What the interval of a difference says of its first arm: better, worse or nothing."""
    low, high = one.get("low"), one.get("high")
    if metric.direction == "none" or low is None or high is None or not (is_known(low) and is_known(high)):
        return ""
    if low <= 0 <= high:
        return ""
    return "better" if (high < 0) == (metric.direction == "lower") else "worse"


def _metric_row(report: Json, one: Json) -> str:
    return described(report, one["metric"]).label


def _slice_row(report: Json, one: Json) -> str:
    return str(one["slice"])


def _bands(found: Sequence[Json]) -> list[float]:
    """The ends of the detectable effects, as far as they do not squeeze the differences together."""
    reach = max((abs(value) for one in found for value in numbers(one)), default=0.0)
    return [
        sign * one["mde"] for one in found if is_known(one.get("mde")) for sign in (-1, 1) if one["mde"] <= 2 * reach
    ]


def _family(name: str, metric: Metric) -> str:
    """Metrics of one family share an axis: those of the same unit, or of the same kind of task."""
    return metric.unit or name.partition("/")[0]


def _family_title(report: Json, family: str) -> str:
    return described(report, family).label if family in metrics_of(report) else family.replace("_", " ")

"""What the stages told of themselves -> what the page shows of it: curves, fidelity, targets, data, runs, lineage."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from proxykd.evaluation.metrics import Metric
from proxykd.evaluation.page.plots import Axis, axis, curve_keys, line, pareto_front, smoothed, staircase
from proxykd.evaluation.page.views import Json, arm_label, colours, interval_text, is_known, number

PLOT_HEIGHT = 150
"""Pixels of a plot of curves or of points, without its axis."""

MAX_POINTS = 200
"""Points of one drawn curve; ``training.json`` keeps every step."""

_SHOWN_APART = frozenset({"curves", "fidelity", "spend", "settings", "made_from", "validation", "targets"})
_REPORT_SHOWN_APART = frozenset(
    {"name", "num_prompts", "confidence", "resamples", "heldout", "arms", "comparisons", "teacher", "facts"}
    | {"metrics", "slices", "resources", "champion", "judge", "calibration", "gate"}
)
_FIDELITY = {
    "development_nll": "NLL of the teacher's text, nats/token",
    "heldout_nll": "NLL of the teacher's text, nats/token",
    "top1_agreement": "top-1 agreement with the teacher",
}
_SMOOTHED_FROM = 60


@dataclass(frozen=True, slots=True)
class Curve:
    """One drawn line.

    Attributes:
        label: What the legend says.
        colour: Number of its colour.
        raw: Points in a square of 100 by 100.
        smooth: The same, smoothed; "" where the raw line is short enough to be read.
        last: Its last value as text.
        is_dashed: Whether another line has its colour.
    """

    label: str
    colour: int
    raw: str
    smooth: str
    last: str
    is_dashed: bool


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves on two axes.

    Attributes:
        title: What is drawn.
        x_ticks: (percent, text).
        y_ticks: (pixels, text).
        curves: The lines.
        is_log: Whether the upright axis is logarithmic.
        dots: (percent, pixels) of single points.
    """

    title: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    curves: tuple[Curve, ...]
    is_log: bool
    dots: tuple[tuple[float, float], ...] = ()


def curve_plots(curves: Mapping[str, Sequence[Mapping[str, float]]]) -> list[Plot]:
    """One plot for each thing that was measured at every step.

    Args:
        curves: ``ARM/seed-N`` or ``proxy/STAGE`` -> points with a ``step`` and values.
    """
    shades = colours(name.partition("/")[0] for name in curves)
    return [plot for key in curve_keys(curves) if (plot := _curve_plot(key, curves, shades)) is not None]


def _curve_plot(key: str, curves: Mapping[str, Sequence[Json]], shades: Mapping[str, int]) -> Plot | None:
    drawn = {
        name: [(point["step"], point[key]) for point in points if is_known(point.get(key))]
        for name, points in curves.items()
    }
    drawn = {name: _thinned(points) for name, points in drawn.items() if points}
    if not any(up for points in drawn.values() for _, up in points):
        return None
    x = axis([step for points in drawn.values() for step, _ in points])
    y = axis([up for points in drawn.values() for _, up in points], count=3, may_be_log=True)
    seen: set[int] = set()
    lines = []
    for name, points in drawn.items():
        arm = name.partition("/")[0]
        lines.append(_curve(name, points, x, y, shades[arm], is_dashed=shades[arm] in seen))
        seen.add(shades[arm])
    return Plot(key.replace("_", " "), _x_ticks(x), _y_ticks(y), tuple(lines), y.is_log)


def _curve(
    name: str, points: Sequence[tuple[float, float]], x: Axis, y: Axis, colour: int, *, is_dashed: bool
) -> Curve:
    arm, _, rest = name.partition("/")
    smooth = ""
    if len(points) > _SMOOTHED_FROM:
        means = smoothed([up for _, up in points], max(3, len(points) // 15))
        smooth = line([(step, up) for (step, _), up in zip(points, means, strict=True)], x, y)
    label = f"{arm_label(arm)}, {rest.replace('-', ' ')}" if rest else arm_label(arm)
    return Curve(label, colour, line(points, x, y), smooth, number(float(points[-1][1])), is_dashed)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    every = -(-len(points) // MAX_POINTS)
    return list(points[::-1][::every][::-1])


def _x_ticks(x: Axis) -> tuple[tuple[float, str], ...]:
    return tuple((x.across(value), text) for value, text in x.ticks)


def _y_ticks(y: Axis) -> tuple[tuple[float, str], ...]:
    return tuple((y.down(value, PLOT_HEIGHT), text) for value, text in y.ticks)


def fidelity_plots(stages: Sequence[Json]) -> list[Plot]:
    """The proxy's fit after each stage, one plot a measure; none where fewer than two stages were measured."""
    plots = []
    for key, title in _FIDELITY.items():
        found = [(float(idx), float(one[key])) for idx, one in enumerate(stages) if is_known(one.get(key))]
        if len(found) < 2:
            continue
        x, y = axis([0, len(stages) - 1]), axis([up for _, up in found], may_be_log=key.endswith("nll"))
        ticks = tuple((x.across(idx), str(idx)) for idx in range(len(stages)))
        curve = Curve(title, colours(())["proxy"], line(found, x, y), "", number(found[-1][1]), False)
        dots = tuple((x.across(idx), y.down(up, PLOT_HEIGHT)) for idx, up in found)
        plots.append(Plot(title, ticks, _y_ticks(y), (curve,), y.is_log, dots))
    return plots


def fidelity_table(stages: Sequence[Json]) -> tuple[list[str], list[list[str]]]:
    """Head and rows of the stages' plain values; the first column is the stage's number, as the plots have it."""
    keys = list(
        dict.fromkeys(key for one in stages for key, value in one.items() if not isinstance(value, dict | list))
    )
    rows = [[str(idx), *(_cell(one.get(key)) for key in keys)] for idx, one in enumerate(stages)]
    return ["", *(key.replace("_", " ") for key in keys)], rows


@dataclass(frozen=True, slots=True)
class RunPoint:
    """A run in the plot of cost against quality; places in percent across and pixels down.

    Attributes:
        label: Name and date.
        cost: As text.
        quality: As text.
        outcome: What was decided; "" = not known.
        is_this: Whether it is the run of the page.
        is_on_front: Whether no other run is both as cheap and better.
        x: Place across.
        y: Place of the value.
        low: Place of the interval's lower end; None = there is none.
        high: Of its upper end.
    """

    label: str
    cost: str
    quality: str
    outcome: str
    is_this: bool
    is_on_front: bool
    x: float
    y: float
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True)
class ParetoPlot:
    """Cost against quality over runs.

    Attributes:
        cost_label: What the axis across measures.
        quality_label: What the upright axis measures.
        x_ticks: (percent, text).
        y_ticks: (pixels, text).
        runs: The points, the newest last.
        front: (x1, y1, x2, y2) of the lines through the runs that no other beats.
        left_out: Runs without a cost or without the metric.
    """

    cost_label: str
    quality_label: str
    x_ticks: tuple[tuple[float, str], ...]
    y_ticks: tuple[tuple[float, str], ...]
    runs: tuple[RunPoint, ...]
    front: tuple[tuple[float, float, float, float], ...]
    left_out: int


def pareto_plot(runs: Sequence[Json], metric: Metric) -> ParetoPlot | None:
    """The runs as points; None where none has both a cost and a quality.

    Args:
        runs: ``label``, ``cost_usd``, ``teacher_tokens``, ``value``, ``low``, ``high``, ``outcome``, ``is_this``.
        metric: What ``value`` measures. Where no run cost money, the teacher's tokens are the cost.
    """
    key = "cost_usd" if any((one.get("cost_usd") or 0) > 0 for one in runs) else "teacher_tokens"
    found = [one for one in runs if is_known(one.get(key)) and is_known(one.get("value"))]
    if not found:
        return None
    x = axis([0.0, *(one[key] for one in found)])
    ends = [one[part] for one in found for part in ("value", "low", "high") if is_known(one.get(part))]
    room = (max(ends) - min(ends)) / 5  # for the words under the lowest point
    y = axis([*ends, min(ends) - room], count=3)
    places = [(float(one[key]), float(one["value"])) for one in found]
    front = pareto_front(places, is_lower_better=metric.direction == "lower")
    steps = staircase([places[idx] for idx in front])
    return ParetoPlot(
        "what teacher and judge cost, USD" if key == "cost_usd" else "tokens from and to the teacher",
        metric.title,
        _x_ticks(x),
        _y_ticks(y),
        tuple(_run_point(one, key, x, y, is_on_front=idx in front) for idx, one in enumerate(found)),
        tuple((x.across(a), y.down(b, PLOT_HEIGHT), x.across(c), y.down(d, PLOT_HEIGHT)) for (a, b), (c, d) in steps),
        len(runs) - len(found),
    )


def _run_point(one: Json, key: str, x: Axis, y: Axis, *, is_on_front: bool) -> RunPoint:
    ends = (y.down(one[part], PLOT_HEIGHT) if is_known(one.get(part)) else None for part in ("low", "high"))
    return RunPoint(
        str(one.get("label", "")),
        number(one[key]),
        interval_text(one),
        str(one.get("outcome") or ""),
        bool(one.get("is_this")),
        is_on_front,
        x.across(one[key]),
        y.down(one["value"], PLOT_HEIGHT),
        *ends,
    )


def shares(counts: Mapping[str, Any]) -> list[tuple[str, str, float, float]]:
    """(name, count, start in percent, width in percent) of the parts of a whole that are not empty."""
    found = {name: int(count) for name, count in counts.items() if is_known(count) and count > 0}
    total, start, parts = sum(found.values()), 0.0, []
    for name, count in found.items():
        width = 100 * count / total
        parts.append((name.replace("_", " "), f"{count:,} ({width:.1f}%)", round(start, 2), round(width, 2)))
        start += width
    return parts


def broken_rules(validation: Json) -> list[tuple[str, str]]:
    """(rule, how many rows broke it) of the rules that some row broke."""
    return [
        (name.replace("_", " "), f"{found['broken']:,} of {found['measured']:,}")
        for name, found in validation.get("rules", {}).items()
        if found.get("broken")
    ]


def sections(report: Json) -> list[tuple[str, list[tuple[str, str]]]]:
    """(title, rows) of everything that has no section of its own, and of the settings, which come last."""
    facts = report.get("facts", {})
    others = {name: report[name] for name in report if name not in _REPORT_SHOWN_APART}
    found = {**others, **{name: facts[name] for name in facts if name not in _SHOWN_APART}}
    titled = [("Cost, speed and size", _resources(report))]
    titled += [(_title(name), flatten(value)) for name, value in found.items()]
    return [
        *titled,
        ("Held-out texts", flatten(report.get("heldout", {}))),
        ("Settings", flatten(facts.get("settings", {}))),
    ]


def _resources(report: Json) -> list[tuple[str, str]]:
    """The student's numbers, with the champion's beside them where it was measured."""
    champion = dict(flatten(report.get("champion", {}).get("resources", {})))
    return [
        (name, f"{text} (champion: {champion[name]})" if name in champion else text)
        for name, text in flatten(report.get("resources", {}))
    ]


def flatten(value: Any, prefix: str = "") -> list[tuple[str, str]]:
    """A nested JSON value as (dotted key, text) rows.

    Example:
        >>> flatten({"a": {"b": 1.23456, "c": [1, 2]}})
        [('a.b', '1.235'), ('a.c', '1, 2')]
    """
    return list(_rows(value, prefix))


def _rows(value: Any, prefix: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _rows(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        if any(isinstance(item, Mapping) for item in value):
            for position, item in enumerate(value):
                yield from _rows(item, f"{prefix}.{position}")
        else:
            yield prefix, ", ".join(_text(item) for item in value)
    else:
        yield prefix, _text(value)


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _cell(value: Any) -> str:
    return "" if value is None else _text(value)


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()

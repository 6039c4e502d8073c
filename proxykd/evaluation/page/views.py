"""report.json and the decision -> what the page and the summary show of them: rows with their places on an axis.

Parts that a report lacks give empty lists, and the page leaves their sections out.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from proxykd.evaluation.metrics import described
from proxykd.evaluation.page.plots import Axis, axis
from proxykd.evaluation.report import ARM_LABELS, metrics_of

Json = Mapping[str, Any]

PRIMARY_PAIRS = (
    ("registered", "champion"),
    ("proxy_kd", "champion"),
    ("registered", "first_sft"),
    ("registered", "first_none"),
    ("proxy_kd", "sft"),
)
"""(arm, against) of the comparison that matters most, the first one that a report has."""

_ANSWERING = ("proxy_kd", "champion", "proxy")
"""Arms whose answers stand beside the teacher's, in this order; without a champion the SFT arm takes its place."""

_LABELS = {
    **ARM_LABELS,
    "registered": "student",
    "first_sft": "SFT, first seed",
    "first_none": "untrained",
    "teacher": "teacher",
}
_COLOURS = {
    "proxy_kd": 0,
    "registered": 0,
    "sft": 1,
    "first_sft": 1,
    "first_none": 4,
    "proxy": 2,
    "champion": 3,
    "none": 4,
}
_NUM_COLOURS = 8
_OUTCOMES = {
    "promote": "Promoted: this student is the champion.",
    "keep": "Not promoted: this student does not clear the bar.",
    "undecided": "Undecided, so not promoted: what was measured does not settle it.",
}
_PASSED = {True: "passed", False: "failed", None: "not known"}


@dataclass(frozen=True, slots=True)
class Mark:
    """A measured value with its interval on an axis; places in percent of the width.

    Attributes:
        label: Of the row.
        colour: Number of the series' colour.
        text: Value and interval as text.
        at: Of the value; None = it was not measured.
        low: Of the interval's lower end; None = there is no interval.
        high: Of its upper end.
        note: "better", "worse" or "" (or why there is no value).
        cells: Further columns as text.
        band: Places of plus and minus the least detectable effect; None = it is not known.
        bound: Place of the difference that the policy asks for or allows; None = it says nothing of this row.
        dots: Places of the single seeds.
    """

    label: str
    colour: int
    text: str
    at: float | None
    low: float | None
    high: float | None
    note: str = ""
    cells: tuple[str, ...] = ()
    band: tuple[float, float] | None = None
    bound: float | None = None
    dots: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Group:
    """Rows on one axis.

    Attributes:
        title: What they have in common.
        caption: How to read them.
        axis: Shared by the rows.
        rows: The marks.
        zero: Place of the value 0; None where it is not on the axis.
        more: How many rows were left out.
        line: A place to compare with (the teacher's own entropy) and its text.
    """

    title: str
    caption: str
    axis: Axis
    rows: tuple[Mark, ...]
    zero: float | None = None
    more: int = 0
    line: tuple[float, str] | None = None

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(place, text) of the axis."""
        return [(self.axis.across(value), text) for value, text in self.axis.ticks]


def arm_label(arm: str) -> str:
    """What a reader calls an arm."""
    return _LABELS.get(arm, arm)


def colours(arms: Iterable[str]) -> dict[str, int]:
    """A colour for each arm: the known ones have their own, the others take what is left, in turn."""
    free = [idx for idx in range(_NUM_COLOURS) if idx not in set(_COLOURS.values())]
    unknown = [arm for arm in dict.fromkeys(arms) if arm not in _COLOURS]
    return {**_COLOURS, **{arm: free[position % len(free)] for position, arm in enumerate(unknown)}}


def number(value: Any, *, is_signed: bool = False) -> str:
    """A value with as many digits as it is worth; "-" for one that does not exist.

    Example:
        >>> [number(value) for value in (0.12345, 1234.5, 12.345, 0.00012, None, 3)]
        ['0.123', '1,234', '12.35', '0.00012', '-', '3']
        >>> number(0.5, is_signed=True)
        '+0.500'
    """
    if not is_known(value):
        return "-"
    sign = "+" if is_signed else ""
    if isinstance(value, int):
        return f"{value:{sign},}"
    size = abs(value)
    if size >= 100:
        return f"{value:{sign},.0f}"
    if size >= 10:
        return f"{value:{sign}.2f}"
    return f"{value:{sign}.3f}" if size >= 0.001 or size == 0 else f"{value:{sign}.2g}"


def is_known(value: Any) -> bool:
    """Whether a value is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def interval_text(found: Json, *, is_signed: bool = False) -> str:
    """``value [low, high]`` with as many digits as the interval is worth, or the value alone where there is none.

    Example:
        >>> interval_text({"value": -0.0041, "low": -0.0079, "high": -0.00028})
        '-0.0041 [-0.0079, -0.0003]'
    """
    low, high = found.get("low"), found.get("high")
    if low is None or high is None or not (is_known(low) and is_known(high) and is_known(found.get("value"))):
        return number(found.get("value"), is_signed=is_signed)
    size, width = max(abs(low), abs(high)), high - low
    least = 3 if size < 10 else 2 if size < 100 else 0
    digits = max(least, min(6, 1 - math.floor(math.log10(width)))) if width > 0 else least
    digits += any(end and round(end, digits) == 0 for end in (low, high))
    sign = "+" if is_signed else ""
    value, low, high = (f"{one:{sign},.{digits}f}" for one in (found["value"], low, high))
    return f"{value} [{low}, {high}]"


def verdict(report: Json, decision: Json | None) -> tuple[str, str, str]:
    """The outcome's name, what it means in a sentence, and the first reason.

    Args:
        report: Content of ``report.json``.
        decision: Outcome and reasons; None = nothing was decided.
    """
    if decision is not None:
        outcome, reasons = str(decision["outcome"]), [str(reason) for reason in decision.get("reasons", ())]
        return outcome, _OUTCOMES.get(outcome, outcome), reasons[0] if reasons else "No reason was given."
    pair = primary_pair(report)
    found = None if pair is None else _find(report, *pair)
    if pair is None or found is None:
        return "not decided", "No decision was made on this report.", "Nothing was compared."
    label = described(report, found["metric"]).title
    reason = f"{arm_label(pair[0])} minus {arm_label(pair[1])}, {label}: {interval_text(found, is_signed=True)}."
    return "not decided", "No decision was made on this report.", reason


def checks(decision: Json | None) -> list[tuple[str, str, str]]:
    """(passed, failed or not known; name; sentence) for each rule of the decision, the failed ones first."""
    order = {"failed": 0, "not known": 1, "passed": 2}
    rows = [
        (_PASSED.get(one.get("passed"), "not known"), str(one.get("name", "")), str(one.get("text", "")))
        for one in (decision or {}).get("checks", ())
    ]
    return sorted(rows, key=lambda row: order[row[0]])


def shown_answers(sample: Json) -> list[Json]:
    """The answers of a sample that are shown, in their order."""
    answers = {answer["arm"]: answer for answer in sample.get("answers", ())}
    if "champion" not in answers and "sft" in answers:
        answers["champion"] = answers["sft"]
    return [answers[arm] for arm in _ANSWERING if arm in answers]


def primary_pair(report: Json) -> tuple[str, str] | None:
    """The two arms whose difference matters most; None if nothing was compared."""
    made = [(found["arm"], found["against"]) for found in report.get("comparisons", ())]
    return next((pair for pair in PRIMARY_PAIRS if pair in made), made[0] if made else None)


def primary_metric(report: Json) -> str:
    """The metric that the policy decides on; without a policy held-out NLL, or the report's first metric."""
    if name := report.get("gate", {}).get("primary", {}).get("metric"):
        return str(name)
    metrics = metrics_of(report)
    return "heldout_nll" if "heldout_nll" in metrics or not metrics else metrics[0]


def bounds(report: Json) -> list[tuple[str, str, float]]:
    """(metric or pattern, slice or pattern, signed difference) that the policy asks for: a gain, or a loss it allows.

    The sign is that of a difference in a metric of which more is better.
    """
    gate = report.get("gate", {})
    primary = [(str(one["metric"]), "", float(one["margin"])) for one in (gate.get("primary"),) if one]
    guards = [(str(one["metric"]), "", -float(one["margin"])) for one in gate.get("guards", ())]
    slices = [
        (str(one.get("metric") or primary_metric(report)), str(one["slice"]), -float(one["margin"]))
        for one in gate.get("slices", ())
    ]
    return primary + guards + slices


def arm_groups(report: Json) -> list[Group]:
    """One group a metric: every arm with its interval and its seeds; the primary metric first."""
    names, first = metrics_of(report), primary_metric(report)
    shades = colours(report["arms"])
    return [_arm_group(report, name, shades) for name in sorted(names, key=lambda name: name != first)]


def _arm_group(report: Json, name: str, shades: Mapping[str, int]) -> Group:
    measures = {arm: found[name] for arm, found in report["arms"].items() if name in found}
    metric, line = described(report, name), _teacher_line(report, name)
    values = [value for one in measures.values() for value in numbers(one)] + ([line[0]] if line else [])
    scale = axis(values, may_be_log=metric.direction == "lower")
    rows = tuple(_arm_mark(arm, one, scale, shades[arm]) for arm, one in measures.items())
    better = {"lower": "less is better", "higher": "more is better"}.get(metric.direction, "")
    caption = "; ".join(part for part in (better, "logarithmic axis" if scale.is_log else "") if part)
    return Group(metric.title, caption, scale, rows, line=None if line is None else (scale.across(line[0]), line[1]))


def _arm_mark(arm: str, one: Json, scale: Axis, colour: int) -> Mark:
    seeds = tuple(scale.across(value) for value in one.get("per_seed", {}).values() if is_known(value))
    dots = seeds if len(set(seeds)) > 1 else ()
    at, low, high = places(one, scale)
    return Mark(arm_label(arm), colour, interval_text(one), at, low, high, dots=dots)


def _teacher_line(report: Json, name: str) -> tuple[float, str] | None:
    entropy = report.get("teacher", {}).get("entropy")
    if name != "heldout_nll" or not entropy or not is_known(entropy.get("value")):
        return None
    asked = entropy.get("num_prompts", report["num_prompts"])
    on = "" if asked == report["num_prompts"] else f" on {asked:,} prompts"
    return entropy["value"], f"dotted line: the teacher's own entropy{on}, {interval_text(entropy)}"


def places(one: Json, scale: Axis) -> tuple[float | None, float | None, float | None]:
    """Where the value and the ends of the interval stand; None for what is not there."""
    at, low, high = (scale.across(one[part]) if is_known(one.get(part)) else None for part in ("value", "low", "high"))
    return at, low, high


def numbers(one: Json) -> list[float]:
    """The value and the ends of the interval, as far as they are there."""
    return [float(one[part]) for part in ("value", "low", "high") if is_known(one.get(part))]


def pair_of(one: Json) -> tuple[str, str]:
    """(arm, against) of a comparison."""
    return one["arm"], one["against"]


def _find(report: Json, arm: str, against: str) -> Json | None:
    made = [one for one in report.get("comparisons", ()) if pair_of(one) == (arm, against) and not one.get("slice")]
    first = primary_metric(report)
    return next((one for one in made if one["metric"] == first), made[0] if made else None)


class Dot(NamedTuple):
    """One arm's value in a row of tasks.

    Attributes:
        at: Place in percent.
        colour: Of the arm.
        text: Arm and value with interval.
    """

    at: float
    colour: int
    text: str


class TaskRow(NamedTuple):
    """A task and the arms on it."""

    label: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class TaskPlot:
    """The tasks of one kind under each other, every arm a dot.

    Attributes:
        title: What is measured.
        axis: Shared by the tasks.
        rows: One a task.
        arms: (label, colour), for the legend.
    """

    title: str
    axis: Axis
    rows: tuple[TaskRow, ...]
    arms: tuple[tuple[str, int], ...]

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """(place, text) of the axis."""
        return [(self.axis.across(value), text) for value, text in self.axis.ticks]


def families(report: Json) -> dict[str, list[str]]:
    """Kind of task (what stands before the slash of a metric's name) -> its metrics, where there are several."""
    found: dict[str, list[str]] = {}
    for name in metrics_of(report):
        if "/" in name:
            found.setdefault(name.partition("/")[0], []).append(name)
    return {kind: names for kind, names in found.items() if len(names) > 1}


def task_plots(report: Json) -> list[TaskPlot]:
    """One plot for each kind of task of which there are several."""
    shades = colours(report["arms"])
    return [_task_plot(report, kind, names, shades) for kind, names in families(report).items()]


def _task_plot(report: Json, kind: str, names: list[str], shades: Mapping[str, int]) -> TaskPlot:
    arms = report["arms"]
    scale = axis(
        [
            one["value"]
            for found in arms.values()
            for name in names
            if is_known((one := found.get(name, {})).get("value"))
        ]
    )
    rows = [
        TaskRow(
            described(report, name).label.removeprefix(f"{kind} "),
            tuple(
                Dot(scale.across(found[name]["value"]), shades[arm], f"{arm_label(arm)} {interval_text(found[name])}")
                for arm, found in arms.items()
                if is_known(found.get(name, {}).get("value"))
            ),
        )
        for name in names
    ]
    return TaskPlot(kind.replace("_", " "), scale, tuple(rows), tuple((arm_label(arm), shades[arm]) for arm in arms))

"""The report in Markdown, short enough for a comment on a pull request: verdict, checks, differences, worst answers.

Text that a model wrote stands in fences that it cannot leave; labels and sentences lose markup, links and mentions.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING

from proxykd.evaluation.metrics import described
from proxykd.evaluation.page import differences, views
from proxykd.evaluation.page.shown_text import fenced, inline
from proxykd.evaluation.report import ARM_LABELS, cut_note, metrics_of

if TYPE_CHECKING:
    from proxykd.evaluation.page.rendering import PageData

MAX_CHARS = 60_000
"""GitHub takes comments of at most 65,536 characters."""

SHOWN_METRICS, SHOWN_DIFFERENCES, SHOWN_SAMPLES, SHOWN_CHARS = 6, 30, 3, 400
_SIGNS = {"passed": "✅ passed", "failed": "❌ failed", "not known": "❔ not known"}


def render_summary(data: "PageData") -> str:
    """The summary as Markdown, at most ``MAX_CHARS`` characters: what does not fit is left out and said to be."""
    data = replace(data, report={**data.report, "gate": data.gate or {}})
    found, length = [], 0
    for part in _parts(data):
        text = "\n".join(part) + "\n"
        if length + len(text) > MAX_CHARS:
            found.append("The rest is in report.html.\n")
            break
        found.append(text)
        length += len(text)
    return "\n".join(found)


def _parts(data: "PageData") -> Iterator[list[str]]:
    report = data.report
    _, meaning, reason = views.verdict(report, data.decision)
    reasons = [inline(str(one)) for one in (data.decision or {}).get("reasons", ())[1:]]
    yield [f"## {inline(report['name'])}: {meaning}", "", inline(reason), *(f"- {one}" for one in reasons)]
    if checks := views.checks(data.decision):
        rows = [f"| {_SIGNS[passed]} | {inline(name)} | {inline(text)} |" for passed, name, text in checks]
        yield ["| check | rule | what was found |", "|---|---|---|", *rows]
    if pair := views.primary_pair(report):
        yield from _differences(data, pair)
    yield _arms(data)
    if data.samples:
        yield from _samples(data)
    if data.registered:
        rows = [f"- {inline(str(name))}: {inline(str(value))}" for name, value in data.registered.items()]
        yield ["<details><summary>Where it is</summary>", "", *rows, "", "</details>"]


def _differences(data: "PageData", pair: tuple[str, str]) -> Iterator[list[str]]:
    rows = [
        (group, row)
        for group in (
            *differences.difference_groups(data.report, pair),
            *differences.slice_groups(data.report, pair),
        )
        for row in group.rows
    ]
    title = " minus ".join(inline(views.arm_label(arm)) for arm in pair)
    lines = [_line(group.title, row) for group, row in rows[:SHOWN_DIFFERENCES]]
    more = [f"{len(rows) - SHOWN_DIFFERENCES} more in report.html."] if len(rows) > SHOWN_DIFFERENCES else []
    yield [f"### {title}", "", "| | difference | MDE | p | n | |", "|---|---:|---:|---:|---:|---|", *lines, "", *more]


def _line(title: str, row: views.Mark) -> str:
    label = f"{title}: {row.label}" if title.endswith(" by slice") else row.label
    return f"| {inline(label)} | {inline(row.text)} | {' | '.join(row.cells or ('', '', ''))} | {row.note} |"


def _arms(data: "PageData") -> list[str]:
    report = data.report
    metrics = metrics_of(report)
    shown = sorted(metrics, key=lambda name: name != views.primary_metric(report))[:SHOWN_METRICS]
    labels = " | ".join(inline(described(report, name).title) for name in shown)
    rows = [
        f"| {inline(ARM_LABELS.get(arm, arm))} | "
        + " | ".join(views.interval_text(found[name]) if name in found else "" for name in shown)
        + " |"
        for arm, found in report["arms"].items()
    ]
    note = f"{report['num_prompts']:,} held-out prompts; in brackets: {report['confidence']:.0%} interval."
    more = f" {len(metrics) - len(shown)} more metrics in report.html." if len(metrics) > len(shown) else ""
    texts = f" {cut_note(report)}." if cut_note(report) else ""
    return ["### Arms", "", f"| | {labels} |", f"|---|{'---:|' * len(shown)}", *rows, "", note + more + texts]


def _samples(data: "PageData") -> Iterator[list[str]]:
    yield [f"### The {min(SHOWN_SAMPLES, len(data.samples))} worst answers"]
    for one in data.samples[:SHOWN_SAMPLES]:
        lines = [f"<details><summary>{inline(one.get('task') or one['prompt_id'])}</summary>", ""]
        lines += ["question", "", fenced(str(one.get("question", "")), SHOWN_CHARS), ""]
        lines += ["teacher", "", fenced(str(one.get("teacher", "")), SHOWN_CHARS), ""]
        for answer in views.shown_answers(one):
            if answer.get("text") is not None:
                label = inline(views.arm_label(answer["arm"]))
                lines += [label, "", fenced(str(answer["text"]), SHOWN_CHARS), ""]
        yield [*lines, "</details>"]

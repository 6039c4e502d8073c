"""The report for a person: one HTML page that loads nothing and runs nothing, and its short form in Markdown.

The page is a pure function of what it is given. It has no script; its content security policy admits its own style
sheet by hash and nothing else, so that text which a model wrote could do nothing even if the escaping failed.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from proxykd.evaluation.metrics import described
from proxykd.evaluation.page import differences, facts, judgements, reliability, views
from proxykd.evaluation.page.shown_text import cut, visible
from proxykd.evaluation.report import cut_note, seeds_note
from proxykd.evaluation.samples import SHOWN_CHARS
from proxykd.evaluation.spend import JUDGE

Json = Mapping[str, Any]

OPEN_PANELS = 4
"""Metrics whose arms are drawn at once; the others are folded."""

SHOWN_SAMPLES = 4
"""Samples that are shown at once; the others are folded."""

MAX_REASON_CHARS = 500

_MARKS: dict[Any, str] = {True: "right", False: "wrong"}


@dataclass(frozen=True, slots=True)
class PageData:
    """Everything that the page shows, as JSON values.

    Attributes:
        report: Content of ``report.json``, with the comparisons that the decision was made on.
        decision: ``outcome``, ``reasons`` and, where there are some, ``checks`` ({name, passed, text}); None = nothing
            was decided.
        gate: Section ``gate`` of the specification that was decided by; None = there is none.
        registered: What the registry and the tracker know: ``model_uri``, ``aliases``, ``run_id``, ``tracking_uri``.
        samples: As ``collect_samples`` gives them.
        runs: This run and earlier ones, as ``facts.pareto_plot`` takes them.
    """

    report: Json
    decision: Json | None = None
    gate: Json | None = None
    registered: Json | None = None
    samples: Sequence[Json] = ()
    runs: Sequence[Json] = ()


def write_page(data: PageData, folder: Path) -> Path:
    """Write ``report.html`` and ``report.md`` into ``folder``; gives the page."""
    from proxykd.evaluation.page.summary import render_summary

    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(render_page(data), encoding="utf-8")
    (folder / "report.md").write_text(render_summary(data), encoding="utf-8")
    return page


def render_page(data: PageData) -> str:
    """The page as HTML text."""
    data = replace(data, report={**data.report, "gate": data.gate or {}})
    template = _environment().get_template("report.html.jinja")
    style = (Path(__file__).parent / "report.css").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    return template.render(
        style=Markup(style),  # our own file, not text that came as data
        style_hash=digest,
        report=data.report,
        **_verdict(data),
        **_numbers(data),
        **_facts(data),
        samples=[_sample(one) for one in data.samples],
    )


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("proxykd.evaluation.page", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=_finalize,
    )
    environment.globals.update(
        plot_height=facts.PLOT_HEIGHT,
        reliability_height=reliability.HEIGHT,
        duel_head=judgements.DUEL_HEAD,
        zip=zip,
        shown_samples=SHOWN_SAMPLES,
    )
    return environment


def _finalize(value: Any) -> Any:
    """What every expression of the template passes through before it is escaped."""
    return visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _verdict(data: PageData) -> dict[str, Any]:
    outcome, meaning, reason = views.verdict(data.report, data.decision)
    reasons = [str(one) for one in (data.decision or {}).get("reasons", ())]
    return {
        "outcome": outcome,
        "meaning": meaning,
        "reason": cut(reason, MAX_REASON_CHARS),
        "more_reasons": [cut(one, MAX_REASON_CHARS) for one in reasons[1:]],
        "checks": views.checks(data.decision),
        "key_facts": _key_facts(data),
    }


def _key_facts(data: PageData) -> list[tuple[str, str]]:
    report, registered = data.report, data.registered or {}
    spend = report.get("facts", {}).get("spend", {})
    found = [
        ("held-out prompts", views.number(report["num_prompts"])),
        ("model", str(registered.get("model_uri", ""))),
        ("aliases", ", ".join(map(str, registered.get("aliases", ())))),
        ("teacher answers", views.number(spend.get("num_completions")) if spend else ""),
        ("teacher cost", _usd(spend)),
        ("judge cost", _usd(spend.get(JUDGE, {}))),
    ]
    return [(name, value) for name, value in found if value]


def _usd(spend: Json) -> str:
    return f"{spend['cost_usd']:,.2f} USD" if views.is_known(spend.get("cost_usd")) else ""


def _numbers(data: PageData) -> dict[str, Any]:
    report = data.report
    groups = views.arm_groups(report)
    tasks = views.task_plots(report)
    pair = views.primary_pair(report)
    return {
        "arm_groups": groups[:OPEN_PANELS],
        "more_arm_groups": groups[OPEN_PANELS:],
        "task_plots": tasks,
        "pair": None if pair is None else tuple(map(views.arm_label, pair)),
        "differences": [] if pair is None else differences.difference_groups(report, pair),
        "slices": [] if pair is None else differences.slice_groups(report, pair),
        "other_differences": [
            (
                " minus ".join(map(views.arm_label, other)),
                [*differences.difference_groups(report, other), *differences.slice_groups(report, other)],
            )
            for other in differences.other_pairs(report)
        ],
        "judged": judgements.judgements(report),
        "diagrams": reliability.diagrams(report),
        "has_bands": any(one.get("mde") is not None for one in report.get("comparisons", ())),
        "has_bounds": bool(report.get("gate")),
        "is_adjusted": any(one.get("p_adjusted") is not None for one in report.get("comparisons", ())),
        "notes": [note for note in (seeds_note(report), cut_note(report)) if note],
    }


def _facts(data: PageData) -> dict[str, Any]:
    told = data.report.get("facts", {})
    metric = described(data.report, views.primary_metric(data.report))
    fidelity = told.get("fidelity", ())
    curves = told.get("curves", {})
    alignment = {name: curve for name, curve in curves.items() if name.partition("/")[0] == "proxy"}
    return {
        "pareto": facts.pareto_plot(data.runs, metric),
        "curve_plots": facts.curve_plots({name: curve for name, curve in curves.items() if name not in alignment}),
        "alignment_plots": facts.curve_plots(alignment),
        "fidelity_plots": facts.fidelity_plots(fidelity),
        "fidelity_table": facts.fidelity_table(fidelity) if fidelity else None,
        "targets": facts.flatten(told.get("targets", {})),
        "validation": told.get("validation", {}),
        "broken": facts.broken_rules(told.get("validation", {})),
        "shares": facts.shares,
        "spend": facts.flatten(told.get("spend", {})),
        "lineage": facts.flatten(told.get("made_from", {})),
        "registered": facts.flatten(data.registered or {}),
        "sections": facts.sections(data.report),
    }


def _sample(one: Json) -> dict[str, Any]:
    """A sample as the template shows it: texts cut, the teacher's first, then the arms in a fixed order."""
    return {
        **one,
        "question": cut(str(one.get("question", "")), SHOWN_CHARS),
        "teacher": cut(str(one.get("teacher", "")), SHOWN_CHARS),
        "change": _change(one),
        "answers": [
            {
                "label": "student" if answer["arm"] == "proxy_kd" else views.arm_label(answer["arm"]),
                "text": None if answer.get("text") is None else cut(str(answer["text"]), SHOWN_CHARS),
                "mark": _MARKS.get(answer.get("is_correct"), ""),
                "nll": views.number(answer.get("nll")),
            }
            for answer in views.shown_answers(one)
        ],
    }


def _change(one: Json) -> str:
    change, against = one.get("change", {}), views.arm_label(str(one.get("against", "")))
    parts = [f"{against} was right, the student is wrong"] if change.get("is_lost") and against else []
    if views.is_known(change.get("nll")):
        parts.append(f"NLL {views.number(change['nll'], is_signed=True)} nats a token against {against}")
    return "; ".join(parts)

"""report.json -> one page that can be mailed: style inside, plots inside, nothing loaded from anywhere."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from proxykd.evaluation.decision import METRIC, comparison
from proxykd.evaluation.metrics import metric_of
from proxykd.evaluation.plots import write_plots
from proxykd.evaluation.report import (
    ARM_LABELS,
    cut_note,
    format_interval,
    metric_label,
    metrics_of,
    seeds_note,
    teacher_label,
)

SHOWN_APART = frozenset({"curves", "fidelity", "spend", "settings", "made_from"})
PLOT_TITLES = {"arms": "Arms with their intervals", "fidelity": "Fidelity of the proxy", "curves": "Training"}


def write_page(report: Mapping[str, Any], folder: Path) -> Path:
    """Write the plots (PNG) and ``report.html`` into ``folder``.

    Args:
        report: Content of ``report.json``.
        folder: Where the files go.

    Returns:
        The page.
    """
    plots = {PLOT_TITLES[path.stem]: _data_uri(path) for path in write_plots(report, folder)}
    page = folder / "report.html"
    page.write_text(render_page(report, plots), encoding="utf-8")
    return page


def render_page(report: Mapping[str, Any], plots: Mapping[str, str]) -> str:
    """The page as HTML text.

    Args:
        report: Content of ``report.json``.
        plots: Title -> data URI of an image.
    """
    environment = Environment(
        loader=PackageLoader("proxykd.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    facts = report["facts"]
    return environment.get_template("report.html.jinja").render(
        report=report,
        headline=_headline(report),
        metrics=metrics_of(report),
        metric_label=metric_label,
        arm_label=lambda arm: ARM_LABELS.get(arm, arm),
        format_interval=format_interval,
        is_better=_is_better,
        teacher_label=teacher_label,
        notes=[note for note in (seeds_note(report), cut_note(report)) if note],
        plots=plots,
        fidelity=list(facts.get("fidelity", ())),
        fidelity_keys=_scalar_keys(facts.get("fidelity", ())),
        cell=lambda value: "" if value is None else _text(value),
        sections={
            "What was spent": flatten(facts.get("spend", {})),
            **{_title(name): flatten(facts[name]) for name in facts if name not in SHOWN_APART},
            "Made from": flatten(facts.get("made_from", {})),
            "Settings": flatten(facts.get("settings", {})),
        },
    )


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


def _headline(report: Mapping[str, Any]) -> str:
    found = comparison(report, METRIC, "proxy_kd", "sft")
    if found is None or found["value"] is None:
        return "No comparison of Proxy-KD with SFT was made."
    numbers = format_interval(found)
    if found["low"] is None:
        return f"Proxy-KD minus SFT in held-out NLL: {numbers} nats a token; too few prompts for an interval."
    verdict = (
        "is better than" if found["high"] < 0 else "is worse than" if found["low"] > 0 else "cannot be told apart from"
    )
    return f"Proxy-KD {verdict} SFT on the same teacher texts: held-out NLL differs by {numbers} nats a token."


def _is_better(found: Mapping[str, Any]) -> str:
    """What the interval of a difference says of its first arm: better, worse or nothing."""
    if found["low"] is None or found["low"] <= 0 <= found["high"]:
        return ""
    is_below, direction = found["high"] < 0, metric_of(found["metric"]).direction
    return "" if direction == "none" else "better" if is_below == (direction == "lower") else "worse"


def _scalar_keys(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Keys of plain values in the order in which the rows bring them up."""
    return list(dict.fromkeys(key for row in rows for key, value in row.items() if not isinstance(value, (dict, list))))


def _title(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _data_uri(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()

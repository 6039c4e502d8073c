"""The model card: what a registered student is, how good it is, and what it was made from, in Markdown."""

from collections.abc import Iterator, Mapping
from typing import Any

from proxykd.config import RunSpec
from proxykd.evaluation.report import ARM_LABELS, cut_note, format_interval, metric_label, metrics_of


def model_card(report: Mapping[str, Any], run: RunSpec) -> str:
    """The card of the student of a report.

    Args:
        report: Content of ``report.json``.
        run: The specification, ablations applied.
    """
    return "\n".join(_lines(report, run)) + "\n"


def _lines(report: Mapping[str, Any], run: RunSpec) -> Iterator[str]:
    yield f"# {run.registry.model_name}"
    yield ""
    yield f"Student of the run `{run.name}`: `{run.student.model.source}`, distilled from {_teacher(run)} through the"
    yield f"proxy `{run.proxy.model.source}`. The registered weights are those of seed {run.student.seeds[0]}."
    yield ""
    yield f"## Held-out evaluation ({report['num_prompts']} prompts)"
    yield ""
    metrics = metrics_of(report)
    yield f"| arm | {' | '.join(metric_label(metric) for metric in metrics)} |"
    yield f"|---|{'---:|' * len(metrics)}"
    for arm, measures in report["arms"].items():
        cells = [format_interval(measures[metric]) if metric in measures else "" for metric in metrics]
        yield f"| {ARM_LABELS.get(arm, arm)} | {' | '.join(cells)} |"
    yield ""
    yield f"Proxy-KD is this model, averaged over {len(run.student.seeds)} seed(s). In brackets: "
    yield f"{report['confidence']:.0%} interval, bootstrap over prompts."
    if note := cut_note(report):
        yield f"{note}."
    if spend := report["facts"].get("spend"):
        yield ""
        yield f"Teacher: {spend.get('num_completions', 0):,} completions, USD {spend.get('cost_usd', 0.0):.2f}."
        yield from _by_teacher(spend)
    if made_from := report["facts"].get("made_from"):
        yield ""
        yield "## Made from"
        yield ""
        yield from (f"- {name}: `{value}`" for name, value in made_from.items())


def _by_teacher(spend: Mapping[str, Any]) -> Iterator[str]:
    """One line for each teacher of a staged run."""
    for place, one in enumerate(spend.get("teachers", []), start=1):
        if place == 1:
            yield ""
        yield (
            f"{place}. `{one['model']}`: {sum(one['outcomes'].values()):,} completions of {one['num_prompts']:,} "
            f"prompts, USD {one['cost_usd']:.2f}"
        )


def _teacher(run: RunSpec) -> str:
    name = getattr(run.teacher, "model", None)
    main = "the embedded teacher" if name is None else f"`{name}`"
    if run.staging is None:
        return main
    earlier = ", then ".join(f"`{one.teacher.model}`" for one in run.staging.earlier)
    return f"{earlier}, then {main}"

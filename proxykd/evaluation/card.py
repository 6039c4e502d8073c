"""The model card: what a registered student is, how good it is, and what it was made from.

Markdown after a head of YAML, as the Hugging Face hub reads it: licence, base model, datasets, languages and the
evaluation with its intervals (``model-index``).

References:
    Model cards, https://huggingface.co/docs/hub/model-cards
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

from proxykd.config import RunSpec
from proxykd.config.prompts import HuggingFacePromptsSpec
from proxykd.config.terms import UNKNOWN
from proxykd.evaluation.report import ARM_LABELS, cut_note, format_interval, metric_label, metrics_of
from proxykd.evaluation.spend import JUDGE

STUDENT = "proxy_kd"
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def model_card(report: Mapping[str, Any], run: RunSpec, lineage: Mapping[str, Any]) -> str:
    """The card of the student of a report.

    Args:
        report: Content of ``report.json``.
        run: The specification, ablations applied.
        lineage: As ``build_lineage`` made it.
    """
    head = card_metadata(report, run).to_yaml()
    return f"---\n{head.rstrip()}\n---\n\n" + "\n".join(_lines(report, run, lineage)) + "\n"


def card_metadata(report: Mapping[str, Any], run: RunSpec) -> ModelCardData:
    """The head of the card.

    Only what the hub can resolve is named as base model and dataset: folders and files of the user's are not.
    """
    base, prompts = run.student.model.source, run.prompts
    is_dataset = isinstance(prompts, HuggingFacePromptsSpec) and _is_on_hub(prompts.source)
    return ModelCardData(
        model_name=run.registry.model_name,
        **_licence(run.registry.licence),
        language=list(run.registry.language) or None,
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if _is_on_hub(base) else None,
        datasets=[prompts.source] if isinstance(prompts, HuggingFacePromptsSpec) and is_dataset else None,
        tags=["distillation", "proxykd"],
        eval_results=list(_eval_results(report, run)) or None,
    )


def _is_on_hub(source: str) -> bool:
    return _HUB_NAME.fullmatch(source) is not None and not Path(source).exists()


def _licence(stated: str) -> dict[str, Any]:
    """The hub's identifiers are SPDX's in small letters; whatever looks otherwise goes by its name."""
    known = stated.lower()
    return {"license": known} if _HUB_LICENCE.fullmatch(known) else {"license": "other", "license_name": stated}


def _eval_results(report: Mapping[str, Any], run: RunSpec) -> Iterator[EvalResult]:
    for metric, measure in report["arms"].get(STUDENT, {}).items():
        if measure["value"] is None:
            continue
        yield EvalResult(
            task_type="text-generation",
            dataset_type=run.prompts.kind,
            dataset_name=f"held-out prompts of {run.name}",
            metric_type=metric,
            metric_name=metric_label(metric),
            metric_value=measure["value"],
            metric_args={
                "low": measure["low"],
                "high": measure["high"],
                "confidence": report["confidence"],
                "num_prompts": report["num_prompts"],
                "seeds": list(run.student.seeds),
            },
        )


def _lines(report: Mapping[str, Any], run: RunSpec, lineage: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {run.registry.model_name}"
    yield ""
    yield f"Student of the run `{run.name}`: `{run.student.model.source}`, distilled from {_teacher(run)} through the"
    yield f"proxy `{run.proxy.model.source}`. The registered weights are those of seed {run.student.seeds[0]}."
    yield ""
    yield from _evaluation(report, run)
    yield ""
    yield from _terms(run, lineage)
    yield ""
    yield from _made_from(report, lineage)


def _evaluation(report: Mapping[str, Any], run: RunSpec) -> Iterator[str]:
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


def _terms(run: RunSpec, lineage: Mapping[str, Any]) -> Iterator[str]:
    """Who may use what, as far as it was stated."""
    yield "## Terms"
    yield ""
    yield f"Licence of this model: {run.registry.licence}."
    if run.registry.licence == UNKNOWN:
        yield "Nobody has stated it: do not publish the model before it is known."
    yield ""
    yield "| of | licence or terms | training allowed | publication allowed | where |"
    yield "|---|---|---|---|---|"
    for teacher in lineage["teachers"]:
        yield _terms_row(f"answers of `{teacher['model']}`{_dates(teacher)}", teacher["terms"])
    yield _terms_row("prompts", lineage["prompts"]["terms"])


def _terms_row(name: str, terms: Mapping[str, Any]) -> str:
    flags = [{True: "yes", False: "no"}.get(terms[flag], UNKNOWN) for flag in ("allows_training", "allows_publication")]
    return f"| {name} | {terms['licence']} | {' | '.join(flags)} | {terms['url'] or UNKNOWN} |"


def _dates(teacher: Mapping[str, Any]) -> str:
    first, last = (str(teacher[end] or "")[:10] for end in ("first_answer_at", "last_answer_at"))
    return "" if not first else f", {first}" if first == last else f", {first} to {last}"


def _made_from(report: Mapping[str, Any], lineage: Mapping[str, Any]) -> Iterator[str]:
    yield "## Made from"
    yield ""
    if spend := report["facts"].get("spend"):
        yield f"Teacher: {spend.get('num_completions', 0):,} completions, USD {spend.get('cost_usd', 0.0):.2f}."
        yield from _by_teacher(spend)
        if judge := spend.get(JUDGE):
            yield ""
            yield f"Judge: {judge['requests']:,} requests, USD {judge['cost_usd']:.2f}."
        yield ""
    yield f"- specification: `{lineage['specification']['hash']}`"
    yield f"- journal root: `{lineage['journal']['root'] or 'none: the texts were recorded'}`"
    yield from (f"- {name}: `{value}`" for name, value in lineage["artifacts"].items())
    yield ""
    yield f"`proxykd verify {lineage['name']}` recomputes these hashes, and those of the files beside this card."


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

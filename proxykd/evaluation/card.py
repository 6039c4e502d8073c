"""The model card that travels with a registered student: where it comes from and what was measured."""

from collections.abc import Mapping
from typing import Any

from proxykd.config import RunSpec
from proxykd.evaluation.decision import CANDIDATE
from proxykd.evaluation.report import format_interval, metric_label


def model_card(report: Mapping[str, Any], run: RunSpec) -> str:
    """The card as Markdown.

    Args:
        report: Content of ``report.json``.
        run: The specification; its teacher, student and evaluation sections are read.
    """
    measures = report["arms"].get(CANDIDATE, {})
    numbers = "\n".join(f"- {metric_label(name)}: {format_interval(value)}" for name, value in measures.items())
    teacher = getattr(run.teacher, "model", run.teacher.kind)
    return (
        f"# {run.registry.model_name}\n\n"
        f"Distilled by proxykd from the texts of `{teacher}` ({run.teacher.kind} teacher) into "
        f"`{run.student.model.source}`, through the proxy `{run.proxy.model.source}`.\n\n"
        f"Measured on held-out prompts, with {run.evaluation.confidence:.0%} intervals over prompts:\n\n{numbers}\n\n"
        "The terms of the teacher may restrict what a model trained on its texts may be used for.\n"
    )

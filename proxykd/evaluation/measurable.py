"""Which metrics and resources a specification will measure, so that a gate that names others is refused before a run.

Without this a mistyped name would come out after everything is paid and trained: the decision would be undecided,
because nothing by that name was measured. Slices are not looked at: which there are, only the prompts tell. Nothing
that computes is imported, because a plan answers at once; a test holds the names to those of a real report.
"""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from proxykd.config import RunSpec
from proxykd.config.evaluation import (
    EvaluationSpec,
    ExactMatchTaskSpec,
    HarnessTaskSpec,
    MultipleChoiceTaskSpec,
    PassAtKTaskSpec,
    TaskSpec,
)
from proxykd.evaluation.metrics import metric_of
from proxykd.exceptions import ConfigError

_FAMILIES = {
    "exact_match": ("accuracy",),
    "multiple_choice": ("accuracy", "accuracy_normalised", "brier"),
    "nll": ("nll", "bits_per_byte"),
    "harness": ("accuracy", "accuracy_normalised", "brier"),
    "reasoning_gym": ("accuracy", "score"),
}
_OF_SPEED = ("tokens_per_s", "tokens_per_s_single", "memory_gb", "num_parameters", "num_threads")


def measured_metrics(spec: EvaluationSpec) -> tuple[str, ...]:
    """The metrics that the arms will have, by name.

    A task of the harness may have more, under names of its own; ``check_gate`` lets them pass.

    Args:
        spec: The evaluation's section.
    """
    return tuple(dict.fromkeys(_metrics(spec)))


def measured_resources(spec: EvaluationSpec) -> tuple[str, ...]:
    """The plain numbers that ``gate.limits`` may bound beside the metrics."""
    return ("usd", "size_gb", *(_OF_SPEED if spec.speed is not None else ()))


def check_gate(run: RunSpec) -> None:
    """That every metric and resource that the gate names will be measured, and can decide what it is asked to.

    Args:
        run: The specification; its evaluation and gate are read.

    Raises:
        ConfigError: naming the key, what is measured and what may have been meant.
    """
    gate, evaluation = run.gate, run.evaluation
    metrics, resources = measured_metrics(evaluation), measured_resources(evaluation)
    named = [("gate.primary.metric", gate.primary.metric)]
    named += [("gate.guards", guard.metric) for guard in gate.guards]
    named += [("gate.slices", part.metric) for part in gate.slices if part.metric is not None]
    for key, name in named:
        _check_measured(key, name, metrics, evaluation)
        if metric_of(name).direction == "none" and name in metrics:
            raise ConfigError(
                f"{key}: expected a metric that is better one way, got {name!r}, which is neither; bound it in "
                "gate.limits instead"
            )
    for limit in gate.limits:
        _check_measured("gate.limits", limit.name, (*metrics, *resources), evaluation)


def _check_measured(key: str, name: str, known: Sequence[str], evaluation: EvaluationSpec) -> None:
    if any(fnmatchcase(one, name) for one in known) or _may_be_the_harness(name, evaluation):
        return
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    meant = f" (did you mean {close[0]!r}?)" if close else ""
    raise ConfigError(
        f"{key}: expected a name of what this specification measures, got {name!r}{meant}; it measures "
        f"{', '.join(known)}: name one of them, or measure it (evaluation.tasks, drift, judge, exact_kl)"
    )


def _may_be_the_harness(name: str, evaluation: EvaluationSpec) -> bool:
    """Whether a task of the harness may give the metric, whose names the harness alone knows."""
    tasks = [task.name for task in evaluation.tasks if isinstance(task, HarnessTaskSpec)]
    return any(fnmatchcase(task, name.partition("/")[2]) for task in tasks)


def _metrics(spec: EvaluationSpec) -> Iterator[str]:
    yield from ("heldout_nll", "top1_agreement", "perplexity", "ece/tokens")
    if spec.exact_kl:
        yield "exact_kl"
    for task in spec.tasks:
        yield from _of_task(task)
    if spec.drift is not None:
        yield from ("length_ratio", "refusal_rate", "refusal_drift", "cut_rate")
        if spec.drift.answer_pattern is not None:
            yield "answer_agreement/free-answers"
    duels = spec.judge.duels if spec.judge is not None and spec.judge.kind == "pairwise" else ()
    if any((duel.arm, duel.against) == ("proxy_kd", "teacher") for duel in duels):
        yield "win_rate/teacher"


def _of_task(task: TaskSpec) -> Iterator[str]:
    families = [f"pass@{k}" for k in task.k] if isinstance(task, PassAtKTaskSpec) else _FAMILIES[task.kind]
    yield from (f"{family}/{task.name}" for family in families)
    if isinstance(task, ExactMatchTaskSpec) and task.file is None:
        yield f"answer_agreement/{task.name}"
    if isinstance(task, (ExactMatchTaskSpec, MultipleChoiceTaskSpec, HarnessTaskSpec)):
        yield f"ece/{task.name}"

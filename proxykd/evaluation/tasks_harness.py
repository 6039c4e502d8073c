"""Standard tasks of lm-evaluation-harness, by name: its prompts, few-shot examples, filters and metrics.

A metric that the harness averages over documents becomes a sum (its values over their number); its perplexities
become nats over words or bytes. What it aggregates otherwise (F1 over a corpus, BLEU, Matthews' correlation) is no
ratio of sums over documents and is left out. ``acc`` and ``exact_match`` are called ``accuracy`` here, ``acc_norm``
``accuracy_normalised``; a metric of another filter than the task's first carries the filter's name. The tasks of a
group (mmlu) are slices of one task.
"""

import math
from collections.abc import Iterator, Mapping
from functools import cache
from numbers import Real
from pathlib import Path
from typing import Any

from proxykd.config.evaluation import HarnessTaskSpec
from proxykd.evaluation.generation import Respondent
from proxykd.evaluation.harness import load_harness, quiet, run_tasks
from proxykd.evaluation.task_answers import TaskAnswer
from proxykd.exceptions import InputError
from proxykd.records import hash_json

_NAMES = {"acc": "accuracy", "exact_match": "accuracy", "acc_norm": "accuracy_normalised"}
_PER_UNIT = {"word_perplexity": "nll_per_word", "byte_perplexity": "nll_per_byte", "bits_per_byte": "bits_per_byte"}
_SHOWN_CHARS = 4000


def run_harness_task(spec: HarnessTaskSpec, respondent: Respondent) -> Iterator[TaskAnswer]:
    """Run one task, or all tasks of a group.

    Args:
        spec: The task.
        respondent: The model.

    Raises:
        ModelError: if lm-evaluation-harness is not installed.
        InputError: if the harness does not know the task, its data cannot be had, or none of its metrics is a mean.
    """
    for name, task in load_tasks(spec).items():
        samples = run_tasks(
            {name: task},
            respondent,
            limit=spec.limit,
            apply_chat_template=spec.apply_chat_template,
            fewshot_as_multiturn=spec.apply_chat_template,
        )[name]
        kinds = _kinds_of(spec, task)
        first_filter = samples[0]["filter"] if samples else ""
        for sample in samples:
            yield _answer(spec, name, sample, kinds, is_first=sample["filter"] == first_filter)


def load_tasks(spec: HarnessTaskSpec) -> dict[str, Any]:
    """The harness's task objects of ``spec``, their data loaded: name -> task.

    Raises:
        ModelError: if lm-evaluation-harness is not installed.
        InputError: if the harness does not know the task, or its data cannot be had.
    """
    with quiet():
        manager = _manager(spec.folder, is_alone=spec.folder is not None)
        if spec.name not in manager.all_tasks and spec.folder is not None:
            manager = _manager(spec.folder, is_alone=False)
        if spec.name not in manager.all_tasks:
            raise InputError(
                f"expected a task of lm-evaluation-harness, got {spec.name!r}; `lm-eval ls tasks` lists those that it "
                "ships, and evaluation.tasks[].folder names a folder of others"
            )
        try:
            tasks: dict[str, Any] = dict(manager.load([spec.name])["tasks"])
        except Exception as error:  # each data set has its own reader, and each reader its own errors
            raise InputError(
                f"expected the data of the harness's task {spec.name!r}, could not have it: {type(error).__name__}: "
                f"{str(error).strip():.300}; let this machine reach the Hugging Face hub, or fetch it elsewhere with "
                "HF_HOME on a disk that both see and set HF_HUB_OFFLINE=1, or describe a task over local files in a "
                "YAML file of evaluation.tasks[].folder (dataset_path: json, dataset_kwargs: {data_files: ...})"
            ) from error
    for task in tasks.values():
        if spec.num_fewshot is not None:
            task.set_config(key="num_fewshot", value=spec.num_fewshot)
        task.set_fewshot_seed(seed=1234)
        if getattr(task, "UNSAFE_CODE", False) or task.config.unsafe_code:
            raise InputError(
                f"the harness's task {spec.name!r} runs generated programs in this process; use kind: pass_at_k, "
                "which runs them in the sandbox"
            )
    return tasks


@cache
def _manager(folder: Path | None, *, is_alone: bool) -> Any:
    """The harness's index of tasks: of a folder alone, which is quick, or of all that it ships too."""
    path = None if folder is None else str(folder)
    return load_harness().TaskManager(include_path=path, include_defaults=not is_alone)


def _kinds_of(spec: HarnessTaskSpec, task: Any) -> dict[str, str]:
    """The harness's metrics that are kept: name -> mean or per_unit."""
    kinds = {}
    for metric, aggregate in task.aggregation().items():
        if metric in _PER_UNIT:
            kinds[metric] = "per_unit"
        elif getattr(aggregate, "__name__", "") == "mean":
            kinds[metric] = "mean"
    wanted = {metric: kind for metric, kind in kinds.items() if not spec.metrics or metric in spec.metrics}
    if missing := sorted(set(spec.metrics) - set(kinds)) or ([] if wanted else sorted(task.aggregation())):
        raise InputError(
            f"expected metrics of the harness's task {spec.name!r} that are means over its documents, got {missing}; "
            f"it has {sorted(kinds)}"
        )
    return wanted


def _answer(
    spec: HarnessTaskSpec, name: str, sample: Mapping[str, Any], kinds: Mapping[str, str], *, is_first: bool
) -> TaskAnswer:
    sums = {}
    for metric, kind in kinds.items():
        if metric in sample and (pair := _sum_of(sample[metric], kind, metric)) is not None:
            named = _NAMES.get(metric) or _PER_UNIT.get(metric) or metric
            sums[f"{named}/{spec.name}" if is_first else f"{named}/{spec.name}.{sample['filter']}"] = pair
    context = str(sample["arguments"][0][0])
    accuracy = next((sample[one] for one in ("acc", "exact_match") if one in kinds and one in sample), None)
    chosen = _chosen(sample)
    if chosen is not None and accuracy is not None:
        sums[f"brier/{spec.name}"] = ((chosen[1] - float(accuracy)) ** 2, 1.0)
    found = sample["filtered_resps"][0] if sample["filtered_resps"] else None
    return TaskAnswer(
        task=spec.name,
        prompt_id=hash_json([name, context], length=16),
        text=chosen[0] if chosen else str(sample["resps"][0][0])[:_SHOWN_CHARS],
        answer=chosen[0] if chosen else (found if isinstance(found, str) else None),
        is_correct=None if accuracy is None else bool(accuracy),
        confidence=chosen[1] if chosen else None,
        sums=sums,
        slices=() if name == spec.name else (f"{spec.name}/{name}",),
        question=context[-_SHOWN_CHARS:],
        reference=str(sample["target"]),
    )


def _sum_of(value: Any, kind: str, metric: str) -> tuple[float, float] | None:
    """What one document adds to a metric; None if its value is no number."""
    if kind == "per_unit":
        logprob, count = value
        return (-float(logprob) / (math.log(2) if metric == "bits_per_byte" else 1.0), float(count))
    return (float(value), 1.0) if isinstance(value, Real) and math.isfinite(float(value)) else None


def _chosen(sample: Mapping[str, Any]) -> tuple[str, float] | None:
    """The likeliest choice and its probability among the choices; None where the task has none."""
    replies = [reply[0] for reply in sample["resps"]]
    if len(replies) < 2 or not all(isinstance(reply, tuple | list) and len(reply) == 2 for reply in replies):
        return None
    logprobs = [float(logprob) for logprob, _ in replies]
    best = max(range(len(logprobs)), key=logprobs.__getitem__)
    total = sum(math.exp(logprob - logprobs[best]) for logprob in logprobs)
    return str(sample["arguments"][best][1]), 1.0 / total

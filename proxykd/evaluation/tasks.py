"""Exact-match tasks: greedy generation on held-out prompts that have a reference answer, one judgement a prompt.

The task itself (requests, extraction, metric) runs in lm-evaluation-harness: a ``ConfigurableTask`` over local rows and
an ``LM`` whose requests go through our sampler. So the numbers mean what they mean in every other table made with the
harness, and nothing is downloaded. The answer is the first group of the last match of ``answer_pattern``; a completion
without a match is wrong.

The harness is part of the extra ``pipeline`` and is imported when a task runs, not before.
"""

import contextlib
import io
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxykd.config.specification import ExactMatchTaskSpec
from proxykd.data.chat import render_prompt
from proxykd.exceptions import ModelError
from proxykd.models.sampling import CompletionSampler
from proxykd.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_ANSWER = "[no answer]"
"""What the harness is told to take for the answer of a completion without a match."""


@dataclass(frozen=True, slots=True)
class TaskPrompt:
    """A held-out prompt with a reference answer."""

    prompt_id: str
    messages: tuple[Message, ...]
    reference: str


@dataclass(frozen=True, slots=True)
class TaskAnswer:
    """What a model made of a task's prompt.

    Attributes:
        prompt_id: The prompt.
        text: The generated completion, special tokens left out.
        answer: The extracted answer; None if there is none.
        is_correct: Whether it equals the reference.
    """

    prompt_id: str
    text: str
    answer: str | None
    is_correct: bool


def run_task(
    spec: ExactMatchTaskSpec,
    prompts: Sequence[TaskPrompt],
    sampler: CompletionSampler,
    tokenizer: "PreTrainedTokenizerBase",
) -> list[TaskAnswer]:
    """Generate greedily and judge.

    Args:
        spec: The task.
        prompts: Prompts with their references; at most ``spec.limit`` of them, from the front, are asked.
        sampler: Continues prompts.
        tokenizer: The model's tokenizer.

    Returns:
        One answer for each prompt that was asked, in order.

    Raises:
        ModelError: if lm-evaluation-harness is not installed.
    """
    asked = list(prompts[: spec.limit])
    if not asked:
        return []

    def generate(texts: Sequence[str]) -> list[str]:
        token_ids = tokenizer(list(texts), add_special_tokens=False).input_ids
        sampled = sampler.sample(token_ids, max_new_tokens=spec.max_new_tokens, temperature=0.0, seed=0)
        return [str(tokenizer.decode(completion, skip_special_tokens=True)) for completion in sampled]

    documents = [
        {"text": render_prompt(tokenizer, prompt.messages), "reference": prompt.reference.strip()} for prompt in asked
    ]
    samples = _run_harness(spec, documents, generate)
    return [_answer(prompt, sample) for prompt, sample in zip(asked, samples, strict=True)]


def _answer(prompt: TaskPrompt, sample: dict[str, Any]) -> TaskAnswer:
    (answer,) = sample["filtered_resps"]
    is_correct = answer != NO_ANSWER and bool(sample["exact_match"])
    return TaskAnswer(prompt.prompt_id, sample["resps"][0][0], None if answer == NO_ANSWER else answer, is_correct)


def _run_harness(
    spec: ExactMatchTaskSpec, documents: list[dict[str, str]], generate: Callable[[Sequence[str]], list[str]]
) -> list[dict[str, Any]]:
    """The harness's samples in the order of ``documents``."""
    try:
        from lm_eval.api.model import LM
        from lm_eval.api.task import ConfigurableTask
        from lm_eval.evaluator import evaluate
    except ImportError as error:
        raise ModelError("tasks need lm-evaluation-harness: pip install 'proxykd[pipeline]'") from error

    class Sampled(LM):  # type: ignore[misc]
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return generate([request.args[0] for request in requests])

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            raise NotImplementedError("exact-match tasks generate")

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError("exact-match tasks generate")

    with _quiet():
        task = ConfigurableTask(config=_task_config(spec, documents))
        results = evaluate(Sampled(), {"tasks": {spec.name: task}}, bootstrap_iters=0)
    return sorted(results["samples"][spec.name], key=lambda sample: int(sample["doc_id"]))


def _task_config(spec: ExactMatchTaskSpec, documents: list[dict[str, str]]) -> dict[str, Any]:
    import datasets

    extraction = {
        "function": "regex",
        "regex_pattern": spec.answer_pattern,
        "group_select": -1,
        "fallback": NO_ANSWER,
    }
    return {
        "task": spec.name,
        "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(documents)},
        "test_split": "test",
        "output_type": "generate_until",
        "num_fewshot": 0,
        "doc_to_text": lambda document: document["text"],
        "doc_to_target": lambda document: document["reference"],
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": spec.max_new_tokens},
        "filter_list": [{"name": "last", "filter": [extraction, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


@contextlib.contextmanager
def _quiet() -> Any:
    """No bars and hints of the harness; our own progress writes to the real stream."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logger.setLevel(before)

"""Tasks: what the arms are asked beside the teacher's held-out texts, and what became of each question.

Every kind gives one ``TaskAnswer`` a question and sample, in chunks, so that memory does not grow with a task's file;
each answer carries what it adds to the metrics' sums. Exact match and multiple choice run in lm-evaluation-harness (a
``ConfigurableTask`` over local rows and an ``LM`` whose requests go through our sampler), so the numbers mean what they
mean in every other table made with the harness. Confidence is the model's probability of its own answer: of the tokens
of the extracted answer, given what it wrote before them, or of the chosen choice among the choices. A completion
without an answer has none, so the Brier score, by which arms are compared, is that of choices alone.
"""

import bisect
import math
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from proxykd.artifacts import batched
from proxykd.config.evaluation import (
    ExactMatchTaskSpec,
    HarnessTaskSpec,
    MultipleChoiceTaskSpec,
    NllTaskSpec,
    PassAtKTaskSpec,
    TaskSpec,
)
from proxykd.data.answers import find_answer
from proxykd.data.chat import render_prompt
from proxykd.evaluation.generation import Generation, Respondent
from proxykd.evaluation.harness import local_task, run_tasks
from proxykd.evaluation.task_answers import ASKED_AT_ONCE, TaskAnswer, TaskPrompt, agreement, judged
from proxykd.evaluation.tasks_code import run_pass_at_k
from proxykd.evaluation.tasks_files import FileRow, file_rows
from proxykd.evaluation.tasks_harness import run_harness_task
from proxykd.evaluation.tasks_procedural import run_reasoning_gym
from proxykd.records import Message, prompt_id_of

NO_ANSWER = "[no answer]"
"""What the harness is told to take for the answer of a completion without a match."""


def run_task(spec: TaskSpec, respondent: Respondent, heldout: Sequence[TaskPrompt]) -> Iterator[TaskAnswer]:
    """Ask one model one task.

    Args:
        spec: The task.
        respondent: The model.
        heldout: Held-out prompts that have a reference, for tasks without a file of their own.

    Yields:
        The answers, in the order of the questions.

    Raises:
        InputError: if the task's data cannot be had or used.
        ModelError: if a package that the task needs is not installed.
        SandboxError: if the task runs programs and this machine cannot hold them in.
    """
    if isinstance(spec, ExactMatchTaskSpec):
        return _run_exact_match(spec, respondent, heldout)
    if isinstance(spec, MultipleChoiceTaskSpec):
        return _run_multiple_choice(spec, respondent)
    if isinstance(spec, NllTaskSpec):
        return _run_nll(spec, respondent)
    if isinstance(spec, PassAtKTaskSpec):
        return run_pass_at_k(spec, respondent)
    if isinstance(spec, HarnessTaskSpec):
        return run_harness_task(spec, respondent)
    return run_reasoning_gym(spec, respondent)


def _run_exact_match(
    spec: ExactMatchTaskSpec, respondent: Respondent, heldout: Sequence[TaskPrompt]
) -> Iterator[TaskAnswer]:
    prompts = iter(heldout[: spec.limit]) if spec.file is None else map(_prompt_of(spec), _rows(spec))
    for chunk in batched(prompts, ASKED_AT_ONCE):
        yield from _exact_match(spec, respondent, chunk)


def _prompt_of(spec: ExactMatchTaskSpec) -> Callable[[FileRow], TaskPrompt]:
    def prompt(row: FileRow) -> TaskPrompt:
        messages = row.messages(spec.prompt_field)
        reference = row.text(spec.reference_field)
        return TaskPrompt(prompt_id_of(messages), messages, reference, slices=row.slices(spec.slice_field))

    return prompt


def _exact_match(
    spec: ExactMatchTaskSpec, respondent: Respondent, prompts: Sequence[TaskPrompt]
) -> Iterator[TaskAnswer]:
    rendered = [render_prompt(respondent.tokenizer, prompt.messages) for prompt in prompts]
    token_ids = [respondent.encode(text) for text in rendered]
    completions = respondent.generate(token_ids, Generation(spec.max_new_tokens), description=spec.name)
    texts = [respondent.decode(completion) for completion in completions]
    confidences = answer_confidences(spec.answer_pattern, respondent, token_ids, completions)
    documents = [
        {"text": text, "reference": prompt.reference.strip()} for text, prompt in zip(rendered, prompts, strict=True)
    ]
    samples = run_tasks({spec.name: local_task(spec.name, documents, **_generating(spec))}, texts)[spec.name]
    for prompt, sample, confidence in zip(prompts, samples, confidences, strict=True):
        (found,) = sample["filtered_resps"]
        answer = None if found == NO_ANSWER else str(found)
        is_correct = answer is not None and bool(sample["exact_match"])
        yield TaskAnswer(
            task=spec.name,
            prompt_id=prompt.prompt_id,
            text=sample["resps"][0][0],
            answer=answer,
            is_correct=is_correct,
            confidence=confidence,
            sums=judged(spec.name, is_correct, None) | _agreement(spec, answer, prompt),
            slices=prompt.slices,
            question=prompt.question,
            reference=prompt.reference,
        )


def _agreement(spec: ExactMatchTaskSpec, answer: str | None, prompt: TaskPrompt) -> dict[str, tuple[float, float]]:
    teacher_answers = [find_answer(spec.answer_pattern, text) for text in prompt.teacher_texts]
    found = agreement(answer, teacher_answers)
    return {} if found is None else {f"answer_agreement/{spec.name}": found}


def _generating(spec: ExactMatchTaskSpec) -> dict[str, Any]:
    extraction = {"function": "regex", "regex_pattern": spec.answer_pattern, "group_select": -1, "fallback": NO_ANSWER}
    return {
        "output_type": "generate_until",
        "doc_to_text": lambda document: document["text"],
        "doc_to_target": lambda document: document["reference"],
        "generation_kwargs": {"until": [], "do_sample": False, "max_gen_toks": spec.max_new_tokens},
        "filter_list": [{"name": "last", "filter": [extraction, {"function": "take_first"}]}],
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }


def _run_multiple_choice(spec: MultipleChoiceTaskSpec, respondent: Respondent) -> Iterator[TaskAnswer]:
    config = {
        "output_type": "multiple_choice",
        "doc_to_text": lambda document: document["text"],
        "doc_to_choice": lambda document: document["choices"],
        "doc_to_target": lambda document: document["right"],
        "target_delimiter": "",
        "metric_list": [
            {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm")
        ],
    }
    for rows in batched(_rows(spec), ASKED_AT_ONCE):
        documents = [_choice_document(spec, row, respondent) for row in rows]
        samples = run_tasks({spec.name: local_task(spec.name, documents, **config)}, respondent)[spec.name]
        for row, document, sample in zip(rows, documents, samples, strict=True):
            yield _chosen(spec, row, document, sample)


def _choice_document(spec: MultipleChoiceTaskSpec, row: FileRow, respondent: Respondent) -> dict[str, Any]:
    choices = row.texts(spec.choices_field)
    text = render_prompt(respondent.tokenizer, row.messages(spec.prompt_field))
    return {"text": text, "choices": choices, "right": row.choice(spec.answer_field, choices)}


def _chosen(spec: MultipleChoiceTaskSpec, row: FileRow, document: dict[str, Any], sample: dict[str, Any]) -> TaskAnswer:
    confidences = choice_confidences([likelihood for ((likelihood, _),) in sample["resps"]])
    chosen = int(np.argmax(confidences))
    is_correct, messages = bool(sample["acc"]), row.messages(spec.prompt_field)
    sums = judged(spec.name, is_correct, confidences[chosen])
    return TaskAnswer(
        task=spec.name,
        prompt_id=prompt_id_of(messages),
        text=document["choices"][chosen],
        answer=document["choices"][chosen],
        is_correct=is_correct,
        confidence=confidences[chosen],
        sums={**sums, f"accuracy_normalised/{spec.name}": (float(sample["acc_norm"]), 1.0)},
        slices=row.slices(spec.slice_field),
        question=messages[-1].content,
        reference=document["choices"][document["right"]],
    )


def _run_nll(spec: NllTaskSpec, respondent: Respondent) -> Iterator[TaskAnswer]:
    for rows in batched(_rows(spec), ASKED_AT_ONCE):
        windows = [_windows(spec, row, respondent) for row in rows]
        found = iter(respondent.likelihoods([pair for pairs in windows for pair in pairs], description=spec.name))
        for row, pairs in zip(rows, windows, strict=True):
            text, parts = row.text(spec.text_field), list(islice(found, len(pairs)))
            nll = -sum(part.logprob for part in parts)
            messages = _messages_of(spec, row)
            sums = {
                f"nll/{spec.name}": (nll, float(sum(part.num_tokens for part in parts))),
                f"bits_per_byte/{spec.name}": (nll / math.log(2), float(len(text.encode()))),
            }
            yield TaskAnswer(
                task=spec.name,
                prompt_id=prompt_id_of((*messages, Message("assistant", text))),
                text="",
                answer=None,
                is_correct=None,
                sums=sums,
                slices=row.slices(spec.slice_field),
                question=messages[-1].content if messages else "",
                reference=text,
            )


def _messages_of(spec: NllTaskSpec, row: FileRow) -> tuple[Message, ...]:
    return () if spec.prompt_field is None else row.messages(spec.prompt_field)


def _windows(spec: NllTaskSpec, row: FileRow, respondent: Respondent) -> list[tuple[list[int], list[int]]]:
    """Context and continuation of each part of a text: one, unless it is longer than the model can read at once."""
    messages = _messages_of(spec, row)
    context = respondent.encode_messages(messages) if messages else [respondent.prefix_id]
    token_ids = respondent.encode_plain(row.text(spec.text_field))
    first = max(1, respondent.max_tokens - len(context))
    starts = [0, *range(first, len(token_ids), respondent.max_tokens - 1)]
    ends = [*starts[1:], len(token_ids)]
    return [
        (token_ids[start - 1 : start] if start else context, token_ids[start:end])
        for start, end in zip(starts, ends, strict=True)
        if end > start
    ]


def _rows(spec: ExactMatchTaskSpec | MultipleChoiceTaskSpec | NllTaskSpec) -> Iterator[FileRow]:
    assert spec.file is not None  # exact match over held-out prompts reads none
    return file_rows(spec.file, task=spec.name, limit=spec.limit)


def choice_confidences(logprobs: Sequence[float]) -> list[float]:
    """The probability of each choice among the choices, from their log-likelihoods.

    Example:
        >>> choice_confidences([0.0, 0.0])
        [0.5, 0.5]
    """
    weights = np.exp(np.asarray(logprobs) - max(logprobs))
    return [float(weight) for weight in weights / weights.sum()]


def answer_confidences(
    pattern: str, respondent: Respondent, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
) -> list[float | None]:
    """The model's probability of the tokens of each completion's answer, given all before them; None = no answer.

    Args:
        pattern: As ``ExactMatchTaskSpec.answer_pattern``.
        respondent: The model that wrote the completions.
        prompts: Token ids that were continued.
        completions: Their continuations.
    """
    spans = [_answer_tokens(pattern, respondent, completion) for completion in completions]
    pairs = [
        ([*prompt, *completion[: span[0]]], list(completion[slice(*span)]))
        for prompt, completion, span in zip(prompts, completions, spans, strict=True)
        if span is not None
    ]
    found = iter(respondent.likelihoods(pairs, description="weighing answers"))
    return [None if span is None else min(1.0, math.exp(next(found).logprob)) for span in spans]


def _answer_tokens(pattern: str, respondent: Respondent, completion: Sequence[int]) -> tuple[int, int] | None:
    """From which token to which a completion's answer goes; None if it has none."""
    last = deque(re.finditer(pattern, respondent.decode(completion)), maxlen=1)
    groups = range(1, last[0].re.groups + 1) if last else ()
    group = next((group for group in groups if last[0].group(group)), None)
    if group is None:
        return None
    counts = range(len(completion) + 1)

    def num_chars(count: int) -> int:
        return len(respondent.decode(completion[:count]))

    start = bisect.bisect_right(counts, last[0].start(group), key=num_chars) - 1
    return start, bisect.bisect_left(counts, last[0].end(group), key=num_chars)

"""Exact-match tasks: the harness's verdicts against a plain re-implementation on the same generations."""

import re
from collections.abc import Sequence
from typing import Any

import pytest

from proxykd.config import RunSpec
from proxykd.config.specification import ExactMatchTaskSpec
from proxykd.evaluation.tasks import TaskPrompt, run_task
from proxykd.models.loading import load_tokenizer
from proxykd.records import Message

SPEC = ExactMatchTaskSpec(name="sums", answer_pattern=r"#### (-?\d+)", max_new_tokens=40)
TEXTS = (
    "First 1 - 1 = 0.\n#### 7",  # right
    "#### 3\nNo, wait.\n#### 7",  # the last match counts
    "#### 7\n#### 8",  # ... also when it is wrong
    "The answer is 7",  # no match
    "",
    "#### -7",
    "#### 77",
    "[no answer]",  # a text that spells the fallback is still no answer
)


class Scripted:
    """A sampler that says what it is told, and remembers what it was asked."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer, self._texts = tokenizer, texts
        self.asked: list[tuple[str, int, float]] = []

    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, temperature: float, seed: int
    ) -> list[list[int]]:
        self.asked = [(self._tokenizer.decode(prompt), max_new_tokens, temperature) for prompt in prompts]
        token_ids = [self._tokenizer(text, add_special_tokens=False).input_ids for text in self._texts]
        return [[*ids, self._tokenizer.eos_token_id] for ids in token_ids[: len(prompts)]]


@pytest.fixture(scope="module")
def tokenizer(run_spec: RunSpec) -> Any:
    return load_tokenizer(run_spec.student.model)


def _prompts(count: int, reference: str = "7") -> list[TaskPrompt]:
    return [TaskPrompt(f"{row:016x}", (Message("user", f"Question {row}?"),), reference) for row in range(count)]


def test_harness_agrees_with_a_plain_implementation(tokenizer: Any) -> None:
    answers = run_task(SPEC, _prompts(len(TEXTS)), Scripted(tokenizer, TEXTS), tokenizer)
    for answer, text in zip(answers, TEXTS, strict=True):
        matches = re.findall(SPEC.answer_pattern, text)
        assert answer.text == text
        assert answer.answer == (matches[-1] if matches else None)
        assert answer.is_correct == (bool(matches) and matches[-1] == "7")
    assert [answer.prompt_id for answer in answers] == [prompt.prompt_id for prompt in _prompts(len(TEXTS))]
    assert sum(answer.is_correct for answer in answers) == 2


def test_prompts_are_rendered_and_continued_greedily(tokenizer: Any) -> None:
    sampler = Scripted(tokenizer, TEXTS)
    run_task(SPEC, _prompts(2), sampler, tokenizer)
    assert all("Question" in text and (count, temperature) == (40, 0.0) for text, count, temperature in sampler.asked)


def test_limit_takes_the_first_prompts(tokenizer: Any) -> None:
    limited = SPEC.model_copy(update={"limit": 3})
    assert len(run_task(limited, _prompts(8), Scripted(tokenizer, TEXTS), tokenizer)) == 3


def test_no_prompt_with_a_reference_is_no_answer(tokenizer: Any) -> None:
    assert run_task(SPEC, [], Scripted(tokenizer, TEXTS), tokenizer) == []


def test_reference_that_spells_the_fallback_is_never_right(tokenizer: Any) -> None:
    answers = run_task(SPEC, _prompts(1, "[no answer]"), Scripted(tokenizer, ["nothing"]), tokenizer)
    assert answers[0].answer is None
    assert not answers[0].is_correct


def test_nothing_is_printed(tokenizer: Any, capfd: pytest.CaptureFixture[str]) -> None:
    run_task(SPEC, _prompts(2), Scripted(tokenizer, TEXTS), tokenizer)
    assert capfd.readouterr().err == ""

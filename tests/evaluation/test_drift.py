"""Free answers beside the teacher's, by hand."""

from typing import Any

import pytest

from proxykd.config import RunSpec
from proxykd.config.evaluation import DriftSpec
from proxykd.evaluation.drift import FREE_ANSWERS, run_drift
from proxykd.evaluation.generation import Respondent
from proxykd.evaluation.task_answers import TaskPrompt
from proxykd.models.loading import load_model, load_tokenizer
from proxykd.records import Message

SAID = {"first": "The answer is 12", "second": "I'm sorry, but I can't help with that.", "third": ""}


class Speaking:
    """A sampler that says what ``SAID`` has; the answer to the first prompt has no end."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer

    def with_stops(self, *_: Any) -> "Speaking":
        return self

    def sample(self, prompts: Any, **_: Any) -> list[list[int]]:
        asked = [self._tokenizer.decode(prompt) for prompt in prompts]
        said = [next(key for key in SAID if key in text) for text in asked]
        ids = [self._tokenizer(SAID[key], add_special_tokens=False).input_ids for key in said]
        eos = self._tokenizer.eos_token_id
        return [one if key == "first" else [*one, eos] for one, key in zip(ids, said, strict=True)]


@pytest.fixture(scope="module")
def respondent(run_spec: RunSpec) -> Respondent:
    model, tokenizer = load_model(run_spec.student.model, seed=0), load_tokenizer(run_spec.student.model)
    return Respondent(model, tokenizer, sampler=Speaking(tokenizer))


def _prompt(text: str, *teacher_texts: str, refusals: float = 0.0) -> TaskPrompt:
    return TaskPrompt(text, (Message("user", text),), "", teacher_texts, refusals)


def test_length_refusals_cuts_and_agreement_by_hand(respondent: Respondent) -> None:
    prompts = [
        _prompt("first", "It is 12.", "It is 13, I think."),
        _prompt("second", "Sure.", refusals=0.5),
        _prompt("third", "Fine."),
        _prompt("fourth, which is not asked", ""),
    ]
    spec = DriftSpec(num_prompts=3, answer_pattern=r"is (\d+)")
    first, second, third = run_drift(spec, respondent, prompts)
    assert first.sums == {
        "refusal_rate": (0.0, 1.0),
        "cut_rate": (1.0, 1.0),
        "length_ratio": (16.0, (9 + 18) / 2),
        "refusal_drift": (0.0, 1.0),
        f"answer_agreement/{FREE_ANSWERS}": (1.0, 2.0),
    }
    assert (second.sums["refusal_rate"], second.sums["refusal_drift"]) == ((1.0, 1.0), (0.5, 1.0))
    assert second.sums["cut_rate"] == (0.0, 1.0)
    assert (third.text, third.sums["length_ratio"]) == ("", (0.0, 5.0))
    assert f"answer_agreement/{FREE_ANSWERS}" not in third.sums
    assert all(one.is_correct is None for one in (first, second, third))


def test_teacher_that_said_nothing_is_compared_with_nobody(respondent: Respondent) -> None:
    (answer,) = run_drift(DriftSpec(), respondent, [_prompt("first")])
    assert answer.sums.keys() == {"refusal_rate", "cut_rate"}

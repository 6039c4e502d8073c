"""Procedural problems: the generator's own answers are right by its own rule, and nothing else is."""

from typing import Any

import pytest

from proxykd.config import RunSpec
from proxykd.config.evaluation import ReasoningGymTaskSpec
from proxykd.evaluation.generation import Respondent
from proxykd.evaluation.tasks import run_task
from proxykd.exceptions import InputError
from proxykd.models.loading import load_model, load_tokenizer

pytestmark = pytest.mark.integration


class Answering:
    """A sampler that knows every second problem's answer."""

    def __init__(self, tokenizer: Any, answers: dict[str, str]) -> None:
        self._tokenizer, self._answers = tokenizer, answers

    def with_stops(self, *_: Any) -> "Answering":
        return self

    def sample(self, prompts: Any, **_: Any) -> list[list[int]]:
        asked = [self._tokenizer.decode(prompt) for prompt in prompts]
        said = [next((answer for question, answer in self._answers.items() if question in text), "") for text in asked]
        return [self._tokenizer(f"It is {text}", add_special_tokens=False).input_ids for text in said]


@pytest.fixture
def respondent(run_spec: RunSpec) -> Respondent:
    import reasoning_gym

    model, tokenizer = load_model(run_spec.student.model, seed=0), load_tokenizer(run_spec.student.model)
    problems = reasoning_gym.create_dataset("chain_sum", size=6, seed=3, max_terms=3)
    answers = {entry["question"]: entry["answer"] for entry in list(problems)[::2]}
    return Respondent(model, tokenizer, sampler=Answering(tokenizer, answers))


def _spec(**settings: Any) -> ReasoningGymTaskSpec:
    known = {"name": "sums", "dataset": "chain_sum", "config": {"max_terms": 3}, "size": 6, "seed": 3}
    return ReasoningGymTaskSpec.model_validate({**known, "answer_pattern": r"It is (-?\d+)", **settings})


def test_right_answers_score_and_others_do_not(respondent: Respondent) -> None:
    answers = list(run_task(_spec(), respondent, ()))
    assert [answer.is_correct for answer in answers] == [True, False] * 3
    assert answers[0].sums == {"accuracy/sums": (1.0, 1.0), "score/sums": (1.0, 1.0)}
    assert answers[0].answer == answers[0].reference
    assert len({answer.prompt_id for answer in answers}) == 6


def test_problems_are_those_of_the_seed(respondent: Respondent) -> None:
    questions = [[answer.question for answer in run_task(_spec(seed=seed), respondent, ())] for seed in (3, 3, 4)]
    assert questions[0] == questions[1] != questions[2]


def test_unknown_generator_and_setting_are_named(respondent: Respondent) -> None:
    with pytest.raises(InputError, match="chain_sum"):
        list(run_task(_spec(dataset="no_such"), respondent, ()))
    with pytest.raises(InputError, match="refuses its settings"):
        list(run_task(_spec(config={"no_such": 1}), respondent, ()))

"""The embedded teacher says what its odds say."""

import math
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from proxykd.exceptions import ConfigError, InputError
from proxykd.teacher.problems import enumerate_completions, generate_prompts, sample_completion
from proxykd.teacher.stories import STORIES, draw_problem, parse_question, render_question
from proxykd.teacher.wording import SLIP_ODDS

seeds = st.integers(0, 2**32 - 1)


def _question(seed: int) -> str:
    return render_question(draw_problem(random.Random(seed)))


@given(seeds)
def test_a_question_and_its_problem_determine_each_other(seed: int) -> None:
    problem = draw_problem(random.Random(seed))
    assert parse_question(render_question(problem)) == problem


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_an_enumeration_sums_to_one_over_few_distinct_texts(seed: int) -> None:
    completions = enumerate_completions(_question(seed))
    assert math.fsum(prob for _, prob in completions) == pytest.approx(1.0, abs=1e-12)
    assert all(prob > 0.0 for _, prob in completions)
    assert len({text for text, _ in completions}) == len(completions) <= 1000


@settings(max_examples=60, deadline=None)
@given(seeds)
def test_every_text_ends_with_an_answer_and_the_right_one_is_the_likeliest(seed: int) -> None:
    question = _question(seed)
    answers: Counter[str] = Counter()
    for text, prob in enumerate_completions(question):
        assert re.search(r"\n#### \d+$", text)
        answers[text.rsplit(" ", 1)[1]] += prob  # type: ignore[assignment]
    assert answers[str(parse_question(question).answer)] > 1.0 - 2 * max(SLIP_ODDS.values())


@given(seeds)
def test_a_sample_is_one_of_the_enumerated_texts(seed: int) -> None:
    question = _question(seed)
    assert sample_completion(question, random.Random(seed)) in dict(enumerate_completions(question))


@pytest.mark.parametrize("story", STORIES)
def test_samples_follow_the_enumerated_odds(story: str) -> None:
    question = next(q for q in map(_question, range(1000)) if parse_question(q).story == story)
    completions, rng, draws = enumerate_completions(question), random.Random(7), 6000
    counts = Counter(sample_completion(question, rng) for _ in range(draws))
    frequent = [(text, prob) for text, prob in completions if prob * draws >= 5]
    rest = 1.0 - math.fsum(prob for _, prob in frequent)
    observed = [counts[text] for text, _ in frequent]
    observed.append(draws - sum(observed))
    assert chisquare(observed, [prob * draws for _, prob in frequent] + [rest * draws]).pvalue > 1e-3


def test_odds_by_hand() -> None:
    # "gift", 2 + 3: opening 1 with 0.2 (2 < 3); route "swap" 0.65; no slip 0.98; "We add:" 0.75; "So ..." 0.6.
    question = "Mia has 2 pens. Tom gives Mia 3 more. How many pens does Mia have now?"
    text = "Mia starts with 2 pens and gets 3 more.\nWe add: 3 + 2 = 5.\nSo Mia has 5 pens.\n#### 5"
    assert dict(enumerate_completions(question))[text] == pytest.approx(0.2 * 0.65 * 0.98 * 0.75 * 0.6)


def test_prompts_are_distinct_repeatable_and_a_smaller_count_is_a_prefix() -> None:
    prompts = list(generate_prompts(20_000, seed=3))
    assert len({prompt.prompt_id for prompt in prompts}) == 20_000
    assert list(generate_prompts(50, seed=3)) == prompts[:50]
    assert list(generate_prompts(50, seed=4)) != prompts[:50]
    assert {prompt.task for prompt in prompts} == {"word-problems"}
    assert all(int(p.reference or "") == parse_question(p.messages[0].content).answer for p in prompts[:500])


def test_a_question_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="reads its own word problems only"):
        enumerate_completions("What is the capital of France?")


def test_more_prompts_than_promised_are_refused() -> None:
    with pytest.raises(ConfigError, match="lower count"):
        next(generate_prompts(10**9, seed=0))

"""Exact next-token distributions: they chain to the text's probability and agree with what is sampled."""

import math
import random
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from tokenizers import Tokenizer

from proxykd.exceptions import InputError
from proxykd.teacher.build_tokenizer import EMBEDDED_FOLDER
from proxykd.teacher.problems import enumerate_completions, sample_completion
from proxykd.teacher.stories import draw_problem, render_question
from proxykd.teacher.truth import TeacherTruth


class _FastTokenizer:
    """The transformers call on the bare tokenizer."""

    def __init__(self) -> None:
        self._tokenizer = Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
        self.eos_token_id = self._tokenizer.token_to_id("<|eos|>")

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> SimpleNamespace:
        encodings = self._tokenizer.encode_batch(text, add_special_tokens=add_special_tokens)
        return SimpleNamespace(input_ids=[encoding.ids for encoding in encodings])

    def ids(self, text: str) -> list[int]:
        return [*self._tokenizer.encode(text).ids, self.eos_token_id]


_TOKENIZER = _FastTokenizer()
_TRUTH = TeacherTruth(_TOKENIZER)
_QUESTION = "Mia has 2 pens. Tom gives Mia 3 more. How many pens does Mia have now?"


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_distributions_sum_to_one_and_chain_to_the_texts_probability(seed: int) -> None:
    rng = random.Random(seed)
    question = render_question(draw_problem(rng))
    text = sample_completion(question, rng)
    ids = _TOKENIZER.ids(text)
    found = _TRUTH.next_token_probs(question, ids)
    assert len(found) == len(ids)
    for distribution in found:
        assert math.fsum(distribution.probs) == pytest.approx(1.0, abs=1e-12)
        assert (np.diff(distribution.token_ids) > 0).all()
        assert (distribution.probs > 0.0).all()
    chained = math.prod(d.probs[d.token_ids == token][0] for d, token in zip(found, ids, strict=True))
    assert chained == pytest.approx(dict(enumerate_completions(question))[text], rel=1e-9)


def test_a_distribution_agrees_with_the_frequencies_of_samples() -> None:
    rng, draws = random.Random(11), 8_000
    samples = [_TOKENIZER.ids(sample_completion(_QUESTION, rng)) for _ in range(draws)]
    prefix = samples[0][:1]
    following = Counter(ids[1] for ids in samples if ids[:1] == prefix)
    expected = _TRUTH.next_token_probs(_QUESTION, samples[0])[1]
    observed = [following[int(token)] for token in expected.token_ids]
    assert sum(observed) == following.total()
    if len(observed) > 1:
        assert chisquare(observed, expected.probs * following.total()).pvalue > 1e-3
    first = _TRUTH.next_token_probs(_QUESTION, samples[0])[0]
    counts = Counter(ids[0] for ids in samples)
    assert chisquare([counts[int(token)] for token in first.token_ids], first.probs * draws).pvalue > 1e-3


def test_the_first_token_by_hand() -> None:
    # Openings of a gift with 2 < 3: "Mia starts ..." 0.2, "There are ..." 0.2, "Tom gives ..." 0.6.
    first = _TRUTH.next_token_probs(_QUESTION, _TOKENIZER.ids("Mia starts with")[:1])[0]
    odds = dict(zip(first.token_ids.tolist(), first.probs.tolist(), strict=True))
    expected = {"Mia": 0.2, "There": 0.2, "Tom": 0.6}
    assert odds == pytest.approx({_TOKENIZER.ids(word)[0]: prob for word, prob in expected.items()})


def test_a_prefix_without_eos_is_allowed_and_eos_ends_every_text() -> None:
    ids = _TOKENIZER.ids(enumerate_completions(_QUESTION)[0][0])
    assert len(_TRUTH.next_token_probs(_QUESTION, ids[:7])) == 7
    last = _TRUTH.next_token_probs(_QUESTION, ids)[-1]
    assert last.token_ids.tolist() == [_TOKENIZER.eos_token_id]


@pytest.mark.parametrize("text", ["Mia has no idea.", "", "Mia starts with 2 pens and gets 4 more."])
def test_a_completion_that_the_teacher_cannot_say_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="expected a completion that the embedded teacher can write"):
        _TRUTH.next_token_probs(_QUESTION, _TOKENIZER.ids(text))


def test_tokens_after_the_end_are_refused() -> None:
    longest = max((text for text, _ in enumerate_completions(_QUESTION)), key=lambda text: len(_TOKENIZER.ids(text)))
    with pytest.raises(InputError):
        _TRUTH.next_token_probs(_QUESTION, [*_TOKENIZER.ids(longest), _TOKENIZER.eos_token_id])

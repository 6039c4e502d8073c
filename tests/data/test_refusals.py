"""Refusals by their opening and by a classifier."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.data.refusals import is_refusal

REFUSALS = [
    "I'm sorry, but I can't assist with that.",
    "I\u2019m sorry, but I cannot fulfill this request.",
    "I am very sorry, I can not do that.",
    "Sorry, I won't write this.",
    "I apologize, but I'm unable to share that.",
    "My apologies, but I am not able to continue.",
    "I cannot and will not help you with this.",
    "Unfortunately, I'm unable to provide the text.",
    "As an AI language model, I don't have feelings.",
    "I'm sorry, but as an AI, I have no opinion.",
    "**I must respectfully decline.**",
    '  "i can\'t help with that"',
]
ANSWERS = [
    "",
    "I can't believe it! You won.",
    "I'm sorry to hear that you are ill.",
    "I will not go gentle into that good night.",
    "Sorry is the hardest word.",
    "I am an AI, as you know.",
    "The robot said: I'm sorry, but I can't do that.",
    "Here is the letter:\nI'm sorry, but I can't come.",
    "As an aid, I suggest a list.",
]


@pytest.mark.parametrize("text", REFUSALS)
def test_refusals_are_found_by_their_opening(text: str) -> None:
    assert is_refusal(text)
    assert is_refusal(text.upper())
    assert is_refusal("\n" + text)


@pytest.mark.parametrize("text", ANSWERS)
def test_answers_are_not_refusals(text: str) -> None:
    assert not is_refusal(text)


@given(st.sampled_from(REFUSALS))
def test_a_refusal_later_in_the_text_does_not_matter(text: str) -> None:
    assert not is_refusal(f"She laughed. {text}")

"""A judge's replies: what counts as scores, that order cancels, how agreement is counted."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.evaluation.rating import Pair, Scores, consistency, points, read_scores

SCORE = st.floats(1, 10).map(lambda value: round(value, 1))
SCORES = st.builds(Scores, SCORE, SCORE)
PAIRS = st.lists(st.builds(Pair, st.text(max_size=3), st.none() | SCORES, st.none() | SCORES), max_size=12)


@given(SCORE, SCORE, st.text(max_size=60))
def test_scores_on_the_last_lines_are_read_whatever_was_said_before(one: float, other: float, explanation: str) -> None:
    assert read_scores(f"{explanation}\nScore 1: {one}\nScore 2: {other}", 2) == (one, other)


@pytest.mark.parametrize(
    "reply",
    [
        "Fine.\n**Score 1:** 8\n**Score 2:** 6",
        "Fine.\nscore 2: 6/10\nSCORE 1 = 8.0\n\n",
        "```\nScore 1: 8\nScore 2: 6.\n```",
        "- Score 1: 8\n- Score 2: **6**",
        "Score 1: 2\nScore 2: 3\nNo, I was wrong.\nScore 1: 8\nScore 2: 6",
    ],
)
def test_common_ways_of_writing_them_are_read(reply: str) -> None:
    assert read_scores(reply, 2) == (8.0, 6.0)


@pytest.mark.parametrize(
    "reply",
    [
        "",
        "The first.",
        "Score 1: 8",
        "Score 1: 8\nScore 1: 6",
        "Score 1: 8\nScore 2: 11",
        "Score 1: 0\nScore 2: 5",
        "Score 1: 8\nScore 2: nan",
        "Score 1: -8\nScore 2: 6",
        "Score 1: 8 or 9\nScore 2: 6",
        "Score 1: 8\nScore 2: 6\nBut do not rely on that.",
        "Score 1: 8 Score 2: 6",
        "Score 3: 8\nScore 2: 6",
    ],
)
def test_anything_else_is_unparsable(reply: str) -> None:
    assert read_scores(reply, 2) is None


def test_an_answer_alone_has_one_score() -> None:
    scores = read_scores("Good.\nScore 1: 7", 1)
    assert scores is not None
    assert scores.first == 7.0
    assert math.isnan(scores.second)
    assert read_scores("Good.\nScore 2: 7", 1) is None


@given(SCORE, SCORE, st.floats(0, 3))
def test_a_judge_that_favours_a_place_alone_calls_every_pair_a_tie(first: float, second: float, margin: float) -> None:
    pair = Pair("p", Scores(first, second), Scores(first, second))
    assert points(pair, margin) == 0.5


@given(SCORES, SCORES, st.floats(0, 3))
def test_exchanging_the_two_exchanges_win_and_loss(forward: Scores, backward: Scores, margin: float) -> None:
    pair = Pair("p", forward, backward)
    exchanged = Pair("p", backward, forward)
    assert points(pair, margin) + points(exchanged, margin) == 1.0


@given(PAIRS, st.floats(0, 3))
def test_one_order_alone_decides_nothing(pairs: list[Pair], margin: float) -> None:
    for pair in pairs:
        assert math.isnan(points(pair, margin)) == (pair.forward is None or pair.backward is None)
    assert consistency(pairs, margin)["num_pairs"] == sum(pair.is_judged for pair in pairs)


def test_agreement_and_the_preference_for_a_place_by_hand() -> None:
    pairs = [
        Pair("a", Scores(9, 4), Scores(3, 8)),  # the arm wins in both orders
        Pair("b", Scores(9, 4), Scores(9, 4)),  # whoever stands first wins
        Pair("c", Scores(5, 5), Scores(4, 6)),  # a tie, then a win of the arm, which stands second
        Pair("d", None, Scores(1, 2)),
    ]
    found = consistency(pairs, 0.0)
    # Points to the first place: a 1 and 0, b 1 and 1, c 0.5 and 0.
    assert found == {"num_pairs": 3, "agreement": pytest.approx(1 / 3), "first_preferred": pytest.approx(3.5 / 6)}
    assert [points(pair, 0.0) for pair in pairs[:3]] == [1.0, 0.5, 1.0]
    assert points(pairs[2], 1.0) == 0.5

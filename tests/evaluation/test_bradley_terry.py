"""Strengths: recovered from their own odds, invariant, finite; intervals that cover."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.optimize import minimize

from proxykd.evaluation.bradley_terry import PRIOR_GAMES, strength_intervals, strengths

PLAYERS = ("a", "b", "c", "d")
COUNTS = st.dictionaries(
    st.tuples(st.sampled_from(PLAYERS), st.sampled_from(PLAYERS)).filter(lambda duel: duel[0] != duel[1]),
    st.integers(0, 50),
    max_size=12,
)


def test_many_games_give_back_the_strengths_that_made_them() -> None:
    true = {"a": 1.0, "b": 0.3, "c": -0.4, "d": -0.9}
    wins = {
        (one, other): 1e6 / (1 + math.exp(true[other] - true[one]))
        for one in PLAYERS
        for other in PLAYERS
        if one != other
    }
    assert strengths(PLAYERS, wins) == pytest.approx(true, abs=1e-5)


@settings(deadline=None, max_examples=25)
@given(COUNTS)
def test_strengths_are_those_that_a_general_optimiser_finds(wins: dict[tuple[str, str], int]) -> None:
    def loss(values: NDArray[np.float64]) -> float:
        strength = dict(zip(PLAYERS, values, strict=True))
        drawn = PRIOR_GAMES / 2
        return float(
            sum(
                (wins.get((won, lost), 0) + drawn) * np.logaddexp(0, strength[lost] - strength[won])
                for won, lost in permutations(PLAYERS, 2)
            )
        )

    best = minimize(loss, np.zeros(len(PLAYERS)), tol=1e-12).x
    assert strengths(PLAYERS, wins) == pytest.approx(dict(zip(PLAYERS, best - best.mean(), strict=True)), abs=2e-3)


@settings(deadline=None, max_examples=25)
@given(COUNTS, st.permutations(PLAYERS))
def test_the_order_of_the_players_changes_nothing(wins: dict[tuple[str, str], int], order: list[str]) -> None:
    assert strengths(order, wins) == pytest.approx(strengths(PLAYERS, wins), abs=1e-6)


def test_who_won_every_game_is_the_strongest_and_finite() -> None:
    found = strengths(["a", "b"], {("a", "b"): 100})
    assert found["a"] == -found["b"]
    assert 2 < found["a"] < 10


def test_half_of_the_games_is_no_difference_and_nobody_played_is_the_prior() -> None:
    assert strengths(["a", "b", "c"], {("a", "b"): 7, ("b", "a"): 7}) == pytest.approx({"a": 0, "b": 0, "c": 0})


@pytest.mark.parametrize("wins", [{("a", "x"): 1.0}, {("a", "b"): -1.0}, {("a", "b"): math.nan}])
def test_impossible_counts_are_refused(wins: dict[tuple[str, str], float]) -> None:
    with pytest.raises(ValueError, match="expected a count"):
        strengths(["a", "b"], wins)


def test_intervals_cover_the_true_difference_about_as_often_as_they_say() -> None:
    draws, true, hits = np.random.default_rng(5), 0.8, 0
    for _ in range(120):
        won = (draws.random(150) < 1 / (1 + math.exp(-true))).astype(float)
        found = strength_intervals(["a", "b"], {("a", "b"): won}, confidence=0.9, resamples=300)
        hits += found["a"][1] <= true / 2 <= found["a"][2]
    assert 0.82 <= hits / 120 <= 0.97


def test_prompts_that_were_not_judged_are_in_no_count_and_one_prompt_gives_no_interval() -> None:
    outcomes = {("a", "b"): np.asarray([1.0, np.nan, 0.0, np.nan])}
    found = strength_intervals(["a", "b"], outcomes, confidence=0.9, resamples=50)
    assert found["a"][0] == pytest.approx(0.0, abs=1e-9)
    alone = strength_intervals(["a", "b"], {("a", "b"): np.asarray([1.0])}, confidence=0.9, resamples=50)
    assert math.isnan(alone["a"][1])


def test_who_won_every_duel_has_an_interval_that_chance_could_have_made() -> None:
    found = strength_intervals(["a", "b"], {("a", "b"): np.ones(20)}, confidence=0.9, resamples=400)
    value, low, high = found["a"]
    assert low < value <= high
    # Twenty wins of twenty rule out odds below 0.86 (Clopper and Pearson, 5 %: 0.05 ** (1 / 20)), no more.
    assert 0.6 < 1 / (1 + math.exp(-2 * low)) < 0.9
    assert found["b"] == pytest.approx((-value, -high, -low))


@pytest.mark.parametrize("true", [0.0, 1.5, 3.0])
def test_intervals_of_few_games_cover_at_least_about_as_often_as_they_say(true: float) -> None:
    draws, hits, rounds = np.random.default_rng(7), 0, 150
    for _ in range(rounds):
        won = (draws.random(20) < 1 / (1 + math.exp(-true))).astype(float)
        _, low, high = strength_intervals(["a", "b"], {("a", "b"): won}, confidence=0.9, resamples=200)["a"]
        hits += low <= true / 2 <= high
    assert hits / rounds >= 0.85

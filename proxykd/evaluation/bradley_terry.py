"""Strengths from duels (Bradley and Terry, Biometrika 39, 1952).

    P(i beats j) = exp(s_i) / (exp(s_i) + exp(s_j)),     sum_i s_i = 0

A tie counts as half a win for each. The likelihood is maximised by Newton's steps. Everyone has drawn ``PRIOR_GAMES``
games against everyone else besides, so that somebody who won every game has a finite strength, and two who never met
can be compared; with real games their weight vanishes.

Intervals come from drawing prompts. Their ends are the further of two: those of what was played, and those with one win
and one loss more in each duel, as judgements have everywhere (``statistics``). Without these, who won every game would
win every resampled one, and have no interval at all.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit

PRIOR_GAMES = 0.5
_MOST_ROUNDS = 200
_LARGEST_STEP = 1.0
_TOLERANCE = 1e-9

Wins = Mapping[tuple[str, str], float]
"""(winner, loser) -> wins, ties as halves on both sides."""


def strengths(players: Sequence[str], wins: Wins) -> dict[str, float]:
    """Strength of each player, natural-log odds, mean 0.

    Args:
        players: All of them; one who never played has strength 0.
        wins: Non-negative.

    Raises:
        ValueError: if a count is negative or not a number, or of somebody who is not among ``players``.
    """
    place, won = _places(players), np.zeros((len(players), len(players)))
    for (winner, loser), count in wins.items():
        if winner not in place or loser not in place or not 0 <= count < np.inf:
            raise ValueError(f"expected a count of wins among {', '.join(players)}, got {winner} - {loser}: {count}")
        won[place[winner], place[loser]] += count
    found = _fit(won)
    return {player: float(found[at]) for player, at in place.items()}


def strength_intervals(
    players: Sequence[str],
    outcomes: Mapping[tuple[str, str], NDArray[np.float64]],
    *,
    confidence: float,
    resamples: int,
    seed: int = 0,
) -> dict[str, tuple[float, float, float]]:
    """Strengths with percentile intervals over prompts: (value, low, high) for each player; low <= value <= high.

    Args:
        players: All of them.
        outcomes: (arm, against) -> points of the arm for each prompt, float [num_prompts] of the same prompts for all
            duels: 1, 0.5, 0, and NaN where the prompt was not judged.
        confidence: Level in (0, 1).
        resamples: Bootstrap resamples of the prompts.
        seed: Of the draws.
    """
    place, count = _places(players), len(next(iter(outcomes.values()), ()))
    values = _fit(_won(place, outcomes, np.ones((1, count))))[0]
    if count < 2:
        return {player: (float(values[at]), float("nan"), float("nan")) for player, at in place.items()}
    rng, tails, ends = np.random.default_rng(seed), [(1 - confidence) / 2, (1 + confidence) / 2], [values]
    for drawn_from in (outcomes, _with_a_win_and_a_loss(outcomes)):
        count = len(next(iter(drawn_from.values())))
        times_drawn = rng.multinomial(count, np.full(count, 1 / count), size=resamples).astype(np.float64)
        ends.extend(np.quantile(_fit(_won(place, drawn_from, times_drawn)), tails, axis=0))
    low, high = np.min(ends, axis=0), np.max(ends, axis=0)
    return {player: (float(values[at]), float(low[at]), float(high[at])) for player, at in place.items()}


def _places(players: Sequence[str]) -> dict[str, int]:
    return {player: at for at, player in enumerate(players)}


def _with_a_win_and_a_loss(
    outcomes: Mapping[tuple[str, str], NDArray[np.float64]],
) -> dict[tuple[str, str], NDArray[np.float64]]:
    """Two more prompts for each duel, on which nothing but that duel was judged."""
    more = np.full((len(outcomes), 2 * len(outcomes)), np.nan)
    for idx, row in enumerate(more):
        row[2 * idx : 2 * idx + 2] = 1.0, 0.0
    return {duel: np.concatenate([points, row]) for (duel, points), row in zip(outcomes.items(), more, strict=True)}


def _won(
    place: Mapping[str, int], outcomes: Mapping[tuple[str, str], NDArray[np.float64]], times: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Wins [resamples, players, players], each prompt counted ``times`` [resamples, num_prompts]."""
    won = np.zeros((len(times), len(place), len(place)))
    for (arm, against), points in outcomes.items():
        is_judged = ~np.isnan(points)
        wins, games = times @ np.nan_to_num(points), times @ is_judged
        won[:, place[arm], place[against]] += wins
        won[:, place[against], place[arm]] += games - wins
    return won


def _fit(won: NDArray[np.float64]) -> NDArray[np.float64]:
    """Strengths [..., players] of wins [..., players, players]."""
    count = won.shape[-1]
    smoothed = won + PRIOR_GAMES / 2 * (1 - np.eye(count))
    games, strength = smoothed + np.swapaxes(smoothed, -1, -2), np.zeros(won.shape[:-1])
    for _ in range(_MOST_ROUNDS):
        chance = expit(strength[..., :, None] - strength[..., None, :])
        gradient = (smoothed - games * chance).sum(axis=-1)
        weights = games * chance * (1 - chance)
        # The likelihood does not change when all strengths do: the added ones keep the mean where it is.
        curvature = np.eye(count) * weights.sum(axis=-1)[..., None] - weights + 1 / count
        step = np.linalg.solve(curvature, gradient[..., None])[..., 0]
        strength += np.clip(step, -_LARGEST_STEP, _LARGEST_STEP)
        if np.abs(step).max(initial=0.0) < _TOLERANCE:
            break
    return np.asarray(strength - strength.mean(axis=-1, keepdims=True), dtype=np.float64)

"""Strengths from duels (Bradley and Terry, Biometrika 39, 1952).

    P(i beats j) = exp(s_i) / (exp(s_i) + exp(s_j)),     sum_i s_i = 0

A tie counts as half a win for each. The likelihood is maximised by Hunter's minorisation (Annals of Statistics 32,
2004, equation 3). Everyone gets ``PRIOR_GAMES`` of a drawn game against a player of strength 0, so that somebody who
won every game has a finite strength; with real games its weight vanishes.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

PRIOR_GAMES = 0.5
_MOST_ROUNDS = 10_000
_TOLERANCE = 1e-10

Wins = Mapping[tuple[str, str], float]
"""(winner, loser) -> wins, ties as halves on both sides."""


def strengths(players: Sequence[str], wins: Wins) -> dict[str, float]:
    """Strength of each player, natural-log odds, mean 0.

    Args:
        players: All of them; one who never played has the prior's strength.
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
    """Strengths with percentile intervals over prompts: (value, low, high) for each player.

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
    times_drawn = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    low, high = np.quantile(_fit(_won(place, outcomes, times_drawn.astype(np.float64))), tails, axis=0)
    return {player: (float(values[at]), float(low[at]), float(high[at])) for player, at in place.items()}


def _places(players: Sequence[str]) -> dict[str, int]:
    return {player: at for at, player in enumerate(players)}


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
    games, total = won + np.swapaxes(won, -1, -2), won.sum(axis=-1) + PRIOR_GAMES / 2
    odds = np.ones(won.shape[:-1])
    for _ in range(_MOST_ROUNDS):
        expected = (games / (odds[..., :, None] + odds[..., None, :])).sum(axis=-1) + PRIOR_GAMES / (odds + 1.0)
        renewed = total / expected
        change = np.abs(np.log(renewed / odds)).max(initial=0.0)
        odds = renewed
        if change < _TOLERANCE:
            break
    logs = np.log(odds)
    return np.asarray(logs - logs.mean(axis=-1, keepdims=True), dtype=np.float64)

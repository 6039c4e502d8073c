"""McNemar's exact test: two models on the same questions, each answer right or wrong.

Only questions that one of the two gets right and the other wrong say anything. If neither is better, each of the
m = wins + losses of them is a fair coin, so the one-sided p of no improvement is

    P(Bin(m, 1/2) >= wins).

References: McNemar, Note on the sampling error of the difference between correlated proportions (1947).
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import bdtrc

_NUM_HALVINGS = 20


def mcnemar_p_value(wins: int, losses: int) -> float:
    """One-sided exact p that the first model is no better; 1 where the two never differ.

    Args:
        wins: Questions that the first model alone gets right.
        losses: Questions that the other model alone gets right.

    Example:
        >>> mcnemar_p_value(5, 0)
        0.03125
    """
    from scipy.stats import binomtest  # half a second, and whoever submits a run has no use for it

    return float(binomtest(wins, wins + losses, 0.5, alternative="greater").pvalue) if wins + losses else 1.0


def mcnemar_power(effect: float, *, num_questions: int, discordance: float, level: float) -> float:
    """How often the test finds a true difference.

    Args:
        effect: True difference of the two accuracies, in [0, 1].
        num_questions: Questions that both are asked.
        discordance: Share of them on which the two differ; at least ``effect``.
        level: One-sided level.
    """
    from scipy.stats import binom

    share = max(discordance, effect)
    if share <= 0.0:
        return 0.0
    spread = 10.0 * np.sqrt(num_questions * share) + 10.0
    first, last = int(max(0.0, num_questions * share - spread)), int(min(num_questions, num_questions * share + spread))
    differing = np.arange(first, last + 1)
    needed = _fewest_wins(num_questions, level)[first : last + 1]
    rejects = np.where(
        needed > differing, 0.0, bdtrc(np.minimum(needed - 1, differing), differing, (1 + effect / share) / 2)
    )
    return float(np.sum(binom.pmf(differing, num_questions, share) * rejects))


@lru_cache(maxsize=64)
def _fewest_wins(last: int, level: float) -> NDArray[np.float64]:
    """Fewest wins among m = 0 ... last that reject: the smallest k with P(Bin(m, 1/2) > k - 1) <= level."""
    from scipy.stats import binom

    return np.asarray(binom.isf(level, np.arange(last + 1), 0.5) + 1.0)


@lru_cache(maxsize=4096)
def mcnemar_mde(num_differing: int, num_questions: int, *, level: float, power: float) -> float:
    """Smallest true difference of the accuracies that the test would find with ``power``; NaN if none would be.

    The share of questions on which the two differ is taken from the data, with one more win and one more loss, so that
    two models which never differed are not credited with certainty.

    Args:
        num_differing: Wins and losses together.
        num_questions: Questions that both were asked.
        level: One-sided level.
        power: Wanted, in (0, 1).
    """
    discordance = min(1.0, (num_differing + 2) / (num_questions + 2))

    def reached(effect: float) -> bool:
        return mcnemar_power(effect, num_questions=num_questions, discordance=discordance, level=level) >= power

    if not reached(1.0):
        return float("nan")
    low, high = 0.0, 1.0
    for _ in range(_NUM_HALVINGS):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high

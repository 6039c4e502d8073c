"""Probabilities -> whole levels, as coarse as an upper bound on the KL allows, row by row.

A row (p_1 ... p_k and the tail's mass) is kept as levels n_i = round(sqrt(p_i) / s), and comes back as
q_i = n_i**2 / sum_j n_j**2 (0.09 in place of 0**2). A step in sqrt(p) is the right one: an error d in sqrt(p_i) costs
KL(p || q) about 2 d**2 whatever p_i is, so equal steps spend the same on every token, and with errors spread evenly
over a step the row's KL is about (k + 1) s**2 / 6. In log p the same error is s / sqrt(p_i): small probabilities,
which hardly matter to the KL, are kept coarsely, and large ones finely.

``STEPS`` steps stand to choose from, a fourth root of 2 apart; the coarsest whose KL, computed exactly, is within the
bound is taken. Rows of counts (samples of a distribution) need none of this: their levels are the counts themselves.
"""

import math
from fractions import Fraction
from math import floor, isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxykd.targets.kernels import compiled, weight_of

STEPS = 32
_PER_OCTAVE = 4
_FIRST_OCTAVES = 3


def step_sizes(k: int, max_kl: float) -> NDArray[np.float64]:
    """The steps s in sqrt(p), coarsest first, for rows of ``k`` tokens and a bound of ``max_kl`` nats."""
    expected = math.sqrt(6.0 * max_kl / (k + 1))
    return expected * 2.0 ** (_FIRST_OCTAVES - np.arange(STEPS) / _PER_OCTAVE)


def step_masses(k: int, max_kl: float) -> NDArray[np.int64]:
    """1 / s**2 of each step, rounded, half up: about what the squares of a row's levels add up to, int64 [steps].

    They steer the decoder, so they are computed in whole numbers: a power in floating point may come out otherwise on
    another processor, and some of these lie at a half.
    """
    square = (Fraction(k + 1) / (6 * Fraction(max_kl))) ** 2
    doubled = [isqrt(floor(4 * square * Fraction(2) ** (step - 4 * _FIRST_OCTAVES))) for step in range(STEPS)]
    return np.asarray([(one + 1) // 2 for one in doubled], np.int64)


@compiled
def quantise(
    logprobs: Any, tail_logprob: Any, sizes: Any, max_kl: Any, levels: Any, steps: Any, tails: Any, kls: Any
) -> Any:
    """Levels of rows; ``kls`` gets what each loses, KL(given || kept) in nats.

    Args:
        logprobs: float32 [length, k], unused slots last in the row at -inf.
        tail_logprob: float32 [length]; -inf = no tail.
        sizes: float64 [steps], coarsest first.
        max_kl: Bound on every row's KL, nats.
        levels: int32 [length, k], filled; 0 where unused.
        steps: int32 [length], filled.
        tails: int32 [length], filled: the tail's level + 1, or 0 for none.
        kls: float64 [length], filled.

    Returns:
        The first row for which even the finest step is too coarse, or -1.
    """
    length, k = logprobs.shape
    probs, logs = np.empty(k + 1), np.empty(k + 1)
    start = 4 * 3
    for row in range(length):
        total = 0.0
        for j in range(k + 1):
            log = logprobs[row, j] if j < k else tail_logprob[row]
            probs[j] = math.exp(log) if log > -math.inf else 0.0
            logs[j] = log
            total += probs[j]
        log_total = math.log(total)
        for j in range(k + 1):
            probs[j] /= total
            logs[j] -= log_total
        step, good = start, -1
        kl = _kl_at(probs, logs, sizes[step])
        while kl <= max_kl:
            good, kls[row] = step, kl
            if step == 0:
                break
            step -= 1
            kl = _kl_at(probs, logs, sizes[step])
        step = start
        while good < 0:
            step += 1
            if step == len(sizes):
                return row
            kl = _kl_at(probs, logs, sizes[step])
            if kl <= max_kl:
                good, kls[row] = step, kl
        start, steps[row] = good, good
        for j in range(k):
            levels[row, j] = int(math.sqrt(probs[j]) / sizes[good] + 0.5)
        tails[row] = int(math.sqrt(probs[k]) / sizes[good] + 0.5) + 1 if probs[k] > 0.0 else 0
    return -1


@compiled
def _kl_at(probs: Any, logs: Any, size: Any) -> Any:
    """KL in nats between a row and what it becomes with a step."""
    total, kl = 0.0, 0.0
    for j in range(len(probs)):
        if probs[j] > 0.0:
            weight = weight_of(int(math.sqrt(probs[j]) / size + 0.5), 2)
            total += weight
            kl += probs[j] * (logs[j] - math.log(weight))
    return kl + math.log(total)

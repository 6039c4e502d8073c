"""How often each unit is drawn in a resample, compiled: random words -> counts.

A word w of 32 bits becomes a unit by multiplication, (w * n) >> 32, which favours none once the words whose product
ends in less than 2^32 mod n are left out (Lemire, Fast random integer generation in an interval, 2019, algorithm 5).

This module knows arrays alone; numba compiles it when first used and keeps the result on disk.
"""

import numpy as np
from numpy.typing import NDArray

from proxykd.compiling import compiled

_WORD = np.uint64(32)
_LOW = np.uint64(2**32 - 1)


def num_words(num_units: int) -> int:
    """How many words one resample is given: one a unit, and more than will be left out (n^2 / 2^32 on average)."""
    return num_units + 64 + 2 * num_units**2 // 2**32


@compiled
def count_draws(words: NDArray[np.uint32], counts: NDArray[np.float64]) -> None:
    """Add a resample to the counts.

    Args:
        words: Random, uint32 [``num_words``].
        counts: Of each unit, float64 [num_units]; added to, ``num_units`` in all.
    """
    num_units = np.uint64(len(counts))
    least = np.uint64(2**32) % num_units
    spare, used = len(words) - len(counts), 0
    for _ in range(len(counts)):
        product = np.uint64(words[used]) * num_units
        used += 1
        while (product & _LOW) < least and spare > 0:
            product = np.uint64(words[used]) * num_units
            used += 1
            spare -= 1
        counts[product >> _WORD] += 1.0

"""A set of hashes in fixed memory that may be wrong in one direction: a Bloom filter (Bloom 1970) of two bits a hash.

What it says is absent is absent; of what it says may be present, a share of about (2 n / 2^27)^2 is absent after n
hashes: 2 in 1000 after three million.
"""

import numpy as np
from numpy.typing import NDArray

_BITS = 27
_MASK = np.uint64(2**_BITS - 1)


class HashFilter:
    """Which hashes may have been added; 16 MiB, picklable.

    Hashes are expected to be uniform in all 64 bits.
    """

    def __init__(self) -> None:
        self._bits = np.zeros(2 ** (_BITS - 3), np.uint8)

    def add(self, hashes: NDArray[np.uint64]) -> None:
        """Add hashes, uint64 [n]."""
        for slots in (hashes & _MASK, hashes >> np.uint64(64 - _BITS)):
            np.bitwise_or.at(self._bits, slots >> np.uint64(3), _bit(slots))

    def may_hold(self, hashes: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Whether each hash may have been added, bool [n]; false is certain."""
        found = self._looks_set(hashes & _MASK)
        if len(suspects := np.flatnonzero(found)):
            found[suspects] = self._looks_set(hashes[suspects] >> np.uint64(64 - _BITS))
        return found

    def _looks_set(self, slots: NDArray[np.uint64]) -> NDArray[np.bool_]:
        found: NDArray[np.bool_] = (self._bits[slots >> np.uint64(3)] & _bit(slots)) != 0
        return found


def _bit(slots: NDArray[np.uint64]) -> NDArray[np.uint8]:
    return np.left_shift(np.uint8(1), (slots & np.uint64(7)).astype(np.uint8))

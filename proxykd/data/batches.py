"""The hashes of many texts at once: what ``proxykd.data.quality`` says of one, in a few array operations.

The words of all texts stand in one array, one text after the other; a run of words counts where it begins and ends in
the same text. Results are the same as text by text.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.data.quality import (
    NUM_HASHES,
    SHINGLE_WORDS,
    hash_runs,
    hash_shingles,
    hash_words,
    minhash,
    shingles_from,
)

_CHUNK = 256


class Ragged(NamedTuple):
    """Hashes of several texts, one after the other.

    Attributes:
        values: uint64 [sum of counts].
        counts: int64 [texts], how many belong to each text.
    """

    values: NDArray[np.uint64]
    counts: NDArray[np.int64]

    @property
    def starts(self) -> NDArray[np.int64]:
        """Where each text's values begin, int64 [texts]."""
        return np.cumsum(self.counts) - self.counts

    def select(self, chosen: NDArray[np.bool_]) -> list[NDArray[np.uint64]]:
        """The values of each text at which ``chosen``, bool [sum of counts], is true."""
        ends = np.concatenate([[0], np.cumsum(chosen)])[np.cumsum(self.counts)]
        return np.split(self.values[chosen], ends[:-1])[: len(self.counts)]


def words_of_all(texts: Sequence[str]) -> Ragged:
    """A hash of every word of every text."""
    words = [hash_words(text) for text in texts]
    counts = np.array([len(item) for item in words], np.int64)
    return Ragged(np.concatenate(words) if words else np.zeros(0, np.uint64), counts)


def runs_of_all(words: Ragged, num_words: int) -> Ragged:
    """A hash of every run of ``num_words`` words within each text, as ``quality.hash_runs`` gives them."""
    runs = hash_runs(words.values, num_words)
    counts = np.maximum(words.counts - num_words + 1, 0)
    starts = words.starts - (np.cumsum(counts) - counts)  # of a text's first run, less the runs before it
    return Ragged(runs[np.repeat(starts, counts) + np.arange(counts.sum())], counts)


def signatures_of_all(words: Ragged, texts: Sequence[str]) -> NDArray[np.uint32]:
    """The MinHash of the shingles of each text, as ``quality.minhash`` gives them, uint32 [texts, NUM_HASHES]."""
    signatures = np.empty((len(texts), NUM_HASHES), np.uint32)
    shingles = runs_of_all(words, SHINGLE_WORDS)
    is_short, starts, word_starts = shingles.counts == 0, shingles.starts, words.starts
    for idx in np.flatnonzero(is_short).tolist():
        own = words.values[word_starts[idx] :][: words.counts[idx]]
        signatures[idx] = minhash(shingles_from(own, texts[idx]))
    hashed = np.empty((len(shingles.values), NUM_HASHES), np.uint32)
    for start in range(0, len(hashed), _CHUNK):
        hashed[start : start + _CHUNK] = hash_shingles(shingles.values[start : start + _CHUNK])
    if len(hashed):
        signatures[~is_short] = np.minimum.reduceat(hashed, starts[~is_short], axis=0)
    return signatures

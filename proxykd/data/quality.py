r"""The words that run through a text, as hashes.

A text is the set S of its word n-grams (shingles). Two texts are near duplicates by their Jaccard similarity

    J(A, B) = |S_A & S_B| / |S_A | S_B|

estimated by MinHash (Broder 1997): under a random hash, the smallest values of S_A and S_B agree with probability
J, so over ``NUM_HASHES`` independent hashes the share of agreements is an unbiased estimate of J with the standard
error sqrt(J (1 - J) / NUM_HASHES), at most 0.045. Cut into b bands of r values, two signatures agree in a whole band
with probability 1 - (1 - J^r)^b; ``choose_rows_per_band`` picks r for a threshold.

Nothing here knows files or other rows; ``proxykd.data.duplicates`` compares rows.
"""

import re
import zlib
from enum import StrEnum
from functools import cache

import numpy as np
from numpy.typing import NDArray

NUM_HASHES = 128
"""Values in a signature."""

SHINGLE_WORDS = 5
"""Words in a shingle of a prompt."""

# Scripts that put no spaces between words: there, each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)
_BETWEEN_ASCII_WORDS = bytes(code if _ASCII_WORD.match(chr(code)) else 32 for code in range(128)) + bytes(128)

_CHUNK = 512
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


class Verdict(StrEnum):
    """What validation makes of a row: keep, or the first rule that it broke and that drops, in this order."""

    KEEP = "keep"
    FAILED = "failed"
    FILTERED = "filtered"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    CUT_OFF = "cut_off"
    EMPTY = "empty"
    TOO_SHORT = "too_short"
    TOO_LONG = "too_long"
    DAMAGED = "damaged"
    OTHER_LANGUAGE = "other_language"
    SECRET = "secret"
    PERSONAL_DATA = "personal_data"
    UNVERIFIED = "unverified"
    DUPLICATE = "duplicate"
    NEAR_DUPLICATE = "near_duplicate"
    OVERLAP = "overlap"


def words_of(text: str) -> list[str]:
    """The words of ``text`` in lower case, without punctuation.

    Example:
        >>> words_of("Don't panic: it's 42, 東京!")
        ['don', 't', 'panic', 'it', 's', '42', '東', '京']
    """
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text.lower())


def hash_words(text: str) -> NDArray[np.uint64]:
    """A hash (CRC-32) of every word of ``text``, uint64 [words], in order."""
    return np.fromiter(map(zlib.crc32, _encoded_words(text)), np.uint64)


def hash_runs(words: NDArray[np.uint64], num_words: int) -> NDArray[np.uint64]:
    """A hash of every run of ``num_words`` words.

    Args:
        words: As ``hash_words`` gives them, uint64 [words].
        num_words: Words in a run, >= 1.

    Returns:
        uint64 [max(0, words - num_words + 1)], in the text's order; equal runs have equal hashes.
    """
    num_runs = max(0, len(words) - num_words + 1)
    # The polynomial sum_j word_j m^(n - 1 - j) of every run, put together from those of 1, 2, 4, ... words.
    runs, start, block, size, power = np.zeros(num_runs, np.uint64), num_words, words, 1, int(_MULTIPLIER)
    scale = 1
    while num_runs:
        if num_words & size:
            start -= size
            runs = runs + block[start : start + num_runs] * np.uint64(scale)
            scale = scale * power % 2**64
        if 2 * size > num_words:
            break
        block = block[:-size] * np.uint64(power) + block[size:]
        size, power = 2 * size, power * power % 2**64
    return _mix(runs)


def hash_word_runs(text: str, num_words: int) -> NDArray[np.uint64]:
    """A hash of every run of ``num_words`` words of ``text``, as ``hash_runs`` gives them."""
    return hash_runs(hash_words(text), num_words)


def shingles_of(text: str, num_words: int = SHINGLE_WORDS) -> NDArray[np.uint64]:
    """The set of a text's shingles as hashes.

    Args:
        text: Any text.
        num_words: Words in a shingle; a shorter text is one shingle, of all its words.

    Returns:
        uint64 [num_shingles], sorted, distinct, at least one.
    """
    return shingles_from(hash_words(text), text, num_words)


def shingles_from(words: NDArray[np.uint64], text: str, num_words: int = SHINGLE_WORDS) -> NDArray[np.uint64]:
    """As ``shingles_of``, where the ``words`` of ``text`` are hashed already."""
    if not len(words):
        return np.array([zlib.crc32(text.strip().encode(errors="replace"))], np.uint64)
    return np.unique(hash_runs(words, min(num_words, len(words))))


def jaccard(one: NDArray[np.uint64], other: NDArray[np.uint64]) -> float:
    """|one & other| / |one | other| of two sets as ``shingles_of`` gives them, in [0, 1]."""
    num_shared = len(np.intersect1d(one, other, assume_unique=True))
    return num_shared / (len(one) + len(other) - num_shared)


def minhash(shingles: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """The signature of a set: its smallest value under each of ``NUM_HASHES`` fixed hashes.

    Args:
        shingles: uint64 [num_shingles], at least one.

    Returns:
        uint32 [NUM_HASHES].
    """
    smallest = np.full(NUM_HASHES, 0xFFFFFFFF, np.uint32)
    for start in range(0, len(shingles), _CHUNK):
        smallest = np.minimum(smallest, hash_shingles(shingles[start : start + _CHUNK]).min(axis=0))
    return smallest


def hash_shingles(shingles: NDArray[np.uint64]) -> NDArray[np.uint32]:
    """Every shingle under each of the ``NUM_HASHES`` hashes of ``minhash``, uint32 [num_shingles, NUM_HASHES]."""
    hashed = _mix(shingles[:, None] ^ _SALTS[None, :])
    hashed >>= np.uint64(32)
    return hashed.astype(np.uint32)


def similarity(one: NDArray[np.uint32], others: NDArray[np.uint32]) -> NDArray[np.float64]:
    """The Jaccard similarity of a set to others, estimated from their signatures.

    Args:
        one: uint32 [NUM_HASHES].
        others: uint32 [num_others, NUM_HASHES].

    Returns:
        float64 [num_others], in [0, 1].
    """
    agreements: NDArray[np.float64] = np.mean(one == others, axis=-1, dtype=np.float64)
    return agreements


@cache
def choose_rows_per_band(threshold: float) -> int:
    """Values in a band such that pairs at ``threshold`` share a band with probability >= 0.99 (1 at least).

    The largest such number: it makes the fewest candidates below the threshold.

    Args:
        threshold: Similarity in [0, 1].
    """
    for rows in range(NUM_HASHES // 2, 1, -1):
        if (1.0 - threshold**rows) ** (NUM_HASHES // rows) <= 0.01:
            return rows
    return 1


def hash_bands(signatures: NDArray[np.uint32], rows_per_band: int) -> NDArray[np.uint64]:
    """A hash of each band of each signature.

    Args:
        signatures: uint32 [..., NUM_HASHES].
        rows_per_band: Values in a band; values that fill no band are left out.

    Returns:
        uint64 [..., NUM_HASHES // rows_per_band]; equal at a position exactly where the bands are equal.
    """
    num_bands = NUM_HASHES // rows_per_band
    bands = signatures[..., : num_bands * rows_per_band].astype(np.uint64)
    bands = bands.reshape(*signatures.shape[:-1], num_bands, rows_per_band)
    hashes = np.broadcast_to(np.arange(num_bands, dtype=np.uint64), bands.shape[:-1])
    for row in range(rows_per_band):
        hashes = _mix(hashes + bands[..., row] + np.uint64(1))
    return hashes


def _encoded_words(text: str) -> list[bytes]:
    """``words_of`` in UTF-8; ASCII, most of what there is, in a third of the time."""
    if text.isascii():
        return text.lower().encode().translate(_BETWEEN_ASCII_WORDS).split()
    return "\n".join(words_of(text)).encode(errors="replace").split()


def _mix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    # The finaliser of SplitMix64: a bijection of the 64-bit integers in which every input bit moves every output bit.
    values = values ^ (values >> np.uint64(30))
    values *= np.uint64(0xBF58476D1CE4E5B9)
    values ^= values >> np.uint64(27)
    values *= np.uint64(0x94D049BB133111EB)
    values ^= values >> np.uint64(31)
    return values


_SALTS = _mix(np.arange(1, NUM_HASHES + 1, dtype=np.uint64) * _MULTIPLIER)

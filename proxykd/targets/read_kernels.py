"""Compiled: words -> a sample's rows (``read_rows``); the mirror of ``write_kernels``."""

import math
from typing import Any

import numpy as np

from proxykd.targets.kernels import (
    END_VALUE,
    ESCAPED,
    FIELD_LEAST,
    FIELD_MISSING,
    FIELD_NEXT,
    FIELD_OTHER,
    FIELD_STEP,
    FIELD_TAIL,
    LOWER,
    NOTHING,
    SCALE_BITS,
    TABLE_SHIFT,
    compiled,
    inlined,
    level_context,
    mass_of,
)

_SLOTS = (1 << SCALE_BITS) - 1
_TOKEN = (1 << TABLE_SHIFT) - 1


@inlined
def pull(table: Any, state: Any, words: Any, at: Any, way: Any, slots: Any) -> Any:
    """One number; ``words`` are taken from ``at``, ``way`` (1 or -1) onwards. END and what is escaped are >= ESCAPED.

    No branch: whether a word is due and how many plain bits there are is as good as chance, and a wrong guess costs
    more than the arithmetic. Indices are unsigned, or numba would allow for negative ones.
    """
    entry = slots[np.uint64((np.int64(table) << SCALE_BITS) | (state & _SLOTS))]
    state = (entry & 0x7FF) * (state >> SCALE_BITS) + ((entry >> 11) & 0x3FF)
    num_bits = (entry >> 21) & 31
    value = (entry >> 26) + (state & ((np.int64(1) << num_bits) - 1))
    state >>= num_bits
    due = np.int64(state < LOWER)
    state = (state << (due << 5)) | (np.int64(words[np.uint64(at)]) & -due)
    return value, state, at + way * due


@inlined
def pull_plain(table: Any, state: Any, words: Any, at: Any, way: Any, slots: Any) -> Any:
    """``pull`` where there is no END: the number itself, escaped or not."""
    value, state, at = pull(table, state, words, at, way, slots)
    return value & (ESCAPED - 1), state, at


@compiled
def read_rows(
    words: Any, guard: Any, masses: Any, power: Any, reader: Any, scratch: Any, log_weights: Any,
    ids: Any, logprobs: Any, tail: Any, text: Any,
) -> Any:  # fmt: skip
    """Rows from words; the mirror of ``write_rows`` and ``pack``.

    Args:
        words: uint32 [guard + num_words + guard].
        guard: ``guard_words(k)``: room on both sides into which damaged words can lead, but no farther.
        masses: As for ``write_rows``.
        power: As for ``write_rows``.
        reader: ``Tables.reader``: entries, where the list of each context begins in them, slots.
        scratch: float64 [k], and int64 [k + 1], 65536 / n rounded down at n.
        log_weights: float64 [levels], log of what a level stands for, up to a factor shared by the row.
        ids: int32 [length, k], filled.
        logprobs: float32 [length, k], filled.
        tail: float32 [length], filled.
        text: int32 [length], filled.

    Returns:
        Whether every word was used and both streams ended where they began: false for damaged words.
    """
    entries, list_starts, slots = reader
    logs, reciprocals = scratch
    k, vocab_size = np.int64(ids.shape[1]), np.int64(len(list_starts) - 1)
    last, a, b = vocab_size, np.int64(guard + 2), np.int64(len(words) - guard - 3)
    first = (np.int64(words[a - 2] & 0x7FFFFFFF) << 32) | np.int64(words[a - 1])
    second = (np.int64(words[b + 2] & 0x7FFFFFFF) << 32) | np.int64(words[b + 1])
    for row in range(len(ids)):
        if a > len(words) - guard or b < guard - 1:
            return False
        missing, first, a = pull_plain(FIELD_MISSING, first, words, a, 1, slots)
        step, second, b = pull_plain(FIELD_STEP, second, words, b, -1, slots)
        if missing > k or step >= len(masses):
            return False
        coarse = min(step // 4, 7)
        tail_level, second, b = pull_plain(FIELD_TAIL + coarse, second, words, b, -1, slots)
        least, second, b = pull_plain(FIELD_LEAST + coarse, second, words, b, -1, slots)
        m = k - missing
        left = masses[step] - m * mass_of(least, power)
        if tail_level:
            left -= mass_of(tail_level - 1, power)
        best, mass, num_zero, first, a, second, b = _pull_tokens(
            m, least, left, power, first, a, second, b, words, slots, entries, np.int64(list_starts[last]),
            reciprocals, log_weights, ids[row], logs,
        )  # fmt: skip
        if best < 0:
            return False
        tail[row] = _to_logprobs(logs, m, mass, num_zero, tail_level, power, log_weights, logprobs[row])
        for j in range(m, k):
            ids[row, j] = -1
        which, first, a = pull_plain(FIELD_NEXT, first, words, a, 1, slots)
        if which >= m + 2:
            return False
        last = np.int64(ids[row, which - 2]) if which > 1 else np.int64(ids[row, best]) if m else vocab_size
        if which == 1:
            other, first, a = pull_plain(FIELD_OTHER, first, words, a, 1, slots)
            if other >= vocab_size:
                return False
            last = np.int64(entries[other] & _TOKEN)
        text[row] = last if last < vocab_size else -1
    return first == LOWER and second == LOWER and a == b + 1


@inlined
def _pull_tokens(
    m: Any, least: Any, left: Any, power: Any, first: Any, a: Any, second: Any, b: Any, words: Any, slots: Any,
    entries: Any, begin: Any, reciprocals: Any, log_weights: Any, tokens: Any, logs: Any,
) -> Any:  # fmt: skip
    """The mirror of ``_put_tokens``: which token is the likeliest (-1: damage), the masses' sum, how many are 0."""
    limit, least_mass = np.int64(len(entries) - 1), mass_of(least, power)
    best, mass, num_zero = np.int64(-1), np.int64(0), np.int64(0)
    table = np.int64(entries[np.uint64(begin)] >> TABLE_SHIFT)
    for j in range(m):
        gap, first, a = pull(table, first, words, a, 1, slots)
        place = begin + gap
        if place >= limit:
            place, first, a = _unusual(gap, begin, limit, first, a, words, slots, entries)
            if place < 0:
                return np.int64(-1), mass, num_zero, first, a, second, b
        over, second, b = pull_plain(level_context(left, reciprocals[m - j]), second, words, b, -1, slots)
        level = least + over
        tokens[j] = np.int64(entries[np.uint64(place)]) & _TOKEN
        begin = place + 1
        table = np.int64(entries[np.uint64(begin)]) >> TABLE_SHIFT
        level_mass = mass_of(level, power)
        left -= level_mass - least_mass
        mass += level_mass
        num_zero += np.int64(level == 0)
        best = max(best, (level << 32) | (m - j))
        logs[j] = log_weights[np.uint64(level)] if level < len(log_weights) else power * math.log(level)
    return (m - (best & 0xFFFFFFFF)) if m else np.int64(0), mass, num_zero, first, a, second, b


@compiled
def _unusual(gap: Any, begin: Any, limit: Any, state: Any, at: Any, words: Any, slots: Any, entries: Any) -> Any:
    """The place that END or an escaped gap leads to; -1: damage."""
    if gap == END_VALUE:
        table = np.int64(entries[0] >> TABLE_SHIFT)
        begin = np.int64(0)
        gap, state, at = pull(table, state, words, at, 1, slots)
    place = begin + (gap & (ESCAPED - 1))
    return place if place < limit else np.int64(-1), state, at


@inlined
def _to_logprobs(
    logs: Any, m: Any, mass: Any, num_zero: Any, tail_level: Any, power: Any, log_weights: Any, logprobs: Any
) -> Any:
    """Fill a row's log-probabilities from logs of weights; returns the tail's."""
    if tail_level:
        mass += mass_of(tail_level - 1, power)
        num_zero += np.int64(tail_level == 1)
    total = mass + NOTHING * num_zero
    log_total = math.log(total) if total > 0.0 else 0.0
    for j in range(m):
        logprobs[j] = logs[j] - log_total
    for j in range(m, len(logprobs)):
        logprobs[j] = -math.inf
    if not tail_level:
        return -math.inf
    level = tail_level - 1
    return (log_weights[level] if level < len(log_weights) else power * math.log(level)) - log_total


def guard_words(k: int) -> int:
    """Words that one row can take from a stream at most: one a number; two numbers a token and a few more.

    Sound rows say END once; damaged ones might before every gap.
    """
    return 2 * k + 16

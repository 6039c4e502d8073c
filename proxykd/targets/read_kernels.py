"""Compiled: words -> a sample's rows (``read_rows``); the mirror of ``write_kernels``."""

import math
from typing import Any

import numpy as np

from proxykd.targets.kernels import (
    COARSE_BITS,
    END,
    ESCAPE,
    FIELD_LEAST,
    FIELD_MISSING,
    FIELD_NEXT,
    FIELD_OTHER,
    FIELD_STEP,
    FIELD_TAIL,
    LIST_ZONES,
    NUM_SYMBOLS,
    SCALE_BITS,
    build_candidates,
    compiled,
    gap_context,
    inlined,
    level_context,
    mass_of,
    weight_of,
    zone_of_rank,
)

_LOWER = 1 << 16
_SLOTS = 1 << SCALE_BITS


@compiled
def _pull_bits(state: Any, num_bits: Any, words: Any, at: Any, way: Any) -> Any:
    value, low = np.int64(0), min(num_bits, 12)
    value = state & ((1 << low) - 1)
    state >>= low
    if state < _LOWER:
        state, at = (state << 16) | np.int64(words[at]), at + way
    if num_bits > 12:
        high = num_bits - 12
        value |= (state & ((1 << high) - 1)) << 12
        state >>= high
        if state < _LOWER:
            state, at = (state << 16) | np.int64(words[at]), at + way
    return value, state, at


@inlined
def pull(context: Any, state: Any, words: Any, at: Any, way: Any, symbol_at: Any, slots: Any) -> Any:
    """One number from a context, END as -1; ``words`` are taken from ``at``, ``way`` (1 or -1) onwards.

    Damage may make the two streams run into each other or past the ends, where guard words lie; the caller sees it by
    where they stop.
    """
    slot = state & (_SLOTS - 1)
    symbol = np.int64(symbol_at[(context << COARSE_BITS) | (slot >> (SCALE_BITS - COARSE_BITS))])
    packed = np.int64(slots[context * NUM_SYMBOLS + symbol])
    while slot >= (packed >> 16) + (packed & 0xFFFF):
        symbol += 1
        packed = np.int64(slots[context * NUM_SYMBOLS + symbol])
    state = (packed >> 16) * (state >> SCALE_BITS) + slot - (packed & 0xFFFF)
    # Without a branch: whether a word is due is as good as chance, and a wrong guess costs more than the arithmetic.
    due = np.int64(state < _LOWER)
    state = (state << (due << 4)) | (np.int64(words[at]) & -due)
    at += way * due
    if symbol < 16:
        return symbol, state, at
    return _rest(symbol, state, words, at, way)


@compiled
def _rest(symbol: Any, state: Any, words: Any, at: Any, way: Any) -> Any:
    if symbol == ESCAPE:
        symbol, state, at = _pull_bits(state, np.int64(7), words, at, way)
        if symbol < 16:
            return symbol, state, at
    if symbol >= END:
        return np.int64(-1), state, at
    num_bits = ((symbol - 16) >> 2) + 2
    bits, state, at = _pull_bits(state, num_bits, words, at, way)
    return ((4 + ((symbol - 16) & 3)) << num_bits) + bits, state, at


@compiled
def read_rows(
    words: Any,
    guard: Any,
    masses: Any,
    power: Any,
    model: Any,
    symbol_at: Any,
    slots: Any,
    scratch: Any,
    log_weights: Any,
    ids: Any,
    logprobs: Any,
    tail: Any,
    text: Any,
) -> Any:
    """Rows from words; the mirror of ``write_rows`` and ``pack``.

    Args:
        words: uint16 [guard + num_words + guard].
        guard: ``guard_words(k)``: room on both sides into which damaged words can lead, but no farther.
        masses: As for ``write_rows``.
        power: As for ``write_rows``.
        model: As for ``write_rows``.
        symbol_at: uint8 [contexts * 2**COARSE_BITS], the symbol at the first of so many slots each.
        slots: uint32 [contexts * symbols], width << 16 | start.
        scratch: As for ``write_rows``.
        log_weights: float64 [levels], log of what a level stands for, up to a factor shared by the row.
        ids: int32 [length, k], filled.
        logprobs: float32 [length, k], filled.
        tail: float32 [length], filled.
        text: int32 [length], filled.

    Returns:
        Whether every word was used and both streams ended where they began: false for damaged words.
    """
    starts, list_ids, list_zones, rank_of, token_of, boost = model
    lists, _, row_levels, previous, reciprocals = scratch
    k, vocab_size, m = ids.shape[1], len(rank_of), np.int64(0)
    last, a, b = np.int64(len(starts) - 2), guard + 2, len(words) - guard - 3
    first = (np.int64(words[a - 2]) << 16) | np.int64(words[a - 1])
    second = (np.int64(words[b + 2]) << 16) | np.int64(words[b + 1])
    for row in range(len(ids)):
        if a > len(words) - guard or b < guard - 1:
            return False
        num = build_candidates(last, previous, m, starts, list_ids, list_zones, rank_of, boost, lists)
        missing, first, a = pull(FIELD_MISSING, first, words, a, 1, symbol_at, slots)
        step, second, b = pull(FIELD_STEP, second, words, b, -1, symbol_at, slots)
        if not (0 <= missing <= k and 0 <= step < len(masses)):
            return False
        coarse = min(step // 4, 7)
        tail_level, second, b = pull(FIELD_TAIL + coarse, second, words, b, -1, symbol_at, slots)
        least, second, b = pull(FIELD_LEAST + coarse, second, words, b, -1, symbol_at, slots)
        if tail_level < 0 or least < 0:
            return False
        m = k - missing
        left = masses[step] - mass_of(tail_level - 1, power) if tail_level else masses[step]
        best, first, a, second, b = _pull_tokens(
            m, num, least, left, power, first, a, second, b, words, symbol_at, slots,
            token_of, lists[0], lists[1], reciprocals, previous, row_levels,
        )  # fmt: skip
        if best < 0:
            return False
        tail[row] = to_logprobs(row_levels, m, tail_level, power, log_weights, logprobs[row])
        for j in range(k):
            ids[row, j] = previous[j] if j < m else -1
        which, first, a = pull(FIELD_NEXT, first, words, a, 1, symbol_at, slots)
        other = np.int64(0)
        if which == 1:
            other, first, a = pull(FIELD_OTHER, first, words, a, 1, symbol_at, slots)
        if not (-1 < which < m + 2 and 0 <= other < vocab_size):
            return False
        last = next_of(which, np.int64(token_of[other]), m, best, previous, vocab_size)
        text[row] = last if last < vocab_size else -1
    return first == _LOWER and second == _LOWER and a == b + 1


@compiled
def _pull_tokens(
    m: Any,
    num: Any,
    least: Any,
    left: Any,
    power: Any,
    first: Any,
    a: Any,
    second: Any,
    b: Any,
    words: Any,
    symbol_at: Any,
    slots: Any,
    token_of: Any,
    candidate_ids: Any,
    candidate_zones: Any,
    reciprocals: Any,
    tokens: Any,
    levels: Any,
) -> Any:
    """The mirror of ``_put_tokens``: which token is the likeliest (-1: damage), and both streams."""
    limit, least_mass = num + len(token_of), mass_of(least, power)
    begin, best, best_level = np.int64(0), np.int64(0), np.int64(-1)
    for j in range(m):
        if begin < num:
            zone = np.int64(candidate_zones[begin])
            gap, first, a = pull(gap_context(zone, m - j), first, words, a, 1, symbol_at, slots)
            if gap < 0:
                begin = np.int64(num)
                gap, first, a = pull(gap_context(LIST_ZONES, m - j), first, words, a, 1, symbol_at, slots)
        else:
            zone = LIST_ZONES + zone_of_rank(begin - num)
            gap, first, a = pull(gap_context(zone, m - j), first, words, a, 1, symbol_at, slots)
        place = begin + gap
        if gap < 0 or place >= limit:
            return np.int64(-1), first, a, second, b
        if place < num:
            token, zone = candidate_ids[place], np.int64(candidate_zones[place])
        else:
            token, zone = token_of[place - num], LIST_ZONES + zone_of_rank(place - num)
        begin = min(place + 1, limit - 1)
        context = level_context(left, reciprocals[m - j], least_mass, zone)
        over, second, b = pull(context, second, words, b, -1, symbol_at, slots)
        if over < 0:
            return np.int64(-1), first, a, second, b
        level = least + over
        left -= mass_of(level, power)
        tokens[j], levels[j] = token, level
        if level > best_level:
            best, best_level = np.int64(j), level
    return best, first, a, second, b


@compiled
def to_logprobs(levels: Any, m: Any, tail_level: Any, power: Any, log_weights: Any, logprobs: Any) -> Any:
    """Fill a row's log-probabilities from its levels; returns the tail's."""
    total = weight_of(tail_level - 1, power) if tail_level else 0.0
    for j in range(m):
        total += weight_of(np.int64(levels[j]), power)
    log_total = math.log(total) if total > 0.0 else 0.0
    for j in range(m):
        logprobs[j] = log_weight(levels[j], power, log_weights) - log_total
    for j in range(m, len(logprobs)):
        logprobs[j] = -math.inf
    return log_weight(tail_level - 1, power, log_weights) - log_total if tail_level else -math.inf


@compiled
def next_of(which: Any, other: Any, m: Any, best: Any, tokens: Any, vocab_size: Any) -> Any:
    """The token that ``_put_next`` named; ``vocab_size`` after an empty row of unknown text."""
    if which == 1:
        return other
    if m == 0:
        return np.int64(vocab_size)
    return np.int64(tokens[best] if which == 0 else tokens[which - 2])


def guard_words(k: int) -> int:
    """Words that one row can take from a stream at most: 4 a number, 2 numbers a token and a few more."""
    return 8 * k + 32


@inlined
def log_weight(level: Any, power: Any, log_weights: Any) -> Any:
    """Log of ``weight_of``."""
    return log_weights[level] if level < len(log_weights) else power * math.log(level)

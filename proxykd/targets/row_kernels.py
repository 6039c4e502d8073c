"""Compiled: a sample's rows -> symbols (``write_rows``), symbols -> words (``pack``), words -> rows (``read_rows``).

The layout of a row is described in ``kernels``. ``write_rows`` and ``read_rows`` are each other's mirror: what one
decides by (contexts, candidates) the other decides by too.
"""

import math

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
    LEVELS,
    LIST_ZONES,
    NUM_SYMBOLS,
    SCALE_BITS,
    build_candidates,
    compiled,
    gap_context,
    level_context,
    mass_of,
    symbol_of,
    weight_of,
    zone_of_rank,
)

_LOWER = 1 << 16
_SLOTS = 1 << SCALE_BITS


@compiled
def put(value, context, out, n):
    """Append a number as (context, symbol, number of plain bits, plain bits)."""
    symbol, num_bits, bits = symbol_of(value)
    out[n, 0], out[n, 1], out[n, 2], out[n, 3] = context, symbol, num_bits, bits
    return n + 1


@compiled
def write_rows(ids, levels, steps, tails, text, masses, power, model, scratch, out):
    """Symbols of consecutive rows.

    Args:
        ids: int32 [length, k], -1 = no token, last in the row.
        levels: int32 [length, k].
        steps: int32 [length].
        tails: int32 [length], 0 = no tail, else its level + 1.
        text: int32 [length], the text's token at each position, or -1: take the row's likeliest.
        masses: int64 [steps], what the masses of a row of that step add up to, about.
        power: The mass of a level n is n ** power.
        model: (starts, list_ids, list_zones, rank_of, token_of, boost).
        scratch: (ids, zones, unsorted, unsorted_zone, slot) for the candidates, then order, level and previous ids.
        out: int32 [room, 4], filled with (context, symbol, number of plain bits, plain bits).

    Returns:
        Number of symbols.
    """
    starts, list_ids, list_zones, rank_of, token_of, boost = model
    lists, order, _, previous, reciprocals = scratch
    length, k = ids.shape
    n, last, num_previous = 0, len(starts) - 2, 0
    for row in range(length):
        num_candidates = build_candidates(
            last, previous, num_previous, starts, list_ids, list_zones, rank_of, boost, lists
        )
        m = k
        while m > 0 and ids[row, m - 1] < 0:
            m -= 1
        n = put(k - m, FIELD_MISSING, out, n)
        n = put(steps[row], FIELD_STEP, out, n)
        n = put(tails[row], FIELD_TAIL + min(steps[row] // 4, 7), out, n)
        least = levels[row, 0] if m else 0
        left = masses[steps[row]] - mass_of(tails[row] - 1, power) if tails[row] else masses[steps[row]]
        for j in range(m):
            least = min(least, levels[row, j])
            token = ids[row, j]
            at = lists[4][token]
            place = at if at < num_candidates and lists[0][at] == token else num_candidates + rank_of[token]
            order[j] = (np.int64(place) << 32) | j
        n = put(least, FIELD_LEAST + min(steps[row] // 4, 7), out, n)
        order[:m].sort()
        least_mass = mass_of(least, power)
        begin, best, best_level = 0, 0, -1
        for j in range(m):
            place, column = order[j] >> 32, order[j] & 0xFFFFFFFF
            if begin < num_candidates <= place:
                out[n, 0], out[n, 1] = gap_context(lists[1][begin], m - j), END
                out[n, 2], out[n, 3] = 0, 0
                n, begin = n + 1, num_candidates
            zone = lists[1][begin] if begin < num_candidates else LIST_ZONES + zone_of_rank(begin - num_candidates)
            n = put(place - begin, gap_context(zone, m - j), out, n)
            begin = place + 1
            zone = lists[1][place] if place < num_candidates else LIST_ZONES + zone_of_rank(place - num_candidates)
            level = levels[row, column]
            n = put(level - least, level_context(left, reciprocals[m - j], least_mass, zone), out, n)
            left -= mass_of(level, power)
            previous[j] = ids[row, column]
            if level > best_level:
                best, best_level = j, level
        num_previous = m
        n, last = _put_next(text[row], previous, m, best, rank_of, out, n)
    return n


@compiled
def _put_next(token, row, m, best, rank_of, out, n):
    """Which token the text goes on with: 0 = the row's likeliest, 1 = none of the row, j + 2 = its token j."""
    if m and (token < 0 or row[best] == token):
        return put(0, FIELD_NEXT, out, n), row[best]
    if token < 0:
        return put(0, FIELD_NEXT, out, n), token_of_nothing(rank_of)
    for j in range(m):
        if row[j] == token:
            return put(j + 2, FIELD_NEXT, out, n), token
    n = put(1, FIELD_NEXT, out, n)
    return put(rank_of[token], FIELD_OTHER, out, n), token


@compiled
def token_of_nothing(rank_of):
    """The context after an empty row: the same as at the beginning."""
    return len(rank_of)


@compiled
def is_second(context):
    """Whether a context's symbols go to the second of the two streams: levels and what is said of them."""
    return context >= LEVELS or FIELD_STEP <= context < FIELD_NEXT


@compiled
def pack(symbols, n, starts, widths, words):
    """rANS over symbols, last first, in two streams of their own; returns the number of words in ``words``.

    Two streams, because a processor can then decode a gap and a level at the same time. The words of the first are to
    be read from the front, those of the second from the back.

    Args:
        symbols: int32 [n, 4] from ``write_rows``.
        n: Number of symbols.
        starts: int32 [contexts, symbols], where a symbol's slots begin.
        widths: int32 [contexts, symbols], how many it has; a symbol with none is written as ESCAPE and itself.
        words: uint16 [2, room].
    """
    states = np.full(2, _LOWER, np.uint64)
    ends = np.zeros(2, np.int64)
    for index in range(n - 1, -1, -1):
        context, symbol, num_bits, bits = symbols[index]
        stream = 1 if is_second(context) else 0
        state, out = _push_bits(states[stream], bits, num_bits, words[stream], ends[stream])
        width = widths[context, symbol]
        if width == 0:
            state, out = _push_bits(state, symbol, 7, words[stream], out)
            symbol = ESCAPE
            width = widths[context, symbol]
        if state >= np.uint64(width) << np.uint64(32 - SCALE_BITS):
            words[stream, out] = state & np.uint64(0xFFFF)
            state >>= np.uint64(16)
            out += 1
        width64 = np.uint64(width)
        states[stream] = (
            ((state // width64) << np.uint64(SCALE_BITS)) + state % width64 + np.uint64(starts[context, symbol])
        )
        ends[stream] = out
    for stream in range(2):
        words[stream, ends[stream]] = states[stream] & np.uint64(0xFFFF)
        words[stream, ends[stream] + 1] = states[stream] >> np.uint64(16)
    first, second = ends[0] + 2, ends[1] + 2
    words[0, :first] = words[0, :first][::-1].copy()
    words[0, first : first + second] = words[1, :second]
    return first + second


@compiled
def _push_bits(state, bits, num_bits, words, out):
    high = num_bits - 12
    if high > 0:
        state, out = _push_few_bits(state, bits >> 12, high, words, out)
        bits, num_bits = bits & 0xFFF, 12
    if num_bits > 0:
        state, out = _push_few_bits(state, bits, num_bits, words, out)
    return state, out


@compiled
def _push_few_bits(state, bits, num_bits, words, out):
    if state >= np.uint64(1) << np.uint64(32 - num_bits):
        words[out] = state & np.uint64(0xFFFF)
        state >>= np.uint64(16)
        out += 1
    return (state << np.uint64(num_bits)) | np.uint64(bits), out


@compiled
def _pull_bits(state, num_bits, words, at, way):
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


@compiled
def _pull(context, state, words, at, way, symbol_at, slots):
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
def _rest(symbol, state, words, at, way):
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
def read_rows(words, guard, masses, power, model, symbol_at, slots, scratch, log_weights, ids, logprobs, tail, text):
    """Rows from words; the mirror of ``write_rows`` and ``pack``.

    Args:
        words: uint16 [guard + num_words + guard].
        guard: ``guard_words(k)``: room on both sides into which damaged words can lead, but no farther.
        masses: As for ``write_rows``.
        power: As for ``write_rows``.
        model: As for ``write_rows``.
        symbol_at: uint8 [contexts * 2**COARSE_BITS], the symbol at the first of so many slots; small enough to stay near.
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
    candidate_ids, candidate_zones = lists[0], lists[1]
    length, k = ids.shape
    vocab_size, last, num_previous = len(rank_of), np.int64(len(starts) - 2), 0
    first, a = (np.int64(words[guard]) << 16) | np.int64(words[guard + 1]), guard + 2
    b = len(words) - guard - 1
    second, b = (np.int64(words[b]) << 16) | np.int64(words[b - 1]), b - 2
    for row in range(length):
        if a > len(words) - guard or b < guard - 1:
            return False
        num_candidates = build_candidates(
            last, previous, num_previous, starts, list_ids, list_zones, rank_of, boost, lists
        )
        limit = num_candidates + vocab_size
        missing, first, a = _pull(FIELD_MISSING, first, words, a, 1, symbol_at, slots)
        step, second, b = _pull(FIELD_STEP, second, words, b, -1, symbol_at, slots)
        if not (0 <= missing <= k and 0 <= step < len(masses)):
            return False
        coarse = min(step // 4, 7)
        tail_level, second, b = _pull(FIELD_TAIL + coarse, second, words, b, -1, symbol_at, slots)
        least, second, b = _pull(FIELD_LEAST + coarse, second, words, b, -1, symbol_at, slots)
        if tail_level < 0 or least < 0:
            return False
        m = k - missing
        left = masses[step] - mass_of(tail_level - 1, power) if tail_level else masses[step]
        least_mass = mass_of(least, power)
        begin, best, best_level = np.int64(0), 0, np.int64(-1)
        total = weight_of(tail_level - 1, power) if tail_level else 0.0
        for j in range(m):
            if begin < num_candidates:
                zone = np.int64(candidate_zones[begin])
                gap, first, a = _pull(gap_context(zone, m - j), first, words, a, 1, symbol_at, slots)
                if gap < 0:
                    begin = np.int64(num_candidates)
                    gap, first, a = _pull(gap_context(LIST_ZONES, m - j), first, words, a, 1, symbol_at, slots)
            else:
                zone = LIST_ZONES + zone_of_rank(begin - num_candidates)
                gap, first, a = _pull(gap_context(zone, m - j), first, words, a, 1, symbol_at, slots)
            place = begin + gap
            if gap < 0 or place >= limit:
                return False
            if place < num_candidates:
                token, zone = candidate_ids[place], np.int64(candidate_zones[place])
            else:
                token = token_of[place - num_candidates]
                zone = LIST_ZONES + zone_of_rank(place - num_candidates)
            begin = min(place + 1, limit - 1)
            context = level_context(left, reciprocals[m - j], least_mass, zone)
            over, second, b = _pull(context, second, words, b, -1, symbol_at, slots)
            if over < 0:
                return False
            level = least + over
            left -= mass_of(level, power)
            previous[j], row_levels[j] = token, level
            total += weight_of(level, power)
            if level > best_level:
                best, best_level = j, level
        log_total = math.log(total) if total > 0.0 else 0.0
        for j in range(m):
            ids[row, j] = previous[j]
            logprobs[row, j] = log_weight(row_levels[j], power, log_weights) - log_total
        for j in range(m, k):
            ids[row, j], logprobs[row, j] = -1, -math.inf
        tail[row] = log_weight(tail_level - 1, power, log_weights) - log_total if tail_level else -math.inf
        num_previous = m
        which, first, a = _pull(FIELD_NEXT, first, words, a, 1, symbol_at, slots)
        if which == 1:
            other, first, a = _pull(FIELD_OTHER, first, words, a, 1, symbol_at, slots)
            if not 0 <= other < vocab_size:
                return False
            last = np.int64(token_of[other])
        elif not -1 < which < m + 2:
            return False
        elif m == 0:
            last = np.int64(vocab_size)
        else:
            last = np.int64(previous[best] if which == 0 else previous[which - 2])
        text[row] = last if last < vocab_size else -1
    return first == _LOWER and second == _LOWER and a == b + 1


def guard_words(k: int) -> int:
    """Words that one row can take from a stream at most: 4 a number, 2 numbers a token and a few more."""
    return 8 * k + 32


@compiled
def log_weight(level, power, log_weights):
    """log of ``weight_of``."""
    return log_weights[level] if level < len(log_weights) else power * math.log(level)

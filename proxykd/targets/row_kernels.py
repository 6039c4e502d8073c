"""Compiled: a sample's rows -> symbols (``write_rows``), symbols -> words (``pack``), words -> rows (``read_rows``).

The layout of a row is described in ``kernels``. ``write_rows`` and ``read_rows`` are each other's mirror: what one
decides by (contexts, candidates) the other decides by too.
"""

import math

import numpy as np

from proxykd.targets.kernels import (
    END,
    ESCAPE,
    FIELD_LEAST,
    FIELD_MISSING,
    FIELD_NEXT,
    FIELD_OTHER,
    FIELD_STEP,
    FIELD_TAIL,
    LIST_ZONES,
    SCALE_BITS,
    build_candidates,
    compiled,
    gap_context,
    level_context,
    mass_of,
    symbol_of,
    weight_of,
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
        model: (starts, list_ids, list_zones, rank_zone, rank_of, token_of, boost).
        scratch: (ids, zones, unsorted, unsorted_zone, slot) for the candidates, then order, level and previous ids.
        out: int32 [room, 4], filled with (context, symbol, number of plain bits, plain bits).

    Returns:
        Number of symbols.
    """
    starts, list_ids, list_zones, rank_zone, rank_of, token_of, boost = model
    lists, order, _, previous = scratch
    length, k = ids.shape
    n, last, num_previous = 0, len(starts) - 2, 0
    for row in range(length):
        num_candidates = build_candidates(
            last, previous, num_previous, starts, list_ids, list_zones, rank_zone, rank_of, boost, lists
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
        begin, best, best_level = 0, 0, -1
        for j in range(m):
            place, column = order[j] >> 32, order[j] & 0xFFFFFFFF
            if begin < num_candidates <= place:
                out[n, 0], out[n, 1] = gap_context(lists[1][begin], m - j), END
                out[n, 2], out[n, 3] = 0, 0
                n, begin = n + 1, num_candidates
            zone = lists[1][begin] if begin < num_candidates else LIST_ZONES + rank_zone[begin - num_candidates]
            n = put(place - begin, gap_context(zone, m - j), out, n)
            begin = place + 1
            zone = lists[1][place] if place < num_candidates else LIST_ZONES + rank_zone[place - num_candidates]
            level = levels[row, column]
            n = put(level - least, level_context(left, m - j, mass_of(least, power), zone), out, n)
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
def pack(symbols, n, starts, widths, words):
    """RANS over symbols, last first; returns the number of words, which lie in reverse order in ``words``.

    Args:
        symbols: int32 [n, 4] from ``write_rows``.
        n: Number of symbols.
        starts: int32 [contexts, symbols], where a symbol's slots begin.
        widths: int32 [contexts, symbols], how many it has; a symbol with none is written as ESCAPE and itself.
        words: uint16 [room].
    """
    state, out = np.uint64(_LOWER), 0
    for index in range(n - 1, -1, -1):
        context, symbol, num_bits, bits = symbols[index]
        state, out = _push_bits(state, bits, num_bits, words, out)
        width = widths[context, symbol]
        if width == 0:
            state, out = _push_bits(state, symbol, 7, words, out)
            symbol = ESCAPE
            width = widths[context, symbol]
        if state >= np.uint64(width) << np.uint64(32 - SCALE_BITS):
            words[out] = state & np.uint64(0xFFFF)
            state >>= np.uint64(16)
            out += 1
        width64 = np.uint64(width)
        state = ((state // width64) << np.uint64(SCALE_BITS)) + state % width64 + np.uint64(starts[context, symbol])
    words[out] = state & np.uint64(0xFFFF)
    words[out + 1] = state >> np.uint64(16)
    return out + 2


@compiled
def _push_bits(state, bits, num_bits, words, out):
    low = min(num_bits, 12)
    for size, part in ((num_bits - low, bits >> low), (low, bits & ((1 << low) - 1))):
        if size > 0:
            if state >= np.uint64(1) << np.uint64(32 - size):
                words[out] = state & np.uint64(0xFFFF)
                state >>= np.uint64(16)
                out += 1
            state = (state << np.uint64(size)) | np.uint64(part)
    return state, out


@compiled
def _pull_bits(state, num_bits, words, at):
    low = min(num_bits, 12)
    value = 0
    for size, shift in ((low, 0), (num_bits - low, low)):
        if size > 0:
            value |= (state & ((1 << size) - 1)) << shift
            state >>= size
            if state < _LOWER and at < len(words):
                state = (state << 16) | np.int64(words[at])
                at += 1
    return value, state, at


@compiled
def _pull(context, state, words, at, coder):
    """One number from a context; END stays END (-1)."""
    symbol_at, starts, widths = coder
    slot = state & (_SLOTS - 1)
    symbol = np.int64(symbol_at[context, slot])
    state = np.int64(widths[context, symbol]) * (state >> SCALE_BITS) + slot - np.int64(starts[context, symbol])
    if state < _LOWER and at < len(words):
        state = (state << 16) | np.int64(words[at])
        at += 1
    if symbol < 16:
        return symbol, state, at
    if symbol == ESCAPE:
        symbol, state, at = _pull_bits(state, 7, words, at)
        if symbol < 16:
            return symbol, state, at
    if symbol == END:
        return np.int64(-1), state, at
    num_bits = ((symbol - 16) >> 2) + 2
    bits, state, at = _pull_bits(state, num_bits, words, at)
    return ((4 + ((symbol - 16) & 3)) << num_bits) + bits, state, at


@compiled
def read_rows(words, masses, power, model, coder, scratch, log_weights, ids, logprobs, tail, text):
    """Rows from words; the mirror of ``write_rows`` and ``pack``.

    Args:
        words: uint16 [num_words], first word first.
        masses: As for ``write_rows``.
        power: As for ``write_rows``.
        model: As for ``write_rows``.
        coder: (symbol_at uint8 [contexts, slots], starts, widths).
        scratch: As for ``write_rows``.
        log_weights: float64 [levels], log of what a level stands for, up to a factor shared by the row.
        ids: int32 [length, k], filled.
        logprobs: float32 [length, k], filled.
        tail: float32 [length], filled.
        text: int32 [length], filled.

    Returns:
        Whether every word was used and the coder ended where it began: false for damaged words.
    """
    starts, list_ids, list_zones, rank_zone, rank_of, token_of, boost = model
    lists, _, row_levels, previous = scratch
    length, k = ids.shape
    vocab_size, last, num_previous = len(rank_of), len(starts) - 2, 0
    state, at = (np.int64(words[0]) << 16) | np.int64(words[1]), 2
    for row in range(length):
        num_candidates = build_candidates(
            last, previous, num_previous, starts, list_ids, list_zones, rank_zone, rank_of, boost, lists
        )
        missing, state, at = _pull(FIELD_MISSING, state, words, at, coder)
        step, state, at = _pull(FIELD_STEP, state, words, at, coder)
        if not (0 <= missing <= k and 0 <= step < len(masses)):
            return False
        tail_level, state, at = _pull(FIELD_TAIL + min(step // 4, 7), state, words, at, coder)
        least, state, at = _pull(FIELD_LEAST + min(step // 4, 7), state, words, at, coder)
        if tail_level < 0 or least < 0:
            return False
        m = k - missing
        left = masses[step] - mass_of(tail_level - 1, power) if tail_level else masses[step]
        begin, best, best_level, total = 0, 0, -1, 0.0
        if tail_level:
            total = weight_of(tail_level - 1, power)
        for j in range(m):
            zone = (
                np.int64(lists[1][begin])
                if begin < num_candidates
                else LIST_ZONES + np.int64(rank_zone[begin - num_candidates])
            )
            gap, state, at = _pull(gap_context(zone, m - j), state, words, at, coder)
            if gap < 0:
                begin = num_candidates
                zone = LIST_ZONES + np.int64(rank_zone[0])
                gap, state, at = _pull(gap_context(zone, m - j), state, words, at, coder)
            place = begin + gap
            if gap < 0 or place >= num_candidates + vocab_size:
                return False
            if place < num_candidates:
                token, zone = lists[0][place], np.int64(lists[1][place])
            else:
                token = token_of[place - num_candidates]
                zone = LIST_ZONES + np.int64(rank_zone[place - num_candidates])
            begin = min(place + 1, num_candidates + vocab_size - 1)
            over, state, at = _pull(level_context(left, m - j, mass_of(least, power), zone), state, words, at, coder)
            if over < 0:
                return False
            level = least + over
            left -= mass_of(level, power)
            previous[j], row_levels[j] = token, level
            ids[row, j] = token
            total += weight_of(level, power)
            if level > best_level:
                best, best_level = j, level
        log_total = math.log(total) if total > 0.0 else 0.0
        for j in range(m):
            logprobs[row, j] = log_weight(row_levels[j], power, log_weights) - log_total
        for j in range(m, k):
            ids[row, j], logprobs[row, j] = -1, -math.inf
        tail[row] = log_weight(tail_level - 1, power, log_weights) - log_total if tail_level else -math.inf
        num_previous = m
        which, state, at = _pull(FIELD_NEXT, state, words, at, coder)
        if which == 1:
            other, state, at = _pull(FIELD_OTHER, state, words, at, coder)
            if not 0 <= other < vocab_size:
                return False
            last = token_of[other]
        elif not -1 < which < m + 2:
            return False
        elif m == 0:
            last = vocab_size
        else:
            last = previous[best] if which == 0 else previous[which - 2]
        text[row] = last if last < vocab_size else -1
    return state == _LOWER and at == len(words)


@compiled
def log_weight(level, power, log_weights):
    """Log of ``weight_of``."""
    return log_weights[level] if level < len(log_weights) else power * math.log(level)

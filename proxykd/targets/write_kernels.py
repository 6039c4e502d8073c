"""Compiled: a sample's rows -> symbols (``write_rows``), symbols -> words (``pack``).

The layout of a row is described in ``kernels``. ``read_kernels.read_rows`` is the mirror: what one
decides by (contexts, candidates) the other decides by too.
"""

from typing import Any

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
    LEVELS,
    LIST_ZONES,
    SCALE_BITS,
    build_candidates,
    compiled,
    gap_context,
    level_context,
    mass_of,
    symbol_of,
    zone_of_rank,
)

_LOWER = 1 << 16
_SLOTS = 1 << SCALE_BITS


@compiled
def put(value: Any, context: Any, out: Any, n: Any) -> Any:
    """Append a number as (context, symbol, number of plain bits, plain bits)."""
    symbol, num_bits, bits = symbol_of(value)
    out[n, 0], out[n, 1], out[n, 2], out[n, 3] = context, symbol, num_bits, bits
    return n + 1


@compiled
def write_rows(
    ids: Any,
    levels: Any,
    steps: Any,
    tails: Any,
    text: Any,
    masses: Any,
    power: Any,
    model: Any,
    scratch: Any,
    out: Any,
) -> Any:
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
        scratch: ``coding.Scratch``: candidates, order, levels, ids of the previous row, reciprocals.
        out: int32 [room, 4], filled with (context, symbol, number of plain bits, plain bits).

    Returns:
        Number of symbols.
    """
    starts, list_ids, list_zones, rank_of, _, boost = model
    lists, order, row_levels, previous, reciprocals = scratch
    n, last, m = 0, len(starts) - 2, 0
    for row in range(len(ids)):
        num_candidates = build_candidates(last, previous, m, starts, list_ids, list_zones, rank_of, boost, lists)
        m = sort_row(ids[row], levels[row], num_candidates, lists, rank_of, order)
        step, tail = steps[row], tails[row]
        least = _least(levels[row], m)
        n = put(ids.shape[1] - m, FIELD_MISSING, out, n)
        n = put(step, FIELD_STEP, out, n)
        n = put(tail, FIELD_TAIL + min(step // 4, 7), out, n)
        n = put(least, FIELD_LEAST + min(step // 4, 7), out, n)
        for j in range(m):
            column = order[j] & 0xFFFFFFFF
            previous[j], row_levels[j] = ids[row, column], levels[row, column]
        left = masses[step] - mass_of(tail - 1, power) if tail else masses[step]
        n, best = _put_tokens(order, row_levels, m, least, left, power, num_candidates, lists[1], reciprocals, out, n)
        n, last = _put_next(text[row], previous, m, best, rank_of, out, n)
    return n


@compiled
def _least(levels: Any, m: Any) -> Any:
    least = levels[0] if m else 0
    for j in range(m):
        least = min(least, levels[j])
    return least


@compiled
def sort_row(ids: Any, levels: Any, num_candidates: Any, lists: Any, rank_of: Any, order: Any) -> Any:
    """Fill ``order`` with place << 32 | column of a row's tokens, sorted; returns how many there are."""
    m = 0
    while m < len(ids) and ids[m] >= 0:
        at = lists[4][ids[m]]
        place = at if at < num_candidates and lists[0][at] == ids[m] else num_candidates + rank_of[ids[m]]
        order[m] = (np.int64(place) << 32) | m
        m += 1
    order[:m].sort()
    return m


@compiled
def _put_tokens(
    order: Any,
    levels: Any,
    m: Any,
    least: Any,
    left: Any,
    power: Any,
    num_candidates: Any,
    zones: Any,
    reciprocals: Any,
    out: Any,
    n: Any,
) -> Any:
    """The tokens as gaps, each with its level; returns the number of symbols and which token is the likeliest."""
    begin, best, best_level, least_mass = 0, 0, -1, mass_of(least, power)
    for j in range(m):
        place, level = order[j] >> 32, levels[j]
        if begin < num_candidates <= place:
            out[n, 0], out[n, 1] = gap_context(zones[begin], m - j), END
            out[n, 2], out[n, 3] = 0, 0
            n, begin = n + 1, num_candidates
        zone = zones[begin] if begin < num_candidates else LIST_ZONES + zone_of_rank(begin - num_candidates)
        n = put(place - begin, gap_context(zone, m - j), out, n)
        begin = place + 1
        zone = zones[place] if place < num_candidates else LIST_ZONES + zone_of_rank(place - num_candidates)
        n = put(level - least, level_context(left, reciprocals[m - j], least_mass, zone), out, n)
        left -= mass_of(level, power)
        if level > best_level:
            best, best_level = j, level
    return n, best


@compiled
def _put_next(token: Any, row: Any, m: Any, best: Any, rank_of: Any, out: Any, n: Any) -> Any:
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
def token_of_nothing(rank_of: Any) -> Any:
    """The context after an empty row: the same as at the beginning."""
    return len(rank_of)


@compiled
def is_second(context: Any) -> Any:
    """Whether a context's symbols go to the second of the two streams: levels and what is said of them."""
    return context >= LEVELS or FIELD_STEP <= context < FIELD_NEXT


@compiled
def pack(symbols: Any, n: Any, starts: Any, widths: Any, words: Any) -> Any:
    """RANS over symbols, last first, in two streams of their own; returns the number of words in ``words``.

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
def _push_bits(state: Any, bits: Any, num_bits: Any, words: Any, out: Any) -> Any:
    high = num_bits - 12
    if high > 0:
        state, out = _push_few_bits(state, bits >> 12, high, words, out)
        bits, num_bits = bits & 0xFFF, 12
    if num_bits > 0:
        state, out = _push_few_bits(state, bits, num_bits, words, out)
    return state, out


@compiled
def _push_few_bits(state: Any, bits: Any, num_bits: Any, words: Any, out: Any) -> Any:
    if state >= np.uint64(1) << np.uint64(32 - num_bits):
        words[out] = state & np.uint64(0xFFFF)
        state >>= np.uint64(16)
        out += 1
    return (state << np.uint64(num_bits)) | np.uint64(bits), out

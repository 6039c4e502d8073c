"""Compiled: a sample's rows -> symbols (``write_rows``), symbols -> words (``pack``).

The layout of a row is described in ``kernels``. ``read_kernels.read_rows`` is the mirror: what one
decides by (contexts, candidates) the other decides by too.
"""

from typing import Any

import numpy as np

from proxykd.targets.kernels import (
    END,
    ESCAPE,
    ESCAPE_BITS,
    FIELD_LEAST,
    FIELD_MISSING,
    FIELD_NEXT,
    FIELD_OTHER,
    FIELD_STEP,
    FIELD_TAIL,
    GAPS,
    LARGEST,
    LEVELS,
    LOWER,
    SCALE_BITS,
    compiled,
    level_context,
    mass_of,
    symbol_of,
)


@compiled
def put(value: Any, context: Any, out: Any, n: Any) -> Any:
    """Append a number as (context, symbol, number of plain bits, plain bits)."""
    symbol, num_bits, bits = symbol_of(value)
    out[n, 0], out[n, 1], out[n, 2], out[n, 3] = context, symbol, num_bits, bits
    return n + 1


@compiled
def write_rows(
    ids: Any, levels: Any, steps: Any, tails: Any, text: Any, masses: Any, power: Any, model: Any, scratch: Any,
    out: Any,
) -> Any:  # fmt: skip
    """Symbols of consecutive rows.

    Args:
        ids: int32 [length, k], -1 = no token, last in the row.
        levels: int32 [length, k].
        steps: int32 [length].
        tails: int32 [length], 0 = no tail, else its level + 1.
        text: int32 [length], the text's token at each position, or -1: take the row's likeliest.
        masses: int64 [steps], what the masses of a row of that step add up to, about.
        power: The mass of a level n is n ** power.
        model: ``Tables.model``: entries' tokens, their contexts, where lists begin, ranks.
        scratch: ``coding.Scratch``: order, ids, levels, reciprocals, where a token stands in the list.
        out: int32 [room, 4], filled with (context, symbol, number of plain bits, plain bits).

    Returns:
        Number of symbols.
    """
    tokens, contexts, list_starts, rank_of = model
    order, row_ids, row_levels, reciprocals, place_of = scratch
    n, last = 0, len(list_starts) - 1
    for row in range(len(ids)):
        begin = list_starts[last]
        end = begin
        while contexts[end] != GAPS:
            place_of[tokens[end]] = end
            end += 1
        m = sort_row(ids[row], levels[row], begin, end, tokens, rank_of, place_of, order)
        step, tail = steps[row], tails[row]
        least = _least(levels[row], m)
        n = put(ids.shape[1] - m, FIELD_MISSING, out, n)
        n = put(step, FIELD_STEP, out, n)
        n = put(tail, FIELD_TAIL + min(step // 4, 7), out, n)
        n = put(least, FIELD_LEAST + min(step // 4, 7), out, n)
        for j in range(m):
            column = order[j] & 0xFFFFFFFF
            row_ids[j], row_levels[j] = ids[row, column], levels[row, column]
        left = masses[step] - m * mass_of(np.int64(least), power)
        if tail:
            left -= mass_of(np.int64(tail - 1), power)
        n, best = _put_tokens(order, row_levels, m, least, left, power, begin, end, contexts, reciprocals, out, n)
        n, last = _put_next(text[row], row_ids, m, best, rank_of, out, n)
    return n


@compiled
def _least(levels: Any, m: Any) -> Any:
    least = levels[0] if m else 0
    for j in range(m):
        least = min(least, levels[j])
    return least


@compiled
def sort_row(ids: Any, levels: Any, begin: Any, end: Any, tokens: Any, rank_of: Any, place_of: Any, order: Any) -> Any:
    """Fill ``order`` with candidate << 32 | column of a row's tokens, sorted; returns how many there are.

    Candidates are counted through the list of the context, which lies at ``begin`` .. ``end`` of the entries, and then
    through the vocabulary.
    """
    m = 0
    while m < len(ids) and ids[m] >= 0:
        at = place_of[ids[m]]
        listed = begin <= at < end and tokens[at] == ids[m]
        order[m] = (np.int64(at - begin if listed else end - begin + rank_of[ids[m]]) << 32) | m
        m += 1
    order[:m].sort()
    return m


@compiled
def _put_tokens(
    order: Any, levels: Any, m: Any, least: Any, left: Any, power: Any, begin: Any, end: Any, contexts: Any,
    reciprocals: Any, out: Any, n: Any,
) -> Any:  # fmt: skip
    """The tokens as gaps, each with its level; returns the number of symbols and which token is the likeliest."""
    best, best_level, num_listed, listing = 0, np.int64(-1), end - begin, True
    least_mass, at = mass_of(np.int64(least), power), begin
    for j in range(m):
        candidate, level = order[j] >> 32, np.int64(levels[j])
        if listing and candidate >= num_listed:
            out[n, 0], out[n, 1] = contexts[at], END
            out[n, 2], out[n, 3] = 0, 0
            n, at, listing = n + 1, 0, False
        place = begin + candidate if listing else candidate - num_listed
        n = put(place - at, contexts[at], out, n)
        at = place + 1
        n = put(level - least, level_context(left, reciprocals[m - j]), out, n)
        left -= mass_of(level, power) - least_mass
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
    return LEVELS <= context < GAPS or FIELD_STEP <= context < FIELD_NEXT


@compiled
def pack(symbols: Any, n: Any, table_of: Any, starts: Any, widths: Any, words: Any) -> Any:
    """RANS over symbols, last first, in two streams of their own; returns the number of words in ``words``.

    Two streams, because a processor can then decode a gap and a level at the same time. The words of the first are to
    be read from the front, those of the second from the back.

    Args:
        symbols: int32 [n, 4] from ``write_rows``.
        n: Number of symbols.
        table_of: uint8 [contexts], the table of each.
        starts: int32 [tables, symbols], where a symbol's slots begin.
        widths: int32 [tables, symbols], how many it has; a symbol with none is written as ESCAPE and the number.
        words: uint32 [2, room].
    """
    states, ends = np.full(2, LOWER, np.int64), np.zeros(2, np.int64)
    for index in range(n - 1, -1, -1):
        context, symbol, num_bits, bits = symbols[index]
        stream = 1 if is_second(context) else 0
        table = table_of[context]
        if widths[table, symbol] == 0:
            symbol, num_bits, bits = ESCAPE, ESCAPE_BITS, _number(symbol, num_bits, bits)
        width, state = np.int64(widths[table, symbol]), states[stream]
        if state >= width << (63 - SCALE_BITS - num_bits):
            words[stream, ends[stream]] = state & 0xFFFFFFFF
            state >>= 32
            ends[stream] += 1
        state = (state << num_bits) | bits
        states[stream] = ((state // width) << SCALE_BITS) + state % width + starts[table, symbol]
    for stream in range(2):
        words[stream, ends[stream]] = states[stream] & 0xFFFFFFFF
        words[stream, ends[stream] + 1] = states[stream] >> 32
    first, second = ends[0] + 2, ends[1] + 2
    words[0, :first] = words[0, :first][::-1].copy()
    words[0, first : first + second] = words[1, :second]
    return first + second


@compiled
def _number(symbol: Any, num_bits: Any, bits: Any) -> Any:
    """The number that a symbol and its plain bits stand for; one too large for any for END."""
    if symbol == END:
        return np.int64(LARGEST + 1)
    if symbol < 16:
        return np.int64(symbol)
    return (np.int64(4 + (symbol & 3)) << num_bits) | np.int64(bits)

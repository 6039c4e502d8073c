"""Shorter contexts mixed into longer ones, compiled: Witten and Bell's interpolation of the counts.

The interpolated probability of a token is a weighted sum of its counts after every believed context. Its most probable
tokens are found without looking at all: the lists of the contexts are walked in step, most frequent first, every token
met is weighed in full, and the walk ends where no token further down could be among the best (Fagin's threshold
algorithm), which keeps the result exact.

Arrays are named as in ``ngram_lookup``.

References:
    Fagin, Lotem and Naor, Optimal aggregation algorithms for middleware, Journal of Computer and System Sciences
    66(4), 2003.
"""

import numpy as np
from numpy.typing import NDArray

from proxykd.compiling import compiled
from proxykd.estimation.ngram_lookup import (
    Floats,
    Index,
    Ints,
    Own,
    Records,
    Rows,
    _add_pairs,
    _choose_orders,
    _count_of,
    _count_own,
    _find,
    _find_contexts,
    _insert,
    _place_of_label,
    _span,
    _write_row,
)


@compiled
def _num_types(
    contexts: Records, entries: Records, own: Own, distance: int, node: int, place: int, labels: NDArray[np.int32]
) -> int:
    """Distinct tokens after a context, after leaving out; its pairs are counted on the way."""
    _, _, heads, links, _, pair_keys, pair_counts, _ = own
    _, types = _span(contexts, node)
    _add_pairs(own, distance, place, labels)
    row = heads[place]
    while row >= 0:
        # Each row of the chain takes one occurrence away from a number that must not be counted down twice.
        slot = _find(pair_keys, (place << 32) | np.int64(labels[row]))
        if pair_counts[slot] > 0 and pair_counts[slot] == _count_of(contexts, entries, node, labels[row]):
            types -= 1
            pair_counts[slot] = -pair_counts[slot]
        row = links[distance, row]
    row = heads[place]
    while row >= 0:
        slot = _find(pair_keys, (place << 32) | np.int64(labels[row]))
        pair_counts[slot] = abs(pair_counts[slot])
        row = links[distance, row]
    return types


@compiled
def _weigh_orders(
    contexts: Records, entries: Records, own: Own, leave: int, nodes: Ints, row: int, top: int,
    labels: NDArray[np.int32], types: Ints, weights: Floats,
) -> None:  # fmt: skip
    """What one observation after each context is worth; counts times ``weights`` add up to 1.

    ``types`` keeps the number of distinct tokens of each place; -1 = not known yet.
    """
    places, sizes = own[0], own[1]
    left = 1.0
    for distance in range(top, -1, -1):
        node, place = nodes[distance, row], places[distance, row]
        if types[place] < 0:
            _, types[place] = _span(contexts, node)
            if leave:
                types[place] = _num_types(contexts, entries, own, distance, node, place, labels)
        count = np.int64(contexts[node, 1]) - leave * sizes[place]
        weights[distance] = left / (count + (types[place] if distance else 0))
        left *= types[place] / (count + types[place])


@compiled
def _mass(
    contexts: Records, entries: Records, pair_keys: Ints, pair_counts: Ints, leave: int,
    nodes: Ints, places: Ints, top: int, weights: Floats, token: int,
) -> float:  # fmt: skip
    """The interpolated probability of one token; ``nodes`` and ``places`` [order + 1] are those of its row."""
    prob = 0.0
    for distance in range(top, -1, -1):
        count = _count_of(contexts, entries, nodes[distance], token)
        if count and leave:
            count -= pair_counts[_find(pair_keys, (places[distance] << 32) | np.int64(token))]
        prob += weights[distance] * count
    return prob


@compiled
def _head_of_mixture(
    contexts: Records, entries: Records, pair_keys: Ints, pair_counts: Ints, leave: int,
    nodes: Ints, places: Ints, top: int, weights: Floats, num_types: int, is_met: NDArray[np.bool_],
    ids: Ints, probs: Floats, source: int,
) -> tuple[int, float]:  # fmt: skip
    """The most probable tokens of all orders together: how many, and the mass of all others.

    ``num_types`` tokens have any mass; ``is_met`` [vocab] is False before and after.
    """
    size, depth, is_done = 0, 0, False
    while not is_done:
        bound, is_done = 0.0, True
        for distance in range(top, -1, -1):
            start, num = _span(contexts, nodes[distance])
            if depth >= num:
                continue
            token, is_done = np.int64(entries[start + depth, 0]), False
            bound += weights[distance] * entries[start + depth, 1]
            if not is_met[token]:
                is_met[token] = True
                prob = _mass(contexts, entries, pair_keys, pair_counts, leave, nodes, places, top, weights, token)
                if prob > 0:
                    size = _insert(ids, probs, source, size, token, prob)
        depth += 1
        is_done = is_done or (size == ids.shape[1] and bound < probs[source, size - 1])
    for distance in range(top + 1):
        start, num = _span(contexts, nodes[distance])
        for at in range(start, start + min(depth, num)):
            is_met[entries[at, 0]] = False
    return size, max(0.0, 1.0 - probs[source, :size].sum()) if num_types > size else 0.0


@compiled
def fill_mixture(
    index: Index, tokens: NDArray[np.int32], first: int, order: int, leave: int, min_count: int, share: float, out: Rows
) -> None:
    """Write the prior of every position from ``first`` on, every believed context of each mixed.

    Args:
        index: The counts.
        tokens: The example, int32 [context + length].
        first: Tokens before the first position.
        order: Of the longest context.
        leave: 1 = subtract what the example contributed, 0 = do not.
        min_count: Observations that a context of order >= 1 needs.
        share: Weight of the estimate, 1 / gamma.
        out: Receives the rows.
    """
    roots, contexts, entries = index
    nodes, labels = _find_contexts(index, tokens, first, order, min_count + leave), tokens[first:]
    own, width = _count_own(nodes, labels), out[0].shape[1]
    places, sizes, _, _, _, keys, counts, _ = own
    tops, observed = _choose_orders(contexts, nodes, places, sizes, leave, min_count)
    out[3][:], out[4][:] = tops, observed
    ids, probs = np.empty((len(labels), width), np.int64), np.empty((len(labels), width), np.float64)
    ends, rests, sources = np.zeros(len(labels), np.int64), np.zeros(len(labels)), np.full(len(sizes), -1, np.int64)
    types, weights, is_met = np.full(len(sizes), -1, np.int64), np.zeros(order + 1), np.zeros(len(roots), np.bool_)
    for row in range(len(labels)):
        top, label = tops[row], labels[row]
        if top < 0 or share == 0:
            _write_row(ids, probs, row, 0, 0.0, -1, label, 0.0, 0.0, out, row)
            continue
        place = places[top, row]
        line, spots = nodes[:, row].copy(), places[:, row].copy()
        _weigh_orders(contexts, entries, own, leave, nodes, row, top, labels, types, weights)
        if sources[place] < 0:
            sources[place] = row
            ends[row], rests[row] = _head_of_mixture(
                contexts, entries, keys, counts, leave, line, spots, top, weights, types[0], is_met, ids, probs, row
            )
        base, prob = sources[place], 0.0
        at = _place_of_label(ids, base, ends[base], label)
        if at < 0 and rests[base] > 0:
            prob = _mass(contexts, entries, keys, counts, leave, line, spots, top, weights, label)
        _write_row(ids, probs, base, ends[base], rests[base], at, label, prob, share, out, row)

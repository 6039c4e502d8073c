"""Looking one example up in the counts, compiled: its contexts, what it contributed itself, the rows.

The contexts of an example's positions ("places") are met by walking the trie; how often the example itself contributed
to each is counted in a hash table keyed by the record's number, and to each pair of context and token in the same way
(place << 32 | token). A place is a slot of the first table plus 1; place 0 is the empty context.

    index   (roots, contexts, entries, unigrams, ranked), as in ``ngrams.Trie``
    own     (places int64 [order + 1, length], sizes, heads int64 [num_places], links int64 [order + 1, length],
            has_pairs bool [num_places], pair_keys, pair_counts int64): heads and links chain the rows of a place

This module knows arrays alone; numba compiles it when first used and keeps the result on disk.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxykd.estimation.compiling import compiled
from proxykd.estimation.ngram_counting import LONG_LIST

Index = tuple[Any, ...]
Own = tuple[Any, ...]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@compiled
def _find(keys: Ints, key: int) -> int:
    """The slot of ``key`` in an open hash table, or the empty one where it belongs."""
    mask = len(keys) - 1
    slot = np.int64((np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(32)) & mask
    while keys[slot] >= 0 and keys[slot] != key:
        slot = (slot + 1) & mask
    return slot


@compiled
def _table(num_keys: int) -> Ints:
    size = 8
    while size < 2 * num_keys:
        size *= 2
    return np.full(size, -1, np.int64)


@compiled
def find_contexts(index: Index, tokens: NDArray[np.int32], first: int, order: int, floor: int) -> Ints:
    """The contexts before each position from ``first`` on, with at least ``floor`` observations.

    Returns:
        Numbers of records, int64 [order + 1, length]; -1 = no such context. Row 0 (the empty context) is 0.
    """
    roots, contexts = index[0], index[1]
    length = len(tokens) - first
    nodes = np.full((order + 1, length), -1, np.int64)
    nodes[0] = 0
    for distance in range(1, order + 1):
        for row in range(max(0, distance - first), length):
            back, node = tokens[first + row - distance], nodes[distance - 1, row]
            if node < 0:
                continue
            if distance == 1:
                found = roots[back] if back < len(roots) else -1
            else:
                found, size = np.int64(contexts[node, 3]), np.int64(contexts[node + 1, 3]) - np.int64(contexts[node, 3])
                while size > 1:
                    half = size >> 1
                    found = found + half if contexts[found + half, 0] <= back else found
                    size -= half
                if size < 1 or contexts[found, 0] != back:
                    found = -1
            if found >= 0 and contexts[found, 1] >= floor:
                nodes[distance, row] = found
    return nodes


@compiled
def count_own(nodes: Ints) -> Own:
    """What the example contributed to each of its own contexts; pairs are added by ``_add_pairs`` when needed."""
    order, length = len(nodes) - 1, nodes.shape[1]
    num_keys = 0
    for distance in range(1, order + 1):
        for row in range(length):
            num_keys += nodes[distance, row] >= 0
    keys = _table(num_keys)
    sizes, heads = np.zeros(len(keys) + 1, np.int64), np.full(len(keys) + 1, -1, np.int64)
    places, links = np.zeros((order + 1, length), np.int64), np.empty((order + 1, length), np.int64)
    for distance in range(order + 1):
        for row in range(length):
            node, place = nodes[distance, row], 0
            if node < 0:
                continue
            if distance:
                slot = _find(keys, node)
                keys[slot] = node
                place = slot + 1
            places[distance, row] = place
            sizes[place] += 1
            links[distance, row] = heads[place]
            heads[place] = row
    pair_keys = _table(num_keys + length)
    return places, sizes, heads, links, np.zeros(len(sizes), np.bool_), pair_keys, np.zeros(len(pair_keys), np.int64)


@compiled
def _add_pairs(own: Own, distance: int, place: int, labels: NDArray[np.int32]) -> None:
    """Count what the example itself wrote after the context at ``place``, once."""
    _, _, heads, links, has_pairs, pair_keys, pair_counts = own
    if has_pairs[place]:
        return
    has_pairs[place] = True
    row = heads[place]
    while row >= 0:
        key = (place << 32) | np.int64(labels[row])
        slot = _find(pair_keys, key)
        pair_keys[slot] = key
        pair_counts[slot] += 1
        row = links[distance, row]


@compiled
def _own_pairs(own: Own, place: int, token: int) -> int:
    return own[6][_find(own[5], (place << 32) | np.int64(token))]


@compiled
def _span(index: Index, distance: int, node: int) -> tuple[int, int]:
    """Where the list after a context begins, and how many tokens it has."""
    if distance == 0:
        return 0, len(index[4])
    start, end = np.int64(index[1][node, 2]), np.int64(index[1][node + 1, 2])
    return start, (end - start) // 2 if end - start > LONG_LIST else end - start


@compiled
def _entry(index: Index, distance: int, at: int) -> tuple[int, int]:
    if distance == 0:
        return np.int64(index[4][at]), index[3][index[4][at]]
    return np.int64(index[2][at, 0]), np.int64(index[2][at, 1])


@compiled
def _count_of(index: Index, distance: int, node: int, token: int) -> int:
    """How often ``token`` followed a context in the whole corpus."""
    entries = index[2]
    if distance == 0:
        return index[3][token] if token < len(index[3]) else 0
    start, size = _span(index, distance, node)
    if size <= LONG_LIST:
        for at in range(start, start + size):
            if entries[at, 0] == token:
                return np.int64(entries[at, 1])
        return 0
    at = start + size
    while size > 1:
        half = size >> 1
        at = at + half if entries[at + half, 0] <= token else at
        size -= half
    return np.int64(entries[at, 1]) if entries[at, 0] == token else 0


@compiled
def choose_orders(index: Index, nodes: Ints, own: Own, leave: int, min_count: int, total: int) -> tuple[Ints, Ints]:
    """The longest believed context of each row and its observations after leaving out; -1 and 0 = no evidence.

    Args:
        index: The counts.
        nodes: From ``find_contexts``.
        own: From ``count_own``.
        leave: 1 = subtract what the example contributed, 0 = do not.
        min_count: Observations that a context of order >= 1 needs.
        total: Observations of the empty context after leaving out.
    """
    places, sizes = own[0], own[1]
    length = nodes.shape[1]
    orders, observed = np.full(length, -1, np.int64), np.zeros(length, np.int64)
    for row in range(length):
        if total > 0:
            orders[row], observed[row] = 0, total
        for distance in range(1, len(nodes)):
            if nodes[distance, row] < 0:
                break
            count = np.int64(index[1][nodes[distance, row], 1]) - leave * sizes[places[distance, row]]
            if count < min_count:
                break
            orders[row], observed[row] = distance, count
    return orders, observed


@compiled
def _insert(ids: Ints, counts: Floats, size: int, token: int, count: float) -> int:
    """Put a token into a list in descending order (ties: ascending ids) that keeps its best; its new size."""
    at = size
    while at > 0 and (counts[at - 1] < count or (counts[at - 1] == count and ids[at - 1] > token)):
        if at < len(ids):
            ids[at], counts[at] = ids[at - 1], counts[at - 1]
        at -= 1
    if at < len(ids):
        ids[at], counts[at] = token, count
    return min(size + 1, len(ids))


@compiled
def _head_of_longest(
    index: Index, own: Own, leave: int, distance: int, node: int, place: int, observed: int, ids: Ints, probs: Floats
) -> tuple[int, float]:
    """The most frequent tokens after one context, after leaving out: how many, and the mass of all others."""
    start, num = _span(index, distance, node)
    size, listed = 0, 0
    for at in range(start, start + num):
        token, count = _entry(index, distance, at)
        if size == len(ids) and count < probs[size - 1]:
            break
        left = count - leave * _own_pairs(own, place, token) if leave else count
        if left <= 0:
            continue
        if size == len(ids) and (left < probs[size - 1] or (left == probs[size - 1] and token > ids[size - 1])):
            if left == count:
                break
            continue
        size = _insert(ids, probs, size, token, float(left))
    for at in range(size):
        listed += np.int64(probs[at])
        probs[at] /= observed
    return size, (observed - listed) / observed


@compiled
def _write_row(
    ids: Ints, probs: Floats, rest: float, label: int, label_prob: float, share: float, out: tuple[Any, ...], row: int
) -> None:
    """One row of the result: ``share`` of the estimate and the rest of the mass on ``label``, in descending order."""
    out_ids, out_probs, out_tail = out[0][row], out[1][row], out[2]
    width, size, tail = len(out_ids), 0, share * rest
    boosted, is_listed, is_placed = share * label_prob + (1.0 - share), False, False
    for at in range(len(ids)):
        is_listed |= ids[at] == label
    if not is_listed:
        tail = share * (rest - label_prob) if rest > label_prob else 0.0
    for at in range(len(ids) + 1):
        if not is_placed and (
            at == len(ids) or share * probs[at] < boosted or (share * probs[at] == boosted and ids[at] > label)
        ):
            is_placed = True
            if boosted > 0 and size < width:
                out_ids[size], out_probs[size], size = label, boosted, size + 1
            else:
                tail += boosted
        if at < len(ids) and ids[at] != label:
            if np.float32(share * probs[at]) > 0 and size < width:
                out_ids[size], out_probs[size], size = ids[at], share * probs[at], size + 1
            else:
                tail += share * probs[at]
    out_tail[row] = tail


@compiled
def _num_types(index: Index, own: Own, leave: int, distance: int, node: int, place: int) -> int:
    """Distinct tokens after a context, after leaving out."""
    start, num = _span(index, distance, node)
    types = 0
    for at in range(start, start + num):
        token, count = _entry(index, distance, at)
        types += count > leave * _own_pairs(own, place, token)
    return types


@compiled
def _weigh_orders(
    index: Index, own: Own, leave: int, nodes: Ints, row: int, top: int, total: int, types: Ints, weights: Floats
) -> None:
    """What one observation after each context is worth (Witten and Bell); counts times ``weights`` add up to 1.

    ``types`` keeps the number of distinct tokens of each place; -1 = not known yet.
    """
    left = 1.0
    for distance in range(top, 0, -1):
        node, place = nodes[distance, row], own[0][distance, row]
        if types[place] < 0:
            types[place] = _num_types(index, own, leave, distance, node, place)
        count = np.int64(index[1][node, 1]) - leave * own[1][place]
        weights[distance] = left / (count + types[place])
        left *= types[place] / (count + types[place])
    if types[0] < 0:
        types[0] = _num_types(index, own, leave, 0, 0, 0)
    weights[0] = left / total


@compiled
def _head_of_mixture(
    index: Index, own: Own, leave: int, nodes: Ints, row: int, top: int,
    num_types: int, weights: Floats, mass: Floats, met: Ints, ids: Ints, probs: Floats,
) -> tuple[int, float]:  # fmt: skip
    """The most probable tokens of all orders together: how many, and the mass of all others.

    ``num_types`` tokens have any mass; ``mass`` [vocab] is zero before and after; ``met`` [vocab] is scratch.
    """
    num_met, size = 0, 0
    for distance in range(top, 0, -1):
        place = own[0][distance, row]
        start, num = _span(index, distance, nodes[distance, row])
        for at in range(start, start + num):
            token, count = _entry(index, distance, at)
            count -= leave * _own_pairs(own, place, token)
            if count > 0:
                if mass[token] == 0:
                    met[num_met], num_met = token, num_met + 1
                mass[token] += weights[distance] * count
    for idx in range(num_met):
        token = met[idx]
        mass[token] += weights[0] * (index[3][token] - leave * _own_pairs(own, 0, token))
        size = _insert(ids, probs, size, token, mass[token])
    for at in range(len(index[4])):
        token, count = _entry(index, 0, at)
        if size == len(ids) and weights[0] * count < probs[size - 1]:
            break
        left = count - leave * _own_pairs(own, 0, token)
        if mass[token] == 0 and left > 0:
            size = _insert(ids, probs, size, token, weights[0] * left)
    for idx in range(num_met):
        mass[met[idx]] = 0.0
    return size, max(0.0, 1.0 - probs[:size].sum()) if num_types > size else 0.0


@compiled
def _prob_of_label(
    index: Index, own: Own, leave: int, nodes: Ints, row: int, top: int, label: int, weights: Floats
) -> float:
    prob = 0.0
    for distance in range(top, -1, -1):
        if weights[distance] > 0:
            count = _count_of(index, distance, nodes[distance, row], label)
            if count and leave:
                count -= _own_pairs(own, own[0][distance, row], label)
            prob += weights[distance] * count
    return prob


@compiled
def fill_rows(
    index: Index, tokens: NDArray[np.int32], first: int, order: int, num_tokens: int,
    leave: int, min_count: int, share: float, is_mixture: bool, out: tuple[Any, ...],
) -> None:  # fmt: skip
    """Write the prior of every position from ``first`` on (the equations stand in ``prior``).

    Args:
        index: The counts.
        tokens: The example, int32 [context + length].
        first: Tokens before the first position.
        order: Longest context.
        num_tokens: Positions counted in the corpus.
        leave: 1 = subtract what the example contributed, 0 = do not.
        min_count: Observations that a context needs.
        share: Weight of the estimate, 1 / gamma.
        is_mixture: Whether shorter contexts are mixed in.
        out: token_ids int32 and probs float32 [length, width] (filled with -1 and 0), tail float32, orders int8 and
            observed int64 [length].
    """
    nodes = find_contexts(index, tokens, first, order, min_count + leave)
    own, labels, width, total = count_own(nodes), tokens[first:], out[0].shape[1], num_tokens
    total -= leave * len(labels)
    tops, observed = choose_orders(index, nodes, own, leave, min_count, total)
    ids, probs = np.empty((len(labels), width), np.int64), np.empty((len(labels), width), np.float64)
    sizes, rests, sources = np.zeros(len(labels), np.int64), np.zeros(len(labels)), np.full(len(own[1]), -1, np.int64)
    types, weights = np.full(len(own[1]), -1, np.int64), np.zeros(order + 1)
    mass, met = np.zeros(len(index[3]) if is_mixture else 0), np.empty(len(index[3]) if is_mixture else 0, np.int64)
    for row in range(len(labels)):
        top, label = tops[row], labels[row]
        out[3][row], out[4][row] = top, observed[row]
        if top < 0:
            _write_row(ids[row, :0], probs[row, :0], 0.0, label, 0.0, 0.0, out, row)
            continue
        place, node = own[0][top, row], nodes[top, row]
        if leave and sources[place] < 0:
            for distance in range(0 if is_mixture else top, top + 1):
                _add_pairs(own, distance, own[0][distance, row], labels)
        weights[:] = 0.0
        weights[top] = 1.0 / observed[row]
        if is_mixture:
            _weigh_orders(index, own, leave, nodes, row, top, total, types, weights)
        if sources[place] < 0:
            sources[place] = row
            if is_mixture:
                head = _head_of_mixture(index, own, leave, nodes, row, top, types[0], weights, mass, met, ids[row], probs[row])
            else:
                head = _head_of_longest(index, own, leave, top, node, place, observed[row], ids[row], probs[row])
            sizes[row], rests[row] = head
        base = sources[place]
        size, prob = sizes[base], -1.0
        for at in range(size):
            if ids[base, at] == label:
                prob = probs[base, at]
        if prob < 0:
            prob = _prob_of_label(index, own, leave, nodes, row, top, label, weights) if rests[base] > 0 else 0.0
        _write_row(ids[base, :size], probs[base, :size], rests[base], label, prob, share, out, row)

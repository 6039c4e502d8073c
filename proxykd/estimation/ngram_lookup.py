"""Looking one example up in the counts, compiled: its contexts, what it contributed itself, the rows.

The contexts before an example's positions ("places") are met by walking the trie. How often the example itself
contributed to each is counted in a hash table keyed by the record's number, and what it wrote there in another, keyed
by ``place << 32 | token``. A place is a slot of the first table plus 1; place 0 is the empty context, whose record is
number 0. Rows of one example that share a context share an estimate, which is computed once.

    index   (roots, contexts, entries), as in ``ngrams.Trie``
    own     (places int64 [order + 1, length], sizes, heads int64 [num_places], links int64 [order + 1, length],
            has_pairs bool [num_places], pair_keys, pair_counts int64): heads and links chain the rows of a place
    out     token_ids int32 and probs float32 [length, width] (filled with -1 and 0), tail float32, orders int8 and
            observed int64 [length]

This module knows arrays alone; the equations stand in ``prior``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxykd.estimation.compiling import compiled
from proxykd.estimation.ngram_files import LONG_LIST

Index = tuple[Any, ...]
Own = tuple[Any, ...]
Rows = tuple[Any, ...]
Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Records = NDArray[np.uint32]


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
def _find_child(contexts: Records, node: int, token: int) -> int:
    found, end = np.int64(contexts[node, 3]), np.int64(contexts[node + 1, 3])
    size = end - found
    while size > 1:
        half = size >> 1
        found = found + half if contexts[found + half, 0] <= token else found
        size -= half
    return found if size and contexts[found, 0] == token else -1


@compiled
def _find_contexts(index: Index, tokens: NDArray[np.int32], first: int, order: int, floor: int) -> Ints:
    """Records of the contexts seen ``floor`` times before each position, int64 [order + 1, length]; -1 = none."""
    roots, contexts, _ = index
    length = len(tokens) - first
    nodes = np.full((order + 1, length), -1, np.int64)
    nodes[0] = 0
    for distance in range(1, order + 1):
        for row in range(max(0, distance - first), length):
            back, node = tokens[first + row - distance], nodes[distance - 1, row]
            if node < 0:
                continue
            found = np.int64(-1)
            if distance > 1:
                found = _find_child(contexts, node, back)
            elif back < len(roots):
                found = roots[back]
            if found >= 0 and contexts[found, 1] >= floor:
                nodes[distance, row] = found
    return nodes


@compiled
def _count_own(nodes: Ints) -> Own:
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
def _choose_orders(contexts: Records, nodes: Ints, places: Ints, sizes: Ints, leave: int, min_count: int) -> Rows:
    """The longest believed context of each row and its observations after leaving out; -1 and 0 = no evidence."""
    length = nodes.shape[1]
    orders, observed = np.full(length, -1, np.int64), np.zeros(length, np.int64)
    for row in range(length):
        for distance in range(len(nodes)):
            if nodes[distance, row] < 0:
                break
            count = np.int64(contexts[nodes[distance, row], 1]) - leave * sizes[places[distance, row]]
            if count < (min_count if distance else 1):
                break
            orders[row], observed[row] = distance, count
    return orders, observed


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
def _span(contexts: Records, node: int) -> tuple[int, int]:
    """Where the list after a context begins, and how many tokens it has."""
    start, end = np.int64(contexts[node, 2]), np.int64(contexts[node + 1, 2])
    return start, (end - start) // 2 if end - start > LONG_LIST else end - start


@compiled
def _count_of(contexts: Records, entries: Records, node: int, token: int) -> int:
    """How often ``token`` followed a context in the whole corpus."""
    at, size = _span(contexts, node)
    if size <= LONG_LIST:
        for idx in range(at, at + size):
            if entries[idx, 0] == token:
                return np.int64(entries[idx, 1])
        return 0
    at += size
    while size > 1:
        half = size >> 1
        at = at + half if entries[at + half, 0] <= token else at
        size -= half
    return np.int64(entries[at, 1]) if entries[at, 0] == token else 0


@compiled
def _insert(ids: Ints, probs: Floats, size: int, token: int, prob: float) -> int:
    """Put a token into a list in descending order (ties: ascending ids) that keeps its best; its new size."""
    at = size
    while at > 0 and (probs[at - 1] < prob or (probs[at - 1] == prob and ids[at - 1] > token)):
        if at < len(ids):
            ids[at], probs[at] = ids[at - 1], probs[at - 1]
        at -= 1
    if at < len(ids):
        ids[at], probs[at] = token, prob
    return min(size + 1, len(ids))


@compiled
def _head_of_longest(
    contexts: Records, entries: Records, pair_keys: Ints, pair_counts: Ints, leave: int,
    node: int, place: int, observed: int, ids: Ints, probs: Floats,
) -> tuple[int, float]:  # fmt: skip
    """The most frequent tokens after one context, after leaving out: how many, and the mass of all others."""
    start, num = _span(contexts, node)
    size, listed = 0, 0
    for at in range(start, start + num):
        token, count = np.int64(entries[at, 0]), np.int64(entries[at, 1])
        if size == len(ids) and count < probs[size - 1]:
            break
        left = count
        if leave:
            left -= pair_counts[_find(pair_keys, (place << 32) | token)]
        if left <= 0:
            continue
        if size == len(ids) and (left < probs[size - 1] or (left == probs[size - 1] and token > ids[size - 1])):
            if left == count:  # those after it are no better
                break
            continue
        size = _insert(ids, probs, size, token, float(left))
    for at in range(size):
        listed += np.int64(probs[at])
        probs[at] /= observed
    return size, (observed - listed) / observed


@compiled
def _write_row(
    ids: Ints, probs: Floats, rest: float, label: int, label_prob: float, share: float,
    out_ids: NDArray[np.int32], out_probs: NDArray[np.float32],
) -> float:  # fmt: skip
    """``share`` of the estimate, the rest of the mass on ``label``, in descending order; the mass of the tail.

    ``label_prob`` is the label's in the estimate, -1 = it is among ``ids``.
    """
    size, tail, boosted, is_placed = 0, share * rest, 1.0 - share, False
    if label_prob >= 0:
        tail = share * max(0.0, rest - label_prob)
        boosted += share * label_prob
    else:
        at = 0
        while ids[at] != label:
            at += 1
        boosted += share * probs[at]
    for at in range(len(ids) + 1):
        prob = share * probs[at] if at < len(ids) else -1.0
        if not is_placed and (prob < boosted or (prob == boosted and ids[at] > label)):
            is_placed = True
            if boosted > 0 and size < len(out_ids):
                out_ids[size], out_probs[size] = label, boosted
                size += 1
            else:
                tail += boosted
        if at < len(ids) and ids[at] != label:
            if size < len(out_ids) and np.float32(prob) > 0:
                out_ids[size], out_probs[size] = ids[at], prob
                size += 1
            else:
                tail += prob
    return tail


@compiled
def fill_longest(
    index: Index, tokens: NDArray[np.int32], first: int, order: int, leave: int, min_count: int, share: float, out: Rows
) -> None:
    """Write the prior of every position from ``first`` on, each after the longest believed context alone.

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
    _, contexts, entries = index
    out_ids, out_probs, out_tail, out_orders, out_observed = out
    nodes, labels, width = (
        _find_contexts(index, tokens, first, order, min_count + leave),
        tokens[first:],
        out_ids.shape[1],
    )
    own = _count_own(nodes)
    places, sizes, _, _, _, pair_keys, pair_counts = own
    tops, observed = _choose_orders(contexts, nodes, places, sizes, leave, min_count)
    ids, probs = np.empty((len(labels), width), np.int64), np.empty((len(labels), width), np.float64)
    heads, rests, sources = np.zeros(len(labels), np.int64), np.zeros(len(labels)), np.full(len(sizes), -1, np.int64)
    for row in range(len(labels)):
        top, label = tops[row], labels[row]
        out_orders[row], out_observed[row] = top, observed[row]
        if top < 0:
            out_tail[row] = _write_row(ids[row, :0], probs[row, :0], 0.0, label, 0.0, 0.0, out_ids[row], out_probs[row])
            continue
        place, node = places[top, row], nodes[top, row]
        if sources[place] < 0:
            sources[place] = row
            if leave:
                _add_pairs(own, top, place, labels)
            heads[row], rests[row] = _head_of_longest(
                contexts, entries, pair_keys, pair_counts, leave, node, place, observed[row], ids[row], probs[row]
            )
        base, prob = sources[place], 0.0
        size = heads[base]
        for at in range(size):
            prob = -1.0 if ids[base, at] == label else prob
        if prob == 0 and rests[base] > 0:
            count = _count_of(contexts, entries, node, label)
            if count and leave:
                count -= pair_counts[_find(pair_keys, (place << 32) | np.int64(label))]
            prob = count / observed[row]
        out_tail[row] = _write_row(
            ids[base, :size], probs[base, :size], rests[base], label, prob, share, out_ids[row], out_probs[row]
        )

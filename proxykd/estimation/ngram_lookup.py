"""Looking one example up in the counts, compiled: its contexts, what it contributed itself, the rows.

The contexts before an example's positions ("places") are met by walking the trie. How often the example itself
contributed to each is counted in a hash table keyed by the record's number, and what it wrote there in another, keyed
by ``place << 32 | token``. A place is a slot of the first table plus 1; place 0 is the empty context, whose record is
number 0. Rows of one example that share a context share an estimate, which is computed once.

    index   (roots, contexts, entries), as in ``ngrams.Trie``
    own     (places int64 [order + 1, length], sizes, heads int64 [num_places], links int64 [order + 1, length],
            has_pairs bool [num_places], pair_keys, pair_counts int64, masks uint64 [num_places]): heads and links
            chain the rows of a place; bit i of its mask: the example wrote a token there whose id is i modulo 64
    out     token_ids int32 and probs float32 [length, width] (filled with -1 and 0), tail float32, orders int8 and
            observed int64 [length]

This module knows arrays alone; the equations stand in ``prior``.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxykd.compiling import compiled
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
def _count_own(nodes: Ints, labels: NDArray[np.int32]) -> Own:
    """What the example contributed to each of its own contexts; pairs are added by ``_add_pairs`` when needed."""
    order, length = len(nodes) - 1, nodes.shape[1]
    num_keys = 0
    for distance in range(1, order + 1):
        for row in range(length):
            num_keys += nodes[distance, row] >= 0
    keys = _table(num_keys)
    sizes, heads = np.zeros(len(keys) + 1, np.int64), np.full(len(keys) + 1, -1, np.int64)
    masks = np.zeros(len(sizes), np.uint64)
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
            masks[place] |= np.uint64(1) << np.uint64(labels[row] & 63)
            links[distance, row] = heads[place]
            heads[place] = row
    pair_keys = _table(num_keys + length)
    pair_counts, has_pairs = np.zeros(len(pair_keys), np.int64), np.zeros(len(sizes), np.bool_)
    return places, sizes, heads, links, has_pairs, pair_keys, pair_counts, masks


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
    _, _, heads, links, has_pairs, pair_keys, pair_counts, _ = own
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
def _own_of(own: Own, place: int, token: int, labels: NDArray[np.int32]) -> int:
    """How often the example itself wrote ``token`` at ``place``; ``_add_pairs`` was called if it was there twice."""
    _, sizes, heads, _, _, pair_keys, pair_counts, _ = own
    if sizes[place] == 1:
        return np.int64(labels[heads[place]] == token)
    return pair_counts[_find(pair_keys, (place << 32) | np.int64(token))]


@compiled
def _insert(ids: Ints, probs: Floats, row: int, size: int, token: int, prob: float) -> int:
    """Put a token into a row in descending order (ties: ascending ids) that keeps its best; its new size."""
    at, width = size, ids.shape[1]
    while at > 0 and (probs[row, at - 1] < prob or (probs[row, at - 1] == prob and ids[row, at - 1] > token)):
        if at < width:
            ids[row, at], probs[row, at] = ids[row, at - 1], probs[row, at - 1]
        at -= 1
    if at < width:
        ids[row, at], probs[row, at] = token, prob
    return min(size + 1, width)


@compiled
def _head_of_longest(
    index: Index, own: Own, leave: int, node: int, place: int, labels: NDArray[np.int32],
    observed: int, ids: Ints, probs: Floats, row: int,
) -> tuple[int, float]:  # fmt: skip
    """The most frequent tokens after one context, after leaving out: how many, and the mass of all others."""
    _, contexts, entries = index
    start, num = _span(contexts, node)
    size, listed, width = 0, 0, ids.shape[1]
    mask = own[7][place] if leave else np.uint64(0)
    for at in range(start, start + num):
        token, count = np.int64(entries[at, 0]), np.int64(entries[at, 1])
        if size == width and count < probs[row, size - 1]:
            break
        left = count
        if (mask >> np.uint64(token & 63)) & np.uint64(1):
            left -= _own_of(own, place, token, labels)
            if left <= 0:
                continue
        last = size - 1
        if size == width and (left < probs[row, last] or (left == probs[row, last] and token > ids[row, last])):
            if left == count:  # those after it are no better
                break
            continue
        size = _insert(ids, probs, row, size, token, float(left))
    for at in range(size):
        listed += np.int64(probs[row, at])
        probs[row, at] /= observed  # to the last bit as the label's is, which may tie with it
    return size, (observed - listed) / observed


@compiled
def _place_of_label(ids: Ints, base: int, size: int, label: int) -> int:
    for at in range(size):
        if ids[base, at] == label:
            return at
    return -1


@compiled
def _write_row(
    ids: Ints, probs: Floats, base: int, size: int, rest: float, at: int, label: int, label_prob: float, share: float,
    out: Rows, row: int,
) -> None:  # fmt: skip
    """``share`` of the estimate in row ``base``, the rest of the mass on ``label``, in descending order.

    ``at`` is where the label stands among ``ids``; -1 = nowhere, its probability is ``label_prob``.
    """
    out_ids, out_probs, out_tail, _, _ = out
    width = out_ids.shape[1]
    boosted = share * (probs[base, at] if at >= 0 else label_prob) + (1.0 - share)
    tail = share * rest if at >= 0 else share * max(0.0, rest - label_prob)
    spot = end = at if at >= 0 else size
    while spot > 0 and (
        share * probs[base, spot - 1] < boosted
        or (share * probs[base, spot - 1] == boosted and ids[base, spot - 1] > label)
    ):
        spot -= 1
    for idx in range(spot):
        out_ids[row, idx], out_probs[row, idx] = ids[base, idx], share * probs[base, idx]
    if boosted > 0 and spot < width:
        out_ids[row, spot], out_probs[row, spot] = label, boosted
    else:
        tail += boosted
    for idx in range(spot, min(end, width - 1)):
        out_ids[row, idx + 1], out_probs[row, idx + 1] = ids[base, idx], share * probs[base, idx]
    if spot < end == width:
        tail += share * probs[base, width - 1]
    for idx in range(end + 1, size):
        out_ids[row, idx], out_probs[row, idx] = ids[base, idx], share * probs[base, idx]
    out_tail[row] = tail


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
        share: Weight of the estimate, 1 / gamma; 0 = the written token alone.
        out: Receives the rows.
    """
    _, contexts, entries = index
    nodes, labels = _find_contexts(index, tokens, first, order, min_count + leave), tokens[first:]
    own, width = _count_own(nodes, labels), out[0].shape[1]
    places, sizes = own[0], own[1]
    tops, observed = _choose_orders(contexts, nodes, places, sizes, leave, min_count)
    out[3][:], out[4][:] = tops, observed
    ids, probs = np.empty((len(labels), width), np.int64), np.empty((len(labels), width), np.float64)
    ends, rests, sources = np.zeros(len(labels), np.int64), np.zeros(len(labels)), np.full(len(sizes), -1, np.int64)
    for row in range(len(labels)):
        top, label = tops[row], labels[row]
        if top < 0 or share == 0:
            _write_row(ids, probs, row, 0, 0.0, -1, label, 0.0, 0.0, out, row)
            continue
        place, node = places[top, row], nodes[top, row]
        if sources[place] < 0:
            sources[place] = row
            if leave and sizes[place] > 1:
                _add_pairs(own, top, place, labels)
            ends[row], rests[row] = _head_of_longest(
                index, own, leave, node, place, labels, observed[row], ids, probs, row
            )
        base, prob = sources[place], 0.0
        at = _place_of_label(ids, base, ends[base], label)
        if at < 0 and rests[base] > 0:
            count = _count_of(contexts, entries, node, label)
            prob = (count - (_own_of(own, place, label, labels) if leave and count else 0)) / observed[row]
        _write_row(ids, probs, base, ends[base], rests[base], at, label, prob, share, out, row)

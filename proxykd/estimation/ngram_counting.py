"""Sorting and counting, compiled: positions -> contexts and the tokens seen after them.

Contexts form a trie read backwards from a position: a context of order k is its last k tokens, its parent the last
k - 1. Positions are sorted by the token before them, then within each context by the token before that, and so on.
A context seen once is not extended: what a longer one saw is what it saw. Nothing is hashed, so no two contexts can
be taken for one another.

    record of a context   uint32 [4]: token at its far end, observations, first entry, first child
    list of a context     entries uint32 [2]: token, count; most frequent first, then by token

A list longer than ``LONG_LIST`` is followed by a copy of itself ordered by token. Where a list or a family of
children ends, the next record's begins; each block of contexts ends with a record that holds nothing else.

This module knows arrays alone; numba compiles it when first used and keeps the result on disk.
"""

import numpy as np
from numpy.typing import NDArray

from proxykd.compiling import compiled
from proxykd.estimation.ngram_files import LONG_LIST

_LOW_32 = 2**32 - 1


@compiled
def count_tokens(
    tokens: NDArray[np.int32], spans: NDArray[np.int64], unigrams: NDArray[np.int64], previous: NDArray[np.int64]
) -> None:
    """Add up every counted token, and the token before each.

    Args:
        tokens: Examples one after another, a -1 before each.
        spans: Where each example's counted tokens begin and end, int64 [num_examples, 2].
        unigrams: Occurrences of each token, int64 [vocab]; added to.
        previous: Counted tokens that each token precedes, int64 [vocab]; added to.
    """
    for row in range(len(spans)):
        for at in range(spans[row, 0], spans[row, 1]):
            unigrams[tokens[at]] += 1
            if tokens[at - 1] >= 0:
                previous[tokens[at - 1]] += 1


@compiled
def select_positions(
    tokens: NDArray[np.int32], spans: NDArray[np.int64], low: int, high: int, positions: NDArray[np.uint32]
) -> None:
    """Fill ``positions`` with every counted position whose previous token lies in ``low .. high - 1``."""
    found = 0
    for row in range(len(spans)):
        for at in range(spans[row, 0], spans[row, 1]):
            if low <= tokens[at - 1] < high:
                positions[found] = at
                found += 1


@compiled
def _sort_group(
    tokens: NDArray[np.int32],
    distance: int,
    bits: int,
    group: NDArray[np.uint32],
    keys: NDArray[np.uint64],
    held: NDArray[np.uint32],
) -> int:
    """Keys (token ``distance`` back, token here, number in ``held``) in order; how many have such a token at all."""
    size = 0
    for idx in range(len(group)):
        at = np.int64(group[idx])
        back = tokens[at - distance]
        if back >= 0:
            held[size] = group[idx]
            pair = (np.uint64(back) << np.uint64(bits)) | np.uint64(tokens[at])
            keys[size] = (pair << np.uint64(64 - 2 * bits)) | np.uint64(size)
            size += 1
    if size > 1:
        keys[:size].sort()
    return size


@compiled
def _write_list(
    keys: NDArray[np.uint64], bits: int, packed: NDArray[np.uint64], entries: NDArray[np.uint32], first: int
) -> int:
    """The entries of one context from its sorted keys, written from ``first``; where they end."""
    mask, shift = np.uint64((1 << bits) - 1), np.uint64(64 - 2 * bits)
    size = start = 0
    while start < len(keys):
        token, end = (keys[start] >> shift) & mask, start + 1
        while end < len(keys) and (keys[end] >> shift) & mask == token:
            end += 1
        packed[size] = (np.uint64(_LOW_32 - (end - start)) << np.uint64(32)) | token
        size, start = size + 1, end
    if size > LONG_LIST:
        for idx in range(size):
            entries[first + size + idx, 0] = packed[idx] & np.uint64(_LOW_32)
            entries[first + size + idx, 1] = _LOW_32 - np.int64(packed[idx] >> np.uint64(32))
    if size > 1:
        packed[:size].sort()
    for idx in range(size):
        entries[first + idx, 0] = packed[idx] & np.uint64(_LOW_32)
        entries[first + idx, 1] = _LOW_32 - np.int64(packed[idx] >> np.uint64(32))
    return first + (2 * size if size > LONG_LIST else size)


@compiled
def extend_contexts(
    tokens: NDArray[np.int32],
    distance: int,
    bits: int,
    positions: NDArray[np.uint32],
    ends: NDArray[np.int64],
    contexts: NDArray[np.uint32],
    entries: NDArray[np.uint32],
    children: NDArray[np.int64],
    next_ends: NDArray[np.int64],
) -> tuple[int, int, int]:
    """Split groups of positions by the token ``distance`` back, and list what follows each new context.

    Args:
        tokens: Examples one after another, a -1 before each.
        distance: Order of the new contexts, >= 1.
        bits: Of a token id; a group has at most 2**(64 - 2 bits) positions.
        positions: Grouped by their context of order ``distance - 1``; those of the new contexts that were seen twice
            replace them, from the front.
        ends: Where each group ends in ``positions``, int64 [num_groups].
        contexts: Receives a record for each new context, uint32 [len(positions), 4]; the fourth field is not set.
        entries: Receives the lists, uint32 [2 len(positions), 2].
        children: Receives the number of new contexts of each group, int64 [num_groups].
        next_ends: Receives where the new groups end, int64 [len(positions)].

    Returns:
        How many contexts, entries and groups there are now.
    """
    keys = np.empty(len(positions), np.uint64)
    packed = np.empty(len(positions), np.uint64)
    held = np.empty(len(positions), np.uint32)
    shift, mask = np.uint64(64 - bits), (np.uint64(1) << np.uint64(64 - 2 * bits)) - np.uint64(1)
    num_contexts = num_entries = num_groups = kept = low = 0
    for group in range(len(ends)):
        size = _sort_group(tokens, distance, bits, positions[low : ends[group]], keys, held)
        low, start, first = ends[group], 0, num_contexts
        while start < size:
            token, end = keys[start] >> shift, start + 1
            while end < size and keys[end] >> shift == token:
                end += 1
            contexts[num_contexts, 0] = token
            contexts[num_contexts, 1] = end - start
            contexts[num_contexts, 2] = num_entries
            num_entries = _write_list(keys[start:end], bits, packed, entries, num_entries)
            num_contexts += 1
            if end - start > 1:
                for idx in range(start, end):
                    positions[kept] = held[np.int64(keys[idx] & mask)]
                    kept += 1
                next_ends[num_groups] = kept
                num_groups += 1
            start = end
        children[group] = num_contexts - first
    return num_contexts, num_entries, num_groups

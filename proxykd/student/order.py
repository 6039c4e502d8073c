"""Which examples make up which step: seeded epochs, batches of similar length, the same rule for every arm."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray

# Batches among which lengths are matched: more = less padding, fewer = closer to a plain shuffle.
WINDOW_BATCHES = 16


def training_batches(lengths: NDArray[np.int32], *, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices without end.

    The epochs' permutations run on one after the other; each stretch of ``WINDOW_BATCHES`` batches is sorted by
    length, cut into batches, and these are shuffled. Every example is therefore seen once before any is seen twice,
    but for one window across the border of two epochs. Such a window can hold an example twice, and sorting puts the
    copies side by side, so they may share a batch; with fewer examples than ``WINDOW_BATCHES * batch_size`` every
    window holds copies. They then count as often as they occur, in every arm alike.

    Args:
        lengths: Tokens of each example, [num_examples], not empty.
        batch_size: Examples in each batch, always full.
        seed: Same seed, same batches.
    """
    rng = np.random.default_rng(seed)
    epochs = (rng.permutation(len(lengths)).tolist() for _ in iter(int, 1))
    stream: Iterator[int] = chain.from_iterable(epochs)
    while True:
        window = np.fromiter(islice(stream, WINDOW_BATCHES * batch_size), np.int64)
        batches = window[np.argsort(lengths[window], kind="stable")].reshape(WINDOW_BATCHES, batch_size)
        yield from rng.permutation(batches).tolist()


def micro_batches(batch: Sequence[int], lengths: NDArray[np.int32], *, max_tokens: int) -> list[list[int]]:
    """Cut a batch into consecutive parts of at most ``max_tokens`` tokens; a longer example is a part of its own."""
    parts: list[list[int]] = [[]]
    room = max_tokens
    for index, length in zip(batch, lengths[list(batch)].tolist(), strict=True):
        if parts[-1] and length > room:
            parts.append([])
            room = max_tokens
        parts[-1].append(index)
        room -= length
    return parts

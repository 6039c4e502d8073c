"""Which examples make up which step: seeded order, batches of similar length, the same rule for proxy and students."""

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
        yield from _batches_of_window(window, lengths, batch_size, rng).tolist()


def batch_by_length(
    indices: NDArray[np.int64], lengths: NDArray[np.int32], *, batch_size: int, seed: int
) -> NDArray[np.int64]:
    """The same indices, so ordered that consecutive batches hold examples of similar length.

    Args:
        indices: Examples in a random order, [num_indices].
        lengths: Tokens of each example.
        batch_size: Examples in each batch but the last, which has what is left over, of any length.
        seed: Same seed, same order.

    Returns:
        A permutation of ``indices``; no example leaves its stretch of ``WINDOW_BATCHES`` batches.
    """
    rng = np.random.default_rng(seed)
    num_full = len(indices) // batch_size * batch_size
    windows = np.split(indices[:num_full], range(WINDOW_BATCHES * batch_size, num_full, WINDOW_BATCHES * batch_size))
    batched = [_batches_of_window(window, lengths, batch_size, rng).reshape(-1) for window in windows]
    return np.concatenate([*batched, indices[num_full:]])


def _batches_of_window(
    window: NDArray[np.int64], lengths: NDArray[np.int32], batch_size: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """Full batches, [num_batches, batch_size], each of similar lengths, in random order."""
    batches = window[np.argsort(lengths[window], kind="stable")].reshape(-1, batch_size)
    return rng.permutation(batches)


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

"""Which examples make up which step, and how a step is worked off: the same rule for every arm."""

from collections.abc import Iterator, Sequence
from itertools import chain, islice

import numpy as np
from numpy.typing import NDArray


def training_batches(num_examples: int, *, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Batches of indices without end: shuffled epochs laid end to end, cut into batches.

    Every example is seen once before any is seen twice. Batches are not matched by length: texts of one length are
    alike in other ways too, and as many steps that each see one kind of text learn less. ``micro_batches`` saves the
    padding instead.

    Args:
        num_examples: Size of the corpus, at least 1.
        batch_size: Examples in each batch, always full; one at the border of two epochs can hold an example twice.
        seed: Same seed, same batches.
    """
    rng = np.random.default_rng(seed)
    epochs = (rng.permutation(num_examples).tolist() for _ in iter(int, 1))
    stream: Iterator[int] = chain.from_iterable(epochs)
    while True:
        yield list(islice(stream, batch_size))


def micro_batches(
    batch: Sequence[int],
    lengths: NDArray[np.int32],
    completion_lengths: NDArray[np.int32],
    *,
    max_completion_tokens: int,
) -> list[list[int]]:
    """Cut a batch into parts of similar length, longest first.

    Args:
        batch: Indices of examples.
        lengths: Tokens of each example of the corpus, prompt and completion.
        completion_lengths: Of these, the completion's.
        max_completion_tokens: Bound on the completion tokens of a part; a longer example is a part of its own.

    Returns:
        Each index as often as in ``batch``. No example is shorter than half the longest of its part, so that padding
        is always less than half.
    """
    parts: list[list[int]] = []
    room = longest = 0
    for index in sorted(batch, key=lambda index: -lengths[index]):
        if not parts or completion_lengths[index] > room or 2 * lengths[index] < longest:
            parts.append([])
            room, longest = max_completion_tokens, int(lengths[index])
        parts[-1].append(index)
        room -= int(completion_lengths[index])
    return parts

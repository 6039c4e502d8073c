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
    return _shuffled(range(num_examples), batch_size, np.random.default_rng(seed))


def staged_batches(stages: NDArray[np.int32], *, num_steps: int, batch_size: int, seed: int) -> Iterator[list[int]]:
    """The batches of a run, one a step: first the rows of the first stage, then those of the next.

    Within a stage the batches are those of ``training_batches``; a corpus of one stage gives exactly those.

    Args:
        stages: Stage of each example, int32 [num_examples], at least one.
        num_steps: Steps of the run, shared out by ``stage_steps``.
        batch_size: Examples in each batch, always full and all of one stage.
        seed: Same seed, same batches.

    Raises:
        ValueError: if there are fewer steps than stages.
    """
    rng = np.random.default_rng(seed)
    names, sizes = np.unique(stages, return_counts=True)
    for name, steps in zip(names, stage_steps(sizes.tolist(), num_steps), strict=True):
        yield from islice(_shuffled(np.flatnonzero(stages == name), batch_size, rng), steps)


def _shuffled(
    examples: Sequence[int] | NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> Iterator[list[int]]:
    """Batches without end: shuffled epochs laid end to end."""
    pool = np.asarray(examples)
    epochs = (pool[rng.permutation(len(pool))].tolist() for _ in iter(int, 1))
    stream: Iterator[int] = chain.from_iterable(epochs)
    while True:
        yield list(islice(stream, batch_size))


def stage_steps(sizes: Sequence[int], num_steps: int) -> list[int]:
    """How many of a run's steps each stage gets: in proportion to its rows, at least one where it has any.

    By rows, and not by tokens, because a batch is so many rows: every row is then seen about as often as any other,
    as in Orca (arXiv:2306.02707), which trains as many epochs on one teacher's texts as on the other's. By tokens, the
    longer texts of the better teacher would be repeated more often.

    Args:
        sizes: Rows of each stage, in order; not all 0.
        num_steps: To share out, at least the number of stages that have rows.

    Returns:
        One count for each stage, ``num_steps`` in all (largest remainders first, earlier stages first among equals).

    Raises:
        ValueError: if there are fewer steps than stages with rows.

    Example:
        >>> stage_steps([500, 100], 60)
        [50, 10]
    """
    filled, total = [stage for stage, size in enumerate(sizes) if size], sum(sizes)
    if num_steps < len(filled):
        raise ValueError(f"expected a step for each of {len(filled)} stages that have rows, got num_steps={num_steps}")
    steps = [num_steps * size // total for size in sizes]
    by_remainder = sorted(filled, key=lambda stage: -(num_steps * sizes[stage] % total))
    for stage in by_remainder[: num_steps - sum(steps)]:
        steps[stage] += 1
    for stage in filled:
        if not steps[stage]:
            steps[steps.index(max(steps))] -= 1
            steps[stage] = 1
    return steps


def micro_batches(
    batch: Sequence[int],
    lengths: NDArray[np.int32],
    completion_lengths: NDArray[np.int32],
    *,
    max_completion_tokens: int,
    shortest_share: float = 0.5,
) -> list[list[int]]:
    """Cut a batch into parts of similar length, longest first.

    Args:
        batch: Indices of examples.
        lengths: Tokens of each example of the corpus, prompt and completion.
        completion_lengths: Of these, the completion's.
        max_completion_tokens: Bound on the completion tokens of a part; a longer example is a part of its own.
        shortest_share: No example is shorter than this share of the longest of its part: with 1/2, padding is always
            less than half.

    Returns:
        Each index as often as in ``batch``.
    """
    parts: list[list[int]] = []
    room = longest = 0
    for index in sorted(batch, key=lambda index: -lengths[index]):
        if not parts or completion_lengths[index] > room or lengths[index] < shortest_share * longest:
            parts.append([])
            room, longest = max_completion_tokens, int(lengths[index])
        parts[-1].append(index)
        room -= int(completion_lengths[index])
    return parts


def pack_rows(part: Sequence[int], lengths: NDArray[np.int32], *, row_tokens: int) -> list[list[int]]:
    """Lay examples behind each other into rows, longest first, each into the fullest row that has room (best fit).

    Args:
        part: Indices of examples.
        lengths: Tokens of each example of the corpus.
        row_tokens: Longest row; a longer example has a row of its own.

    Returns:
        Each index as often as in ``part``.

    Example:
        >>> pack_rows([0, 1, 2, 3], np.array([5, 3, 2, 4], np.int32), row_tokens=7)
        [[0, 2], [3, 1]]
    """
    rows: list[list[int]] = []
    room: list[int] = []
    for index in sorted(part, key=lambda index: -lengths[index]):
        length = int(lengths[index])
        fitting = [row for row, left in enumerate(room) if left >= length]
        row = min(fitting, key=room.__getitem__) if fitting else len(rows)
        if not fitting:
            rows.append([])
            room.append(row_tokens)
        rows[row].append(index)
        room[row] -= length
    return rows


def share_out(batch: Sequence[int], lengths: NDArray[np.int32], num_shares: int) -> list[list[int]]:
    """Deal a batch out to processes: longest first, each example to whoever has the fewest tokens.

    Args:
        batch: Indices of examples.
        lengths: Tokens of each example of the corpus.
        num_shares: Processes.

    Returns:
        A share each, some of them empty where there are fewer examples than processes.
    """
    shares: list[list[int]] = [[] for _ in range(num_shares)]
    tokens = [0] * num_shares
    for index in sorted(batch, key=lambda index: -lengths[index]):
        least = tokens.index(min(tokens))
        shares[least].append(index)
        tokens[least] += int(lengths[index])
    return shares

"""The order of the examples: everything seen, nothing twice, little padding."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.data.order import WINDOW_BATCHES, batch_by_length, micro_batches, training_batches

LENGTHS = np.random.default_rng(0).integers(5, 200, size=640).astype(np.int32)


def first_batches(count: int, *, seed: int = 0, batch_size: int = 8) -> list[list[int]]:
    return list(islice(training_batches(LENGTHS, batch_size=batch_size, seed=seed), count))


def test_the_seed_decides_the_order() -> None:
    assert first_batches(40) == first_batches(40)
    assert first_batches(40) != first_batches(40, seed=1)


@pytest.mark.parametrize("num_epochs", [1, 2])
def test_an_epoch_shows_every_example_once(num_epochs: int) -> None:
    # 640 examples are 80 batches of 8, a whole number of windows.
    seen = Counter(index for batch in first_batches(80 * num_epochs) for index in batch)
    assert set(seen.values()) == {num_epochs}
    assert len(seen) == len(LENGTHS)


def test_fewer_examples_than_a_batch_still_fill_it() -> None:
    batches = list(islice(training_batches(LENGTHS[:3], batch_size=8, seed=0), 10))
    assert all(len(batch) == 8 for batch in batches)
    assert max(Counter(index for batch in batches for index in batch).values()) <= 80 / 3 + 1 + WINDOW_BATCHES * 8 / 3


def padding(batches: list[list[int]]) -> float:
    """Padded tokens over real ones."""
    padded = sum(LENGTHS[batch].max() * len(batch) for batch in batches)
    return float(padded / sum(LENGTHS[batch].sum() for batch in batches))


def test_lengths_are_matched_within_a_batch() -> None:
    shuffled = np.random.default_rng(0).permutation(len(LENGTHS))
    batched = batch_by_length(shuffled, LENGTHS, batch_size=8, seed=0)
    assert padding(shuffled.reshape(-1, 8).tolist()) > 1.5
    assert padding(first_batches(80)) < 1.15
    assert padding(batched.reshape(-1, 8).tolist()) < 1.15


@given(num_indices=st.integers(0, 400), batch_size=st.integers(1, 9), seed=st.integers(0, 3))
def test_batching_by_length_keeps_every_example_in_its_window(num_indices: int, batch_size: int, seed: int) -> None:
    indices = np.random.default_rng(seed).integers(0, len(LENGTHS), size=num_indices)
    ordered = batch_by_length(indices, LENGTHS, batch_size=batch_size, seed=seed)
    assert np.array_equal(ordered, batch_by_length(indices, LENGTHS, batch_size=batch_size, seed=seed))
    window, num_full = WINDOW_BATCHES * batch_size, num_indices // batch_size * batch_size
    assert np.array_equal(ordered[num_full:], indices[num_full:])
    for start in range(0, num_full, window):
        stretch = slice(start, min(start + window, num_full))
        assert sorted(ordered[stretch]) == sorted(indices[stretch])


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20), max_tokens=st.integers(1, 120))
def test_micro_batches_keep_order_and_bounds(lengths: list[int], max_tokens: int) -> None:
    batch = list(range(len(lengths)))
    parts = micro_batches(batch, np.array(lengths, np.int32), max_tokens=max_tokens)
    assert [index for part in parts for index in part] == batch
    assert all(len(part) == 1 or sum(lengths[index] for index in part) <= max_tokens for part in parts)

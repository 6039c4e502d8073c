"""The order of the examples: everything seen before anything twice, little padding."""

from collections import Counter
from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proxykd.student.order import micro_batches, training_batches

Lengths = list[tuple[int, int]]


def first_batches(count: int, *, seed: int = 0, num_examples: int = 640) -> list[list[int]]:
    return list(islice(training_batches(num_examples, batch_size=8, seed=seed), count))


def test_the_seed_decides_the_order() -> None:
    assert first_batches(40) == first_batches(40)
    assert first_batches(40) != first_batches(40, seed=1)


@given(num_examples=st.integers(1, 50), num_batches=st.integers(1, 20))
def test_every_example_is_seen_before_any_is_seen_again(num_examples: int, num_batches: int) -> None:
    batches = first_batches(num_batches, num_examples=num_examples)
    assert all(len(batch) == 8 for batch in batches)
    seen = Counter(index for batch in batches for index in batch)
    assert max(seen.values()) - min(seen[index] for index in range(num_examples)) <= 1


def test_epochs_are_shuffled_anew() -> None:
    epochs = np.array(first_batches(160)).reshape(2, -1)
    assert sorted(epochs[0]) == sorted(epochs[1]) == list(range(640))
    assert not np.array_equal(epochs[0], epochs[1])


@given(
    lengths=st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), min_size=1, max_size=20),
    bound=st.integers(1, 120),
)
def test_micro_batches_keep_the_batch_and_the_bounds(lengths: Lengths, bound: int) -> None:
    prompts, completions = (np.array(side, np.int32) for side in zip(*lengths, strict=True))
    totals, batch = prompts + completions, list(range(len(lengths)))
    parts = micro_batches(batch, totals, completions, max_completion_tokens=bound)
    assert sorted(index for part in parts for index in part) == batch
    for part in parts:
        assert len(part) == 1 or completions[part].sum() <= bound
        assert 2 * totals[part].min() >= totals[part].max()


def test_texts_of_like_length_stay_one_part() -> None:
    lengths = np.array([30, 50, 26, 49], np.int32)
    assert micro_batches([0, 1, 2, 3], lengths, lengths, max_completion_tokens=1000) == [[1, 3, 0, 2]]
    assert micro_batches([0, 1, 2, 3], lengths, lengths, max_completion_tokens=130) == [[1, 3, 0], [2]]

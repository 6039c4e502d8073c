"""The order of the examples: stage after stage, everything seen before anything twice, little padding."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.student.order import micro_batches, stage_steps, staged_batches, training_batches

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


def test_a_run_with_one_teacher_has_the_order_that_it_always_had() -> None:
    """The numbers are those of the first release: a student that was trained then can be trained again."""
    pinned = [[2, 0, 4], [1, 3, 0], [1, 4, 3], [2, 4, 2]]
    for stage in (0, 1):
        assert list(staged_batches(np.full(5, stage, np.int32), num_steps=4, batch_size=3, seed=7)) == pinned
    assert list(islice(training_batches(5, batch_size=3, seed=7), 4)) == pinned


@given(
    stages=st.lists(st.integers(0, 3), min_size=1, max_size=60),
    extra=st.integers(0, 40),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 3),
)
def test_no_row_of_a_stage_comes_before_all_steps_of_the_stages_before_it(
    stages: list[int], extra: int, batch_size: int, seed: int
) -> None:
    column, num_steps = np.array(stages, np.int32), len(set(stages)) + extra
    batches = list(staged_batches(column, num_steps=num_steps, batch_size=batch_size, seed=seed))
    assert [len(batch) for batch in batches] == [batch_size] * num_steps
    seen = [{stages[index] for index in batch} for batch in batches]
    assert all(len(one) == 1 for one in seen)
    order = [one.pop() for one in seen]
    assert order == sorted(order)
    assert set(order) == set(stages)
    # Within a stage everything is seen before anything is seen again.
    for stage in set(stages):
        counts = Counter(index for batch, name in zip(batches, order, strict=True) if name == stage for index in batch)
        every = [counts[index] for index, name in enumerate(stages) if name == stage]
        assert max(every) - min(every) <= 1


@given(sizes=st.lists(st.integers(0, 10**7), min_size=1, max_size=9).filter(any), extra=st.integers(0, 1000))
def test_steps_are_shared_out_in_proportion_to_the_rows(sizes: list[int], extra: int) -> None:
    num_filled = sum(size > 0 for size in sizes)
    steps = stage_steps(sizes, num_filled + extra)
    assert sum(steps) == num_filled + extra
    assert [count > 0 for count in steps] == [size > 0 for size in sizes]
    if min(size for size in sizes if size) * sum(steps) >= sum(sizes):  # nobody's share is below one step
        due = [sum(steps) * size / sum(sizes) for size in sizes]
        assert all(abs(count - share) < 1 for count, share in zip(steps, due, strict=True))


def test_a_stage_that_is_due_less_than_a_step_gets_one() -> None:
    assert stage_steps([1000, 1, 0], 10) == [9, 1, 0]
    # 5M texts of the first teacher, 1M of the second, as in Orca: 50,000 and 10,000 of 60,000 steps.
    assert stage_steps([5_000_000, 1_000_000], 60_000) == [50_000, 10_000]
    with pytest.raises(ValueError, match="a step for each of 2 stages that have rows, got num_steps=1"):
        stage_steps([3, 4], 1)

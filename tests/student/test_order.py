"""The order of the examples and the course of the learning rate."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config.models import OptimizerSpec
from proxykd.student.optimizer import learning_rate_factor
from proxykd.student.order import WINDOW_BATCHES, micro_batches, training_batches

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


def test_lengths_are_matched_within_a_batch() -> None:
    def padding(batches: list[list[int]]) -> float:
        padded = sum(LENGTHS[batch].max() * len(batch) for batch in batches)
        return float(padded / sum(LENGTHS[batch].sum() for batch in batches))

    shuffled = np.random.default_rng(0).permutation(len(LENGTHS)).reshape(-1, 8).tolist()
    assert padding(first_batches(80)) < 1.15 < 1.5 < padding(shuffled)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=20), max_tokens=st.integers(1, 120))
def test_micro_batches_keep_order_and_bounds(lengths: list[int], max_tokens: int) -> None:
    batch = list(range(len(lengths)))
    parts = micro_batches(batch, np.array(lengths, np.int32), max_tokens=max_tokens)
    assert [index for part in parts for index in part] == batch
    assert all(len(part) == 1 or sum(lengths[index] for index in part) <= max_tokens for part in parts)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear"])
def test_the_learning_rate_rises_to_its_peak_and_never_rises_again(schedule: str) -> None:
    spec = OptimizerSpec(warmup_ratio=0.2, schedule=schedule)
    factors = [learning_rate_factor(step, num_steps=20, spec=spec) for step in range(20)]
    assert factors[:4] == [0.25, 0.5, 0.75, 1.0]
    assert all(0.0 < factor <= 1.0 for factor in factors)
    assert factors[4:] == sorted(factors[4:], reverse=True)
    assert (factors[-1] == 1.0) == (schedule == "constant")


def test_a_run_of_warm_up_alone_and_one_without() -> None:
    assert learning_rate_factor(3, num_steps=4, spec=OptimizerSpec(warmup_ratio=1.0)) == 1.0
    assert learning_rate_factor(0, num_steps=4, spec=OptimizerSpec(warmup_ratio=0.0)) == 1.0

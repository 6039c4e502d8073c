"""What a filter calls absent is absent, and it hardly ever errs the other way."""

import numpy as np
import pytest

from proxykd.data.filters import HashFilter


def test_what_was_added_may_be_held_and_little_else() -> None:
    rng, hashes = np.random.default_rng(0), HashFilter()
    added = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    others = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    assert not hashes.may_hold(added).any()
    hashes.add(added)
    assert hashes.may_hold(added).all()
    assert hashes.may_hold(others).sum() <= 2


@pytest.mark.parametrize("extreme", [0, 2**64 - 1])
def test_extreme_hashes_are_held(extreme: int) -> None:
    hashes, one = HashFilter(), np.array([extreme], np.uint64)
    hashes.add(one)
    assert hashes.may_hold(one).tolist() == [True]
    assert hashes.may_hold(one[:0]).tolist() == []

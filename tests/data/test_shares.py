"""Shares: nested, of the training sides alone, as large as they say, and the same for ever."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.artifacts import PromptSet
from proxykd.config import DataSplitSpec
from proxykd.data.shares import Share
from proxykd.data.splits import TRAINING_SIDES, side_of
from proxykd.records import Message, Prompt, hash_json

SPLIT = DataSplitSpec()
KEYS = [hash_json(idx, length=16) for idx in range(20_000)]
TRAINING = [key for key in KEYS if side_of(key, SPLIT) in TRAINING_SIDES]
PINNED = [False, True, False, False, False, True, True, True]
FRACTIONS = st.floats(0.0, 1.0, exclude_min=True)


@given(first=FRACTIONS, second=FRACTIONS, are_main=st.tuples(st.booleans(), st.booleans()), key=st.sampled_from(KEYS))
def test_the_prompts_of_a_smaller_share_are_among_those_of_a_larger_one(
    first: float, second: float, are_main: tuple[bool, bool], key: str
) -> None:
    small, large = sorted([first, second])
    if side_of(key, SPLIT) in TRAINING_SIDES:
        assert Share(small, are_main[0], SPLIT).has(key) <= Share(large, are_main[1], SPLIT).has(key)


@given(fraction=FRACTIONS, key=st.sampled_from(KEYS))
def test_what_is_held_out_is_asked_of_the_main_teacher_alone(fraction: float, key: str) -> None:
    if side_of(key, SPLIT) not in TRAINING_SIDES:
        assert Share(fraction, True, SPLIT).has(key)
        assert not Share(fraction, False, SPLIT).has(key)


@pytest.mark.parametrize("fraction", [0.1, 0.5, 1.0])
def test_a_share_is_as_large_as_it_says_on_every_training_side(fraction: float) -> None:
    share = Share(fraction, is_main=True, split=SPLIT)
    for side in TRAINING_SIDES:
        keys = [key for key in TRAINING if side_of(key, SPLIT) is side]
        # Five standard deviations of a binomial share.
        bound = 5 * (fraction * (1 - fraction) / len(keys)) ** 0.5
        assert abs(sum(map(share.has, keys)) / len(keys) - fraction) <= bound


def test_a_share_stays_the_same_in_all_versions() -> None:
    share = Share(0.5, is_main=False, split=SPLIT)
    assert [share.has(key) for key in TRAINING[:8]] == PINNED


def test_counting_is_asking_for_each_and_groups_stay_together(tmp_path: Path) -> None:
    prompts = PromptSet(tmp_path)
    groups = ["" if number % 2 else f"group {number // 10}" for number in range(200)]
    rows = [Prompt.build([Message("user", str(number))], group=group) for number, group in enumerate(groups)]
    prompts.write(rows)
    for is_main in (True, False):
        share = Share(0.4, is_main, SPLIT)
        assert share.count(prompts) == sum(share.has(row.split_key) for row in rows)
    assert 0 < Share(0.4, False, SPLIT).count(prompts) < Share(0.4, True, SPLIT).count(prompts) < 200

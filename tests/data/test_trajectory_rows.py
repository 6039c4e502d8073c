"""Which trajectories become rows, and which prompts keep theirs from it."""

import json
from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

import pytest

from proxykd.artifacts import SplitSet, TrajectorySet, ValidatedSet, seal
from proxykd.config import RunSpec
from proxykd.data.segments import WeightedRow
from proxykd.data.splits import TRAINING_SIDES, build_splits, side_of
from proxykd.data.trajectory_rows import (
    TrajectoryRows,
    check_trajectories,
    count_kept,
    open_trajectories,
    trajectories_identity,
)
from proxykd.exceptions import ArtifactError, InputError
from proxykd.records import Finding, Side
from tests.support.trajectories import correct_all, corrected, write_trajectories

Corpus = tuple[ValidatedSet, SplitSet]


@pytest.fixture(scope="module")
def found(validated: ValidatedSet, tmp_path_factory: pytest.TempPathFactory) -> TrajectorySet:
    return correct_all(validated, tmp_path_factory.mktemp("corrections"))


def rows_of(
    found: TrajectorySet, corpus: Corpus, sides: Collection[Side] = TRAINING_SIDES, *, num: int = 1
) -> tuple[list[WeightedRow], TrajectoryRows]:
    rows = TrajectoryRows([found] * num, *corpus, sides)
    taken = list(rows.after([]))
    assert all(isinstance(row, WeightedRow) for row in taken)
    return taken, rows  # type: ignore[return-value]


@pytest.mark.parametrize("sides", [TRAINING_SIDES, {Side.DISTILLATION}, {Side.WARMUP, Side.ALIGNMENT}])
def test_a_trajectory_teaches_where_its_prompt_may(found: TrajectorySet, corpus: Corpus, sides: set[Side]) -> None:
    allowed = {row.prompt_id for row in corpus[1].rows() if row.side in sides}
    rows, read = rows_of(found, corpus, sides)
    assert {row.prompt_id for row in rows} == allowed
    assert 0 < len(allowed) < found.num_rows
    assert read.counts == (len(allowed), found.num_rows - len(allowed), 0, 0)


def test_trajectories_come_last_with_numbers_of_their_own_in_the_last_stage(
    found: TrajectorySet, corpus: Corpus
) -> None:
    answers = [replace(row, stage=stage) for row, stage in zip(corpus[0].rows(), (0, 2, 1), strict=False)]
    rows = list(TrajectoryRows([found, found], *corpus, TRAINING_SIDES).after(answers))
    assert rows[:3] == answers
    assert [row.sample_idx for row in rows[3:]] == [-1 - number for number in range(len(rows) - 3)]
    assert {row.stage for row in rows[3:]} == {2}


def test_what_the_balance_left_out_does_not_teach(validated: ValidatedSet, corpus: Corpus, tmp_path: Path) -> None:
    all_kept = [corrected(row) for row in validated.rows()]
    some = [replace(one, is_kept=number % 3 == 0) for number, one in enumerate(all_kept)]
    found = write_trajectories(some, tmp_path)
    rows, _ = rows_of(found, corpus, set(Side))
    assert [row.prompt_id for row in rows] == [one.prompt_id for one in some[::3]]
    assert count_kept([found]) == len(rows)


def test_a_prompt_that_the_run_does_not_have_is_passed_over(
    validated: ValidatedSet, corpus: Corpus, tmp_path: Path
) -> None:
    known = next(corrected(row) for row in validated.rows())
    found = write_trajectories([replace(known, prompt_id="f" * 16), known], tmp_path)
    rows, read = rows_of(found, corpus, set(Side))
    assert [row.prompt_id for row in rows] == [known.prompt_id]
    assert read.counts.unknown == 1


def test_a_question_asked_in_several_ways_is_held_out_in_all_of_them(
    validated: ValidatedSet, make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    split = make_run().split
    names = (f"question-{number}" for number in range(100))
    examined = next(name for name in names if side_of(name, split) is Side.HELDOUT)
    grouped = ValidatedSet(tmp_path / "validated")
    grouped.write(replace(row, group=examined) for row in validated.rows())
    seal(grouped)
    splits = build_splits(grouped, split, output=tmp_path / "splits")
    found = correct_all(grouped, tmp_path)
    rows, read = rows_of(found, (grouped, splits))
    assert not rows
    assert read.counts.other_side == found.num_rows


@pytest.mark.parametrize(
    ("rule", "drops", "verdict", "is_taught"),
    [
        ("overlap", True, "overlap", False),
        ("near_duplicate", True, "too_long", False),
        ("overlap", False, "too_long", True),  # counted only
        ("unverified", True, "unverified", True),  # of the answer, not of the prompt
        ("overlap", True, "keep", True),  # somebody released it
    ],
)
def test_a_prompt_that_validation_drops_for_its_own_sake_drops_its_trajectories(
    validated: ValidatedSet, make_run: Callable[..., RunSpec], tmp_path: Path,
    rule: str, drops: bool, verdict: str, is_taught: bool,
) -> None:  # fmt: skip
    first, *others = validated.rows()
    judged = ValidatedSet(tmp_path / "validated")
    judged.write([replace(first, verdict=verdict, findings=(Finding(rule, "", drops),)), *others])
    seal(judged)
    splits = build_splits(judged, make_run().split, output=tmp_path / "splits")
    found = write_trajectories([corrected(first), corrected(others[0])], tmp_path)
    rows, read = rows_of(found, (judged, splits), set(Side))
    assert (first.prompt_id in {row.prompt_id for row in rows}) == is_taught
    assert read.counts.barred == (not is_taught)


def test_the_folder_of_the_command_and_the_artifacts_own_are_both_taken(found: TrajectorySet) -> None:
    assert open_trajectories([found.path.parent]) == open_trajectories([found.path]) == [found]


def test_a_folder_without_trajectories_and_a_changed_one_are_refused(found: TrajectorySet, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="proxykd correct"):
        open_trajectories([tmp_path])
    copy = write_trajectories(found.rows(), tmp_path)
    (copy.path / "summary.json").write_text(json.dumps({}))
    with pytest.raises(ArtifactError, match=r"summary\.json"):
        open_trajectories([copy.path])


def test_other_trajectories_than_those_of_the_plan_are_refused(
    found: TrajectorySet, validated: ValidatedSet, tmp_path: Path
) -> None:
    planned = trajectories_identity([found.path])
    check_trajectories([found.path.parent], planned)
    other = write_trajectories(map(corrected, list(validated.rows())[:3]), tmp_path)
    with pytest.raises(InputError, match="planned with"):
        check_trajectories([other.path], planned)
    assert trajectories_identity([]) == ""
    check_trajectories([], "")

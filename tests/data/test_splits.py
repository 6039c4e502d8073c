"""Splits: a prompt's side depends on its id alone, shares hold, and streaming equals looking everything up."""

import math
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxykd.artifacts import SplitSet, ValidatedSet, seal
from proxykd.config import DataSplitSpec
from proxykd.data.splits import (
    TRAINING_SIDES,
    Stage,
    build_splits,
    count_sides,
    select_rows,
    side_of,
    sides_for,
    uniform_of,
)
from proxykd.exceptions import ArtifactError
from proxykd.records import Message, Outcome, Side, ValidatedRow, hash_json

SPEC = DataSplitSpec()
IDS = [hash_json(idx, length=16) for idx in range(20_000)]
PINNED_UNIFORM = [0.889416, 0.791374, 0.987721]
PINNED_SIDES = [Side.HELDOUT, Side.DISTILLATION, Side.ALIGNMENT, Side.ALIGNMENT, Side.ALIGNMENT, Side.ALIGNMENT]


def write_validated(folder: Path, rows: list[tuple[str, int, str]]) -> ValidatedSet:
    validated = ValidatedSet(folder)
    validated.write(
        [
            ValidatedRow(prompt_id, sample, (Message("user", prompt_id),), "text", "", None, Outcome.OK, verdict, "")
            for prompt_id, sample, verdict in rows
        ]
    )
    seal(validated)
    return validated


def test_sides_never_change() -> None:
    # Pinned: a change here would move prompts of existing corpora from training to evaluation.
    assert [round(uniform_of(text), 6) for text in ("", "a", "0" * 16)] == PINNED_UNIFORM
    assert [side_of(IDS[idx], SPEC) for idx in range(6)] == PINNED_SIDES


@given(st.text())
def test_uniform_is_in_the_unit_interval(text: str) -> None:
    assert 0.0 <= uniform_of(text) < 1.0


@pytest.mark.parametrize("heldout", [0.0, 0.1, 0.5])
def test_shares_hold_within_binomial_error(heldout: float) -> None:
    spec = DataSplitSpec(heldout=heldout, development=0.05, warmup=0.2, alignment=0.3, distillation=0.5)
    rest = 1 - heldout - 0.05
    shares = dict(zip(Side, (0.2 * rest, 0.3 * rest, 0.5 * rest, 0.05, heldout), strict=True))
    sides = [side_of(prompt_id, spec) for prompt_id in IDS]
    for side, share in shares.items():
        error = 4 * math.sqrt(len(IDS) * share * (1 - share))
        assert abs(sides.count(side) - len(IDS) * share) <= error


def test_changing_the_training_shares_leaves_the_evaluation_alone() -> None:
    other = DataSplitSpec(warmup=0.5, alignment=0.25, distillation=0.25, mode="shared")
    evaluation = {Side.HELDOUT, Side.DEVELOPMENT}
    for prompt_id in IDS[:2000]:
        one, two = side_of(prompt_id, SPEC), side_of(prompt_id, other)
        assert (one in evaluation) == (two in evaluation)
        assert one == two or one not in evaluation


def test_sides_without_a_share_get_no_prompt() -> None:
    spec = DataSplitSpec(heldout=0.0, development=0.0, warmup=0.3, alignment=0.7, distillation=0.0)
    assert {side_of(prompt_id, spec) for prompt_id in IDS} == {Side.WARMUP, Side.ALIGNMENT}


@pytest.mark.parametrize("stage", ["warmup", "alignment", "distillation"])
def test_disjoint_stages_see_their_own_side(stage: Stage) -> None:
    assert sides_for(stage, SPEC) == {Side(stage)}
    assert sides_for(stage, DataSplitSpec(mode="shared")) == TRAINING_SIDES


def test_the_baseline_sees_all_training_sides_and_no_evaluation() -> None:
    assert sides_for("sft", SPEC) == {Side.WARMUP, Side.ALIGNMENT, Side.DISTILLATION}


groups = st.lists(st.tuples(st.sampled_from(IDS[:40]), st.integers(1, 4)), max_size=25, unique_by=lambda g: g[0])


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(groups=groups, sides=st.sets(st.sampled_from(list(Side))), data=st.data())
def test_streaming_selection_equals_a_dictionary(
    groups: list[tuple[str, int]], sides: set[Side], data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    verdicts = st.sampled_from(["keep", "empty"])
    rows = [(pid, sample, data.draw(verdicts)) for pid, count in groups for sample in range(count)]
    folder = tmp_path_factory.mktemp("splits")
    validated = write_validated(folder / "validated", rows)
    splits = build_splits(validated, SPEC, output=folder / "splits")

    side_by_id = {split.prompt_id: split.side for split in splits.rows()}
    oracle = [(pid, idx) for pid, idx, verdict in rows if side_by_id[pid] in sides and verdict == "keep"]
    assert [(r.prompt_id, r.sample_idx) for r in select_rows(validated, splits, sides)] == oracle
    assert list(side_by_id) == [pid for pid, _ in groups]
    assert sum(count_sides(splits).values()) == splits.num_rows == len(groups)


def test_other_prompts_do_not_move_a_prompt(tmp_path: Path) -> None:
    few = build_splits(write_validated(tmp_path / "a", [(IDS[3], 0, "keep")]), SPEC, output=tmp_path / "few")
    rows = [(prompt_id, 0, "keep") for prompt_id in IDS[:50]]
    many = build_splits(write_validated(tmp_path / "b", rows), SPEC, output=tmp_path / "many")
    assert next(few.rows()) in list(many.rows())


def test_rows_of_one_group_are_on_the_side_of_its_name(tmp_path: Path) -> None:
    validated = ValidatedSet(tmp_path / "validated")
    validated.write(
        ValidatedRow(one, 0, (Message("user", one),), "text", "", None, Outcome.OK, "keep", "", group)
        for group in IDS[:20]
        for one in (group, f"{group[:8]}aaaaaaaa", f"{group[:8]}bbbbbbbb")
    )
    seal(validated)
    splits = build_splits(validated, SPEC, output=tmp_path / "splits")
    expected = [side_of(group, SPEC) for group in IDS[:20] for _ in range(3)]
    assert [row.side for row in splits.rows()] == expected
    assert expected != [side_of(row.prompt_id, SPEC) for row in splits.rows()]
    assert len(list(select_rows(validated, splits, set(Side)))) == 60


def test_splits_name_what_they_were_made_from(tmp_path: Path) -> None:
    validated = write_validated(tmp_path / "validated", [(IDS[0], 0, "keep")])
    splits = build_splits(validated, SPEC, output=tmp_path / "splits")
    splits.verify()
    assert splits.manifest["made_from"]["validated"] == validated.hash


def test_splits_of_other_rows_are_refused(tmp_path: Path) -> None:
    ours = write_validated(tmp_path / "ours", [(IDS[0], 0, "keep"), (IDS[1], 0, "keep")])
    theirs = build_splits(write_validated(tmp_path / "theirs", [(IDS[2], 0, "keep")]), SPEC, output=tmp_path / "s")
    with pytest.raises(ArtifactError, match=f"{IDS[0]}.*found prompt {IDS[2]}"):
        list(select_rows(ours, theirs, set(Side)))
    shorter = build_splits(write_validated(tmp_path / "one", [(IDS[0], 0, "keep")]), SPEC, output=tmp_path / "t")
    with pytest.raises(ArtifactError, match="found the end"):
        list(select_rows(ours, shorter, set(Side)))


def test_no_rows_give_no_splits(tmp_path: Path) -> None:
    splits = build_splits(write_validated(tmp_path / "none", []), SPEC, output=tmp_path / "splits")
    assert isinstance(splits, SplitSet)
    assert set(count_sides(splits).values()) == {0}


def test_one_teacher_s_rows_can_be_selected(tmp_path: Path) -> None:
    validated = ValidatedSet(tmp_path / "validated")
    validated.write(
        ValidatedRow(key, idx, (Message("user", key),), "text", "", None, Outcome.OK, "keep", "", stage=idx % 2)
        for key in IDS[:20]
        for idx in range(3)
    )
    seal(validated)
    splits = build_splits(validated, SPEC, output=tmp_path / "splits")
    everything = list(select_rows(validated, splits, set(Side)))
    for stage in (0, 1, 2):
        assert list(select_rows(validated, splits, set(Side), stage=stage)) == [
            row for row in everything if row.stage == stage
        ]
    assert len(everything) == 60

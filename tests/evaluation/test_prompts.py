"""Clusters and slices of the held-out prompts."""

from dataclasses import replace
from pathlib import Path

import pytest
from pydantic import ValidationError

from proxykd.config import RunSpec
from proxykd.config.slices import SlicesSpec
from proxykd.evaluation.prompts import PromptTable
from proxykd.records import Message, Outcome, ValidatedRow
from tests.evaluation.conftest import SPECIFICATION

ROW = ValidatedRow(
    prompt_id="a",
    sample_idx=0,
    messages=(Message("user", "?"),),
    text="!",
    task="sums",
    reference=None,
    outcome=Outcome.OK,
    verdict="keep",
    request_hash="",
)


def test_samples_share_their_prompt_and_prompts_their_group(tmp_path: Path) -> None:
    twice = replace(ROW, messages=(Message("user", "?"), Message("assistant", "!"), Message("user", "??")))
    rows = [
        ROW,
        replace(ROW, sample_idx=1),
        replace(twice, prompt_id="b", group="g", task=""),
        replace(ROW, prompt_id="c", group="g"),
    ]
    table = PromptTable.of_rows(rows, SlicesSpec(by=("task", "turns")))
    assert table.clusters == {"a": "a", "b": "g", "c": "g"}
    assert table.counts() == {"task=sums": 2, "turns=one": 2, "turns=several": 1}
    table.write(tmp_path / "prompts.parquet")
    assert PromptTable.read(tmp_path / "prompts.parquet") == table
    assert table.only(["b"]) == PromptTable({"b": "g"}, {"turns=several": frozenset({"b"})})


def _of_length(prompt_id: str, length: int) -> ValidatedRow:
    messages = (Message("system", "s" * 500), Message("user", "u" * length))
    return replace(ROW, prompt_id=prompt_id, messages=messages)


def test_lengths_are_divided_at_fixed_bounds_or_in_thirds() -> None:
    rows = [_of_length(str(length), length) for length in (1, 2, 3, 10, 20, 30)]
    thirds = PromptTable.of_rows(rows, SlicesSpec(by=("length",))).slices
    assert {name: sorted(ids, key=int) for name, ids in thirds.items()} == {
        "length=short": ["1", "2"],
        "length=medium": ["3", "10"],
        "length=long": ["20", "30"],
    }
    fixed = PromptTable.of_rows(rows, SlicesSpec(by=("length",), length_bounds=(3, 25))).counts()
    assert fixed == {"length=long": 1, "length=medium": 2, "length=short": 3}
    with pytest.raises(ValidationError, match="ascend"):
        SlicesSpec(length_bounds=(9, 9))


def test_what_a_prompt_carries_divides_the_prompts() -> None:
    system = "You are a teacher who explains each step at length"
    rows = [
        replace(ROW, prompt_id="a", source="one.jsonl:1", group="g"),
        replace(ROW, prompt_id="b", source="one.jsonl:2", group="g", reference="7"),
        replace(ROW, prompt_id="c", source="embedded", messages=(Message("system", system), Message("user", "?"))),
        replace(ROW, prompt_id="d", source="", messages=(Message("system", system + "!"), Message("user", "?"))),
    ]
    found = PromptTable.of_rows(rows, SlicesSpec(by=("source", "group", "system", "reference"))).counts()
    assert found.pop("system=none") == 2
    systems = [name for name in found if name.startswith("system=")]
    assert len(systems) == 2, "two system messages that begin alike are two slices"
    assert {name: found[name] for name in found if name not in systems} == {
        "source=one.jsonl": 2,
        "source=embedded": 1,
        "group=g": 2,
        "reference=yes": 1,
        "reference=no": 3,
    }


def test_the_most_frequent_values_become_slices() -> None:
    rows = [replace(ROW, prompt_id=str(n), group=f"g{min(n, 3)}") for n in range(6)]
    found = PromptTable.of_rows(rows, SlicesSpec(by=("group",), most_values=2)).counts()
    assert found == {"group=g0": 1, "group=g3": 3}


def test_a_rule_on_a_slice_that_nothing_falls_into_is_refused_before_anything_is_paid_for() -> None:
    sections = {**SPECIFICATION, "gate": {"slices": [{"slice": "group=a", "margin": 0.1}]}}
    with pytest.raises(ValidationError, match=r"evaluation\.slices\.by"):
        RunSpec.model_validate(sections)
    evaluation = {**SPECIFICATION["evaluation"], "slices": {"by": ["group"]}}
    RunSpec.model_validate({**sections, "evaluation": evaluation})

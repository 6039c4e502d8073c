"""Records: to a row and back without loss, and ids that depend on the messages alone."""

from dataclasses import asdict, fields
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.records import (
    Completion,
    Message,
    Outcome,
    Prompt,
    Record,
    Side,
    SplitRow,
    ValidatedRow,
    hash_json,
    prompt_id_of,
)

text = st.text(st.characters(codec="utf-8"), max_size=20)
messages = st.lists(st.builds(Message, role=st.sampled_from(["system", "user", "assistant"]), content=text), max_size=3)
ints = st.integers(0, 2**31 - 1)
prompts = st.builds(Prompt.build, messages, task=text, reference=st.none() | text, source=text, group=text)
completions = st.builds(
    Completion, text, ints, st.sampled_from(Outcome), text, text, text, ints, ints, st.floats(0, 1e6), text, text
)
validated = st.builds(
    ValidatedRow, text, ints, messages.map(tuple), text, text, st.none() | text, st.sampled_from(Outcome), text, text
)
splits = st.builds(SplitRow, text, st.sampled_from(Side))


@settings(deadline=None)
@given(st.one_of(prompts, completions, validated, splits))
def test_rows_survive_arrow(record: Record) -> None:
    table = pa.Table.from_pylist([record.to_row()], schema=type(record).schema)
    assert type(record).from_row(table.to_pylist()[0]) == record


@pytest.mark.parametrize("records", [prompts, completions, validated, splits])
@given(data=st.data())
def test_columns_hold_what_rows_hold(records: st.SearchStrategy[Record], data: st.DataObject) -> None:
    many = data.draw(st.lists(records, min_size=1, max_size=4))
    kind = type(many[0])
    rows = pa.RecordBatch.from_pylist([record.to_row() for record in many], schema=kind.schema)
    assert kind.to_batch(many).equals(rows)
    assert kind.to_batch([]).equals(rows[:0])


@pytest.mark.parametrize("record_type", [Prompt, Completion, ValidatedRow, SplitRow])
def test_columns_are_the_fields(record_type: Any) -> None:
    assert record_type.schema.names == [field.name for field in fields(record_type)]


def test_outcomes_and_sides_come_back_as_enumerations() -> None:
    assert SplitRow.from_row({"prompt_id": "x", "side": "heldout"}).side is Side.HELDOUT
    with pytest.raises(ValueError, match="elsewhere"):
        SplitRow.from_row({"prompt_id": "x", "side": "elsewhere"})


def test_prompt_ids_never_change() -> None:
    # Pinned: journals, splits and targets of existing runs are keyed by these.
    assert prompt_id_of([Message("user", "2 + 2?")]) == "02c6f13c57cfde4d"


@given(st.lists(st.builds(Message, st.text(), st.text()), max_size=3))
def test_a_prompt_id_is_the_hash_of_its_messages_as_objects(turns: list[Message]) -> None:
    assert prompt_id_of(turns) == hash_json([asdict(turn) for turn in turns], length=16)


@given(messages, text, text)
def test_prompt_id_depends_on_the_messages_alone(turns: list[Message], task: str, source: str) -> None:
    assert Prompt.build(turns, task=task, source=source).prompt_id == Prompt.build(turns).prompt_id
    assert len(prompt_id_of(turns)) == 16


def test_prompt_id_tells_roles_and_borders_apart() -> None:
    variants = [
        [Message("user", "ab")],
        [Message("system", "ab")],
        [Message("user", "a"), Message("user", "b")],
        [Message("user", "b"), Message("user", "a")],
        [],
    ]
    assert len({prompt_id_of(variant) for variant in variants}) == len(variants)


def test_canonical_json_ignores_the_order_of_keys() -> None:
    assert hash_json({"a": 1, "b": [2]}) == hash_json({"b": [2], "a": 1})
    assert hash_json({"a": 1}) != hash_json({"a": 2})
    assert hash_json([1], length=8) == hash_json([1])[:8]


@pytest.mark.parametrize("record_type", [Prompt, ValidatedRow])
def test_rows_from_before_there_were_groups_are_groups_of_their_own(record_type: type[Prompt | ValidatedRow]) -> None:
    row = {name: "" for name in record_type.schema.names if name not in ("group", "num_example_messages")}
    record = record_type.from_row(
        {**row, "prompt_id": "1" * 16, "messages": [], **({"outcome": "ok"} if "outcome" in row else {})}
    )
    assert (record.group, record.split_key) == ("", "1" * 16)

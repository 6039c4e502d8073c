"""What a prompt and a completion are: frozen dataclasses here, Parquet rows on disk, the same fields in both.

A record knows its Arrow schema and nothing about where it is stored; ``proxykd.artifacts`` writes and reads folders
of them without holding more than one batch in memory.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from enum import StrEnum
from functools import cache
from itertools import accumulate, chain
from typing import Any, ClassVar, Self

import pyarrow as pa


class Outcome(StrEnum):
    """How a prompt ended at the teacher; every prompt ends in exactly one of these."""

    OK = "ok"
    REFUSED = "refused"
    TRUNCATED = "truncated"
    FILTERED = "filtered"
    FAILED = "failed"


class Side(StrEnum):
    """The part of the corpus on which a prompt falls, for ever (a hash of its id decides)."""

    WARMUP = "warmup"
    ALIGNMENT = "alignment"
    DISTILLATION = "distillation"
    DEVELOPMENT = "development"
    HELDOUT = "heldout"


@dataclass(frozen=True, slots=True)
class Message:
    """One chat turn."""

    role: str
    content: str


canonical_json = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode
"""A value as JSON with sorted keys and no spaces: equal values give equal texts."""


def hash_json(value: Any, *, length: int = 64) -> str:
    """Hex SHA-256 of ``value`` as canonical JSON, cut to ``length`` hex digits."""
    return hash_text(canonical_json(value))[:length]


def hash_text(text: str) -> str:
    """Hex SHA-256 of a text, 64 digits; what is left of bytes that were no UTF-8 counts as those bytes."""
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def prompt_id_of(messages: Sequence[Message]) -> str:
    """The identity of a prompt: 16 hex digits of the hash of its messages, whatever file it came from.

    That is ``hash_json`` of a list of objects with the fields of ``Message``, written out: a million prompts need it.
    """
    turns = (f'{{"content":{canonical_json(turn.content)},"role":{canonical_json(turn.role)}}}' for turn in messages)
    return hash_text(f"[{','.join(turns)}]")[:16]


def _plain(items: Sequence[Any]) -> list[Any]:
    # dataclasses.asdict, which copies deeply, took more time than all else that is done to a prompt.
    return [
        {name: getattr(item, name) for name in names} if (names := _flat_fields(item.__class__)) else item
        for item in items
    ]


@cache
def _flat_fields(kind: type) -> tuple[str, ...]:
    """The names of a dataclass's fields, none of which holds a dataclass; () = it is no dataclass."""
    return tuple(field.name for field in fields(kind)) if is_dataclass(kind) else ()


class Record:
    """Base of the row types: conversion to and from plain dicts whose keys are the Arrow columns."""

    schema: ClassVar[pa.Schema]

    def to_row(self) -> dict[str, Any]:
        """The record as a dict with one entry a column."""
        values = {name: getattr(self, name) for name in self.schema.names}
        return {name: _plain(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def to_batch(cls, records: Sequence[Self]) -> pa.RecordBatch:
        """The rows of many records as columns."""
        columns = (
            _array([getattr(record, name) for record in records], cls.schema.field(name).type)
            for name in cls.schema.names
        )
        return pa.RecordBatch.from_arrays(list(columns), schema=cls.schema)

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> Self:
        """The record from a dict with one entry a column."""
        return cls(**row)


def _array(values: list[Any], kind: pa.DataType) -> pa.Array:
    """Values of one column; tuples hold dataclasses or plain values."""
    if not values or not isinstance(values[0], tuple):
        return pa.array(values, kind)
    if not pa.types.is_struct(kind.value_type):
        return pa.array(map(list, values), kind)
    items, ends = list(chain.from_iterable(values)), [0, *accumulate(map(len, values))]
    parts = [_array([getattr(item, part.name) for item in items], part.type) for part in kind.value_type]
    struct = pa.StructArray.from_arrays(parts, fields=list(kind.value_type))
    return pa.ListArray.from_arrays(pa.array(ends, pa.int32()), struct, type=kind)


_TOKEN = [("token", pa.string()), ("bytes", pa.binary()), ("logprob", pa.float64())]
MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))
"""Column type of chat turns."""


@dataclass(frozen=True, slots=True)
class Prompt(Record):
    """A question for the teacher.

    Attributes:
        prompt_id: 16 hex digits, the hash of ``messages``.
        messages: The chat turns, the last one the user's.
        task: Name of the task it belongs to; "" if none.
        reference: Reference answer for exact-match tasks; None where there is none.
        source: File (and line) or generator that it came from.
        group: Prompts of one group fall on one side of the corpus; "" = it is a group of its own, named by its id.
        num_example_messages: Messages after the system message that show the teacher examples; 0 = none.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("messages", MESSAGES),
            ("task", pa.string()),
            ("reference", pa.string()),
            ("source", pa.string()),
            ("group", pa.string()),
            ("num_example_messages", pa.int32()),
        ]
    )

    prompt_id: str
    messages: tuple[Message, ...]
    task: str
    reference: str | None
    source: str
    group: str = ""
    num_example_messages: int = 0

    @classmethod
    def build(
        cls,
        messages: Sequence[Message],
        *,
        task: str = "",
        reference: str | None = None,
        source: str = "",
        group: str = "",
        num_example_messages: int = 0,
    ) -> "Prompt":
        """A prompt with its id computed from ``messages``."""
        return cls(prompt_id_of(messages), tuple(messages), task, reference, source, group, num_example_messages)

    @property
    def split_key(self) -> str:
        """What decides the side on which it falls."""
        return self.group or self.prompt_id

    @property
    def taught_messages(self) -> tuple[Message, ...]:
        """The messages that a model learns to answer: without the examples, which are for the teacher alone."""
        start = int(self.messages[0].role == "system")
        return self.messages[:start] + self.messages[start + self.num_example_messages :]

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Prompt":
        """The prompt from a dict with one entry a column."""
        return cls(**{**row, "messages": tuple(Message(**message) for message in row["messages"])})


@dataclass(frozen=True, slots=True)
class Completion(Record):
    """What became of one prompt at the teacher.

    Attributes:
        prompt_id: The prompt that was asked.
        sample_idx: 0, 1, ...: which sample of the prompt, counted through all teachers that it is asked of.
        outcome: ok, refused, truncated, filtered or failed.
        reason: Why it is not ok; "" for ok.
        text: The teacher's text; "" unless ok, truncated or refused.
        finish_reason: As the API said it; "" if it never did.
        prompt_tokens: Tokens that the API counted in the prompt; 0 if it said nothing.
        completion_tokens: Tokens that the API counted in the text; 0 if it said nothing.
        cost_usd: Price of this call in USD; 0.0 for teachers without a price.
        model: Model name as the API reported it.
        request_hash: Hash of what was asked: the key of the journal.
        cached_tokens: Those of ``prompt_tokens`` that the API read from its cache.
        reasoning_tokens: Those of ``completion_tokens`` that the text does not show.
        logprobs: A dict a position of the completion: ``token``, ``bytes``, ``logprob`` (nats) of the token that
            stands there, and ``top``, a list of dicts with the same keys, likeliest first; None = the API told none.
        stage: Which teacher wrote it: 0 = the first one that the student learns from; the main one is the last.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("sample_idx", pa.int32()),
            ("outcome", pa.string()),
            ("reason", pa.string()),
            ("text", pa.string()),
            ("finish_reason", pa.string()),
            ("prompt_tokens", pa.int32()),
            ("completion_tokens", pa.int32()),
            ("cost_usd", pa.float64()),
            ("model", pa.string()),
            ("request_hash", pa.string()),
            ("cached_tokens", pa.int32()),
            ("reasoning_tokens", pa.int32()),
            ("logprobs", pa.list_(pa.struct([*_TOKEN, ("top", pa.list_(pa.struct(_TOKEN)))]))),
            ("stage", pa.int32()),
        ]
    )

    prompt_id: str
    sample_idx: int
    outcome: Outcome
    reason: str
    text: str
    finish_reason: str
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float
    model: str
    request_hash: str
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    logprobs: list[dict[str, Any]] | None = None
    stage: int = 0

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Completion":
        """The completion from a dict with one entry a column."""
        return cls(**{**row, "outcome": Outcome(row["outcome"])})


@dataclass(frozen=True, slots=True)
class Finding:
    """A rule that a row broke.

    Attributes:
        rule: Name of the rule.
        detail: What was found.
        drops: Whether the rule, as it was set, keeps such rows from teaching.
    """

    rule: str
    detail: str
    drops: bool


_FINDINGS = pa.list_(pa.struct([("rule", pa.string()), ("detail", pa.string()), ("drops", pa.bool_())]))


@dataclass(frozen=True, slots=True)
class ValidatedRow(Record):
    """A prompt, one completion of it, and what validation made of the pair.

    Attributes:
        prompt_id: 16 hex digits.
        sample_idx: Of the completion.
        messages: The prompt's chat turns, without examples that were shown to the teacher alone.
        text: The teacher's text.
        task: Name of the task; "" if none.
        reference: Reference answer; None where there is none.
        outcome: How the prompt ended at the teacher.
        verdict: "keep", or the name of the first rule that the row broke and that drops.
        request_hash: Key of the journal entry that the text came from.
        group: Rows of one group fall on one side of the corpus; "" = the prompt's id names it.
        findings: Every rule that the row broke, those that only count too, in the order of the rules.
        released: Who lets the row teach in spite of its findings, and why; "" = nobody had to.
        stage: Which teacher wrote the text, as in ``Completion``.
        source: File (and line) or generator that the prompt came from.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("sample_idx", pa.int32()),
            ("messages", MESSAGES),
            ("text", pa.string()),
            ("task", pa.string()),
            ("reference", pa.string()),
            ("outcome", pa.string()),
            ("verdict", pa.string()),
            ("request_hash", pa.string()),
            ("group", pa.string()),
            ("findings", _FINDINGS),
            ("released", pa.string()),
            ("stage", pa.int32()),
            ("source", pa.string()),
        ]
    )

    prompt_id: str
    sample_idx: int
    messages: tuple[Message, ...]
    text: str
    task: str
    reference: str | None
    outcome: Outcome
    verdict: str
    request_hash: str
    group: str = ""
    findings: tuple[Finding, ...] = ()
    released: str = ""
    stage: int = 0
    source: str = ""

    @property
    def split_key(self) -> str:
        """What decides the side on which it falls."""
        return self.group or self.prompt_id

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "ValidatedRow":
        """The row from a dict with one entry a column."""
        messages = tuple(Message(**message) for message in row["messages"])
        findings = tuple(Finding(**finding) for finding in row["findings"])
        return cls(**{**row, "messages": messages, "outcome": Outcome(row["outcome"]), "findings": findings})


@dataclass(frozen=True, slots=True)
class SplitRow(Record):
    """The side on which a prompt falls."""

    schema: ClassVar[pa.Schema] = pa.schema([("prompt_id", pa.string()), ("side", pa.string())])

    prompt_id: str
    side: Side

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "SplitRow":
        """The row from a dict with one entry a column."""
        return cls(row["prompt_id"], Side(row["side"]))

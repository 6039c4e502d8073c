"""Rows of a file or a dataset -> prompts, one at a time; every complaint names the source and the place.

A row becomes a question by the fields or the template that the specification names, and a question one or several
prompts (``proxykd.data.elicitation``). A row that does not fit is an ``InputError``, because one that is silently left
out would change what the run means.

Duplicates are found by the question's id in a temporary database on disk (an integer key a question), so that memory
does not grow with the source.
"""

import hashlib
import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

from proxykd.artifacts import PromptSet, seal
from proxykd.config.prompts import (
    ColumnPromptsSpec,
    CsvPromptsSpec,
    FilePromptsSpec,
    HuggingFacePromptsSpec,
    JsonlPromptsSpec,
    OpenAIFinetuningPromptsSpec,
    ParquetPromptsSpec,
    where_is,
)
from proxykd.data.elicitation import expand
from proxykd.data.fields import optional_text, render_field, storable, text_of, value_of
from proxykd.data.finetuning import parse_chat, parse_completion
from proxykd.data.rows import Row, describe, iter_rows, parquet_files, readable
from proxykd.data.scratch import scratch_database
from proxykd.exceptions import InputError
from proxykd.progress import track
from proxykd.records import Message, Prompt, hash_json

ROLES = ("system", "user", "assistant")


def load_prompts(spec: FilePromptsSpec, *, seed: int = 0, output: Path) -> PromptSet:
    """Write the prompts of a source as an artifact, in the source's order.

    Args:
        spec: The source and the names of its columns.
        seed: Of the run; decides which system message a question gets where one is drawn.
        output: Folder of the new artifact.

    Raises:
        InputError: if the source is missing, empty or not as ``spec`` says, naming the place.
    """
    prompts = PromptSet(output)
    prompts.write(track((prompt for prompt, _ in _iter_prompts(spec, seed)), "Reading prompts", unit="prompt"))
    fields = spec.model_dump(mode="json", exclude={"path", "source", "terms"})
    drawn = {"seed": seed} if spec.system_messages else {}
    seal(prompts, {"prompts": hash_json({**fields, **drawn}), "file": hash_inputs(spec)})
    return prompts


def hash_inputs(spec: FilePromptsSpec) -> str:
    """What a source holds, 64 hex digits: the SHA-256 of a file's bytes, of a folder's files, of a hub's commit.

    Raises:
        InputError: if the source cannot be read.
    """
    if isinstance(spec, HuggingFacePromptsSpec):
        from proxykd.data.hub import identity_of

        return hash_json([identity_of(spec), spec.config, spec.split])
    path = Path(where_is(spec))
    with readable(path):
        if isinstance(spec, ParquetPromptsSpec) and path.is_dir():
            return hash_json([[part.name, hash_file(part)] for part in parquet_files(path)])
        return hash_file(path)


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def iter_recorded(spec: FilePromptsSpec, completion_field: str) -> Iterator[tuple[Prompt, str]]:
    """The prompts of ``load_prompts``, in the same order, each with its recorded completion.

    Args:
        spec: The source and the names of its columns; nothing that it puts before a question may be left to choose.
        completion_field: Column of the teacher's text, but for fine-tuning files; an empty text is passed on as it is.

    Raises:
        InputError: as ``load_prompts``, and if a completion is missing or not a string.
    """
    is_chat = isinstance(spec, OpenAIFinetuningPromptsSpec)
    for prompt, row in _iter_prompts(spec, 0, *(() if is_chat else (completion_field,))):
        yield prompt, parse_completion(row) if is_chat else text_of(row, completion_field)


def _iter_prompts(spec: FilePromptsSpec, seed: int, *more_columns: str) -> Iterator[tuple[Prompt, Row]]:
    tasks = set[str]()
    for question, row in _iter_questions(spec, more_columns):
        tasks.add(question.task)
        for prompt in expand(question, spec, seed=seed):
            yield prompt, row
    named = {task for message in spec.system_messages for task in message.tasks or ()}
    if spec.limit is None and (unused := sorted(named - tasks)):
        raise InputError(
            f"expected prompts of the task {unused[0]!r}, which prompts.system_messages names, found only "
            f"{', '.join(map(repr, sorted(tasks))):.200} in {where_is(spec)}; correct one of them"
        )


def _iter_questions(spec: FilePromptsSpec, more_columns: tuple[str, ...]) -> Iterator[tuple[Prompt, Row]]:
    count = 0
    with scratch_database() as seen:
        seen.execute("CREATE TABLE seen (prompt INTEGER PRIMARY KEY, place INTEGER NOT NULL)")
        for row in iter_rows(spec, *more_columns):
            question = _parse_question(row, spec)
            first = _remember(seen, question.prompt_id, row.number)
            if first is not None and spec.on_duplicate == "drop":
                continue
            if first is not None:
                raise row.error(
                    f"expected a prompt that has not occurred before, found the one of {row.unit} {first} again; "
                    "remove one of them, or set prompts.on_duplicate=drop to keep the first"
                )
            yield question, row
            count += 1
            if count == spec.limit:
                return
    if count == 0:
        what = "JSON object" if isinstance(spec, JsonlPromptsSpec | OpenAIFinetuningPromptsSpec) else "row"
        raise InputError(f"expected at least one {what} in {where_is(spec)}, found an empty file; add prompts")


def _remember(seen: sqlite3.Connection, prompt_id: str, place: int) -> int | None:
    key = int(prompt_id, 16) - 2**63  # SQLite's integers are signed
    if seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, place)).rowcount:
        return None
    return int(seen.execute("SELECT place FROM seen WHERE prompt = ?", (key,)).fetchone()[0])


def _parse_question(row: Row, spec: FilePromptsSpec) -> Prompt:
    if isinstance(spec, ColumnPromptsSpec):
        messages, where = _parse_columns(row, spec), "template" if spec.template is not None else spec.prompt_field
    else:
        messages, where = parse_chat(row)[0], "messages"
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise row.error(f"expected {where!r} to end in a question of the user's, found an empty prompt "
                        "or another role at its end; remove the line or correct it")  # fmt: skip
    if isinstance(spec, ColumnPromptsSpec) and spec.input_field is not None:
        extra = optional_text(row, spec.input_field)
        if extra.strip():
            messages[-1] = Message("user", f"{messages[-1].content}\n\n{extra}")
    messages = [*_system_message(row, spec, messages), *messages]
    task = spec.task if spec.task_field is None else optional_text(row, spec.task_field)
    return Prompt.build(messages, task=task, reference=_parse_reference(row, spec), source=row.source)


def _parse_columns(row: Row, spec: ColumnPromptsSpec) -> list[Message]:
    if spec.template is not None:
        return [Message("user", render_field(row, "template", spec.template))]
    value = value_of(row, spec.prompt_field)
    if isinstance(value, list):
        return [_parse_message(row, spec.prompt_field, idx, item) for idx, item in enumerate(value)]
    return [Message("user", text_of(row, spec.prompt_field))]


def _parse_message(row: Row, field: str, idx: int, item: Any) -> Message:
    where = f"{field}[{idx}]"
    if not isinstance(item, dict) or not isinstance(item.get("content"), str):
        raise row.error(f"expected {where} to be an object with a role and a content of text, found {describe(item)}")
    if item.get("role") not in ROLES:
        raise row.error(f"expected {where} to have one of the roles {', '.join(ROLES)}, found {item.get('role')!r}")
    return Message(str(item["role"]), storable(row, where, item["content"]))


def _system_message(row: Row, spec: FilePromptsSpec, messages: list[Message]) -> list[Message]:
    """The one that the specification puts before this row's messages, if it puts one."""
    setting = next((key for key in ("system", "system_template") if getattr(spec, key) is not None), None)
    if setting is None and spec.system_messages:
        setting = "system_messages"
    if setting is not None and messages[0].role == "system":
        raise row.error(f"expected no system message, because prompts.{setting} sets one; remove either")
    if spec.system_template is not None:
        text = render_field(row, "system_template", spec.system_template)
        return [Message("system", text)] if text.strip() else []
    return [] if spec.system is None else [Message("system", spec.system)]


def _parse_reference(row: Row, spec: FilePromptsSpec) -> str | None:
    if spec.reference_field is None:
        return None
    value = value_of(row, spec.reference_field)
    if value == "" and isinstance(spec, CsvPromptsSpec):
        return None  # CSV knows no null
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        return str(value)
    return None if value is None else text_of(row, spec.reference_field)

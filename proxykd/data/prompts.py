"""JSONL -> prompts, one line at a time; every complaint names the file and the line.

A UTF-8 byte order mark is skipped, blank lines are too; anything else that is not one JSON object a line with the
fields that the specification names is an ``InputError``, because a row that is silently left out would change what
the run means.

Duplicates are found by prompt id in a temporary database on disk (an integer key a prompt), so that memory does not
grow with the file.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from proxykd.artifacts import PromptSet, seal
from proxykd.config.prompts import JsonlPromptsSpec
from proxykd.data.scratch import scratch_database
from proxykd.exceptions import InputError
from proxykd.progress import track
from proxykd.records import Message, Prompt, hash_json

ROLES = ("system", "user", "assistant")

_BOM = b"\xef\xbb\xbf"


class _Line(NamedTuple):
    path: Path
    number: int
    value: dict[str, Any]

    def error(self, message: str) -> InputError:
        return _error(self.path, self.number, message)


def load_prompts(spec: JsonlPromptsSpec, *, output: Path) -> PromptSet:
    """Write the prompts of a JSONL file as an artifact, in the file's order.

    Args:
        spec: The file and the names of its fields.
        output: Folder of the new artifact.

    Raises:
        InputError: if the file is missing, empty or not as ``spec`` says, naming the line.
    """
    prompts = PromptSet(output)
    prompts.write(track((prompt for prompt, _ in _iter_prompts(spec)), "Reading prompts", unit="prompt"))
    fields = spec.model_dump(mode="json", exclude={"path"})
    seal(prompts, {"prompts": hash_json(fields), "file": hash_file(spec.path)})
    return prompts


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def iter_recorded(spec: JsonlPromptsSpec, completion_field: str) -> Iterator[tuple[Prompt, str]]:
    """The prompts of ``load_prompts``, in the same order, each with its recorded completion.

    Args:
        spec: The file and the names of its fields.
        completion_field: Key of the teacher's text; an empty text is passed on as it is.

    Raises:
        InputError: as ``load_prompts``, and if a completion is missing or not a string.
    """
    for prompt, line in _iter_prompts(spec):
        yield prompt, _text(line, completion_field)


def _iter_prompts(spec: JsonlPromptsSpec) -> Iterator[tuple[Prompt, _Line]]:
    count = 0
    with scratch_database() as seen:
        seen.execute("CREATE TABLE seen (prompt INTEGER PRIMARY KEY, line INTEGER NOT NULL)")
        for line in _iter_lines(spec.path):
            prompt = _parse_prompt(line, spec)
            first = _remember(seen, prompt.prompt_id, line.number)
            if first is not None and spec.on_duplicate == "drop":
                continue
            if first is not None:
                raise line.error(
                    f"expected a prompt that has not occurred before, found the one of line {first} again; "
                    "remove one of them, or set prompts.on_duplicate=drop to keep the first"
                )
            yield prompt, line
            count += 1
            if count == spec.limit:
                return
    if count == 0:
        raise InputError(f"expected at least one JSON object in {spec.path}, found an empty file; add prompts to it")


def _remember(seen: sqlite3.Connection, prompt_id: str, line_number: int) -> int | None:
    key = int(prompt_id, 16) - 2**63  # SQLite's integers are signed
    if seen.execute("INSERT OR IGNORE INTO seen VALUES (?, ?)", (key, line_number)).rowcount:
        return None
    return int(seen.execute("SELECT line FROM seen WHERE prompt = ?", (key,)).fetchone()[0])


def _iter_lines(path: Path) -> Iterator[_Line]:
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                content = raw.removeprefix(_BOM) if number == 1 else raw
                if content.strip():
                    yield _Line(path, number, _parse_object(path, number, content.rstrip()))
    except OSError as error:
        raise InputError(
            f"expected a readable file of prompts at {path}: {error.strerror}; correct prompts.path"
        ) from None


def _parse_object(path: Path, number: int, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise _error(
            path, number, f"expected UTF-8, found the byte 0x{content[error.start]:02x}; save the file as UTF-8"
        ) from None
    except json.JSONDecodeError as error:
        raise _error(
            path, number, f"expected one JSON object a line, found {error.msg} at column {error.colno}; correct it"
        ) from None
    except RecursionError:
        raise _error(path, number, "expected one JSON object a line, found one nested too deeply") from None
    if not isinstance(value, dict):
        raise _error(path, number, f"expected a JSON object, found {_kind(value)}; write one {{...}} a line")
    return value


def _parse_prompt(line: _Line, spec: JsonlPromptsSpec) -> Prompt:
    messages = _parse_messages(line, spec)
    source = f"{line.path.name}:{line.number}"
    return Prompt.build(messages, task=spec.task, reference=_parse_reference(line, spec), source=source)


def _parse_messages(line: _Line, spec: JsonlPromptsSpec) -> list[Message]:
    value = _field(line, spec.prompt_field)
    if isinstance(value, list):
        messages = [_parse_message(line, spec.prompt_field, idx, item) for idx, item in enumerate(value)]
    else:
        messages = [Message("user", _text(line, spec.prompt_field))]
    if not messages or messages[-1].role != "user" or not messages[-1].content.strip():
        raise line.error(f"expected {spec.prompt_field!r} to end in a question of the user's, found an empty prompt "
                         "or another role at its end; remove the line or correct it")  # fmt: skip
    if spec.input_field is not None and (extra := _optional_text(line, spec.input_field)).strip():
        messages[-1] = Message("user", f"{messages[-1].content}\n\n{extra}")
    if spec.system is not None and messages[0].role == "system":
        raise line.error("expected no system message, because prompts.system sets one; remove either")
    return [Message("system", spec.system), *messages] if spec.system is not None else messages


def _parse_message(line: _Line, field: str, idx: int, item: Any) -> Message:
    where = f"{field}[{idx}]"
    if not isinstance(item, dict) or not isinstance(item.get("content"), str):
        raise line.error(f"expected {where} to be an object with a role and a content of text, found {_kind(item)}")
    if item.get("role") not in ROLES:
        raise line.error(f"expected {where} to have one of the roles {', '.join(ROLES)}, found {item.get('role')!r}")
    return Message(str(item["role"]), _storable(line, where, item["content"]))


def _parse_reference(line: _Line, spec: JsonlPromptsSpec) -> str | None:
    if spec.reference_field is None:
        return None
    value = _field(line, spec.reference_field)
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    return None if value is None else _text(line, spec.reference_field)


def _field(line: _Line, field: str) -> Any:
    if field not in line.value:
        found = ", ".join(repr(key) for key in line.value) or "none"
        raise line.error(
            f"expected the field {field!r}, found {found:.200}; name the right one under prompts or teacher"
        )
    return line.value[field]


def _text(line: _Line, field: str) -> str:
    value = _field(line, field)
    if not isinstance(value, str):
        raise line.error(f"expected {field!r} to be a string, found {_kind(value)}; correct the line")
    return _storable(line, field, value)


def _optional_text(line: _Line, field: str) -> str:
    return "" if _field(line, field) is None else _text(line, field)


def _storable(line: _Line, field: str, text: str) -> str:
    # JSON can spell half a surrogate pair, which no UTF-8 file can hold.
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise line.error(f"expected {field!r} to be Unicode text, found half a surrogate pair (\\ud8..); correct it")
    return text


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return f"{names.get(type(value), 'a number')} ({json.dumps(value):.60})"


def _error(path: Path, number: int, message: str) -> InputError:
    return InputError(f"{path}, line {number}: {message}")

"""Rows of a task's JSONL file: checked line by line, read as they are needed."""

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from proxykd.exceptions import InputError
from proxykd.records import Message


class FileRow(NamedTuple):
    """One line of a task's file.

    Attributes:
        where: File and line, for messages.
        values: Its JSON object.
        task: Name of the task.
    """

    where: str
    values: dict[str, Any]
    task: str

    def text(self, key: str) -> str:
        """The string under ``key``; a number becomes its digits.

        Raises:
            InputError: if there is none.
        """
        value = self.values.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        if not isinstance(value, str) or not value:
            raise self.fault(f"a text under {key!r}", value)
        return value

    def messages(self, key: str) -> tuple[Message, ...]:
        """The chat turns under ``key``: a string is the user's one turn.

        Raises:
            InputError: if there are none.
        """
        value = self.values.get(key)
        if isinstance(value, str) and value:
            return (Message("user", value),)
        try:
            turns = tuple(Message(str(turn["role"]), str(turn["content"])) for turn in value or ())
        except (TypeError, KeyError):
            turns = ()
        if not turns:
            raise self.fault(f"a question under {key!r}, a text or messages with role and content", value)
        return turns

    def texts(self, key: str) -> list[str]:
        """The list of at least two strings under ``key``.

        Raises:
            InputError: if there is no such list.
        """
        value = self.values.get(key)
        if not isinstance(value, list) or len(value) < 2 or not all(isinstance(one, str) and one for one in value):
            raise self.fault(f"at least two texts under {key!r}", value)
        return value

    def choice(self, key: str, choices: list[str]) -> int:
        """Which of ``choices`` stands under ``key``, as its place or as its text.

        Raises:
            InputError: if none does.
        """
        value = self.values.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
            return value
        if isinstance(value, str) and choices.count(value) == 1:
            return choices.index(value)
        raise self.fault(f"one of the choices under {key!r}, its place from 0 or its text", value)

    def slices(self, key: str | None) -> tuple[str, ...]:
        """The slice ``task/key=value`` that the row belongs to; () without a key or a value."""
        value = None if key is None else self.values.get(key)
        return () if value is None else (f"{self.task}/{key}={value}",)

    def fault(self, expected: str, found: object) -> InputError:
        """What is wrong with the row."""
        return InputError(
            f"task {self.task!r}: expected {expected} in {self.where}, found {found!r:.80}; mend the line, or name "
            "another key in evaluation.tasks"
        )


def file_rows(path: Path, *, task: str, limit: int | None) -> Iterator[FileRow]:
    """The first ``limit`` rows of a JSONL file, blank lines left out.

    Raises:
        InputError: if the file cannot be read or a line is no JSON object, or the file has no rows.
    """
    count = 0
    for row in islice(_rows(path, task), limit):
        count += 1
        yield row
    if not count:
        raise InputError(f"task {task!r}: expected rows in {path}, found none")


def _rows(path: Path, task: str) -> Iterator[FileRow]:
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    where = f"{path}, line {number}"
                    yield FileRow(where, _object(line, where, task), task)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"task {task!r}: expected a readable UTF-8 file {path}: {error}") from error


def _object(line: str, where: str, task: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except ValueError as error:
        raise InputError(f"task {task!r}: expected a JSON object in {where}: {error}") from None
    if not isinstance(value, dict):
        raise InputError(f"task {task!r}: expected a JSON object in {where}, found {line.strip():.80}")
    return value

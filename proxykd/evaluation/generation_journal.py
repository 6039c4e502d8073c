"""The journal of a model's answers: what a killed evaluation has already been told.

A file of JSON lines, one an answer, ``{"key": ..., "value": ...}``, appended and never changed. The key says what was
asked (``proxykd.evaluation.generation``); the file's name says which model was asked and in which arithmetic. A line
that a killed process left half written is no answer: it is cut off when the file is opened, and asked for again. What
is held in memory is 16 bytes and an offset an answer.

The journals of one piece of work lie in one folder. When the work is done it says there what it made
(``mark_answers``); once that has come back out of the artifact store the answers are of no more use
(``remove_answers``).
"""

import json
import os
import shutil
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from proxykd.exceptions import StorageError
from proxykd.records import canonical_json, hash_text

ANSWERS = "answers"
"""Name of a folder of journals, below the folder of the work that they belong to."""

MADE_FILE = "made"
"""File beside the journals with the hash of the artifact that was made from them."""

KEPT_S = 30 * 24 * 3600.0
"""Seconds after which answers that nobody has asked for any more are removed, whatever became of the work."""


def mark_answers(folder: Path, *, made: str | None) -> None:
    """Say what was made from the journals of a folder; nothing happens where there are none.

    Args:
        folder: Of the journals.
        made: Hash of the artifact; None = the work is under way, and the journals stay whatever was made before.
    """
    if made is None:
        (folder / MADE_FILE).unlink(missing_ok=True)
    elif folder.is_dir():
        (folder / MADE_FILE).write_text(made, encoding="utf-8")


def remove_answers(root: Path, *, made: str) -> None:
    """Remove the journals of an artifact that is safely stored, and those that nobody has used for a month.

    Args:
        root: Folder of folders of work, in each of which a folder ``ANSWERS`` may be.
        made: Hash of the artifact.
    """
    for folder in root.glob(f"*/{ANSWERS}"):
        with suppress(OSError):  # another run may be doing the same
            mark = folder / MADE_FILE
            is_stored = mark.is_file() and mark.read_text(encoding="utf-8") == made
            if is_stored or max(file.stat().st_mtime for file in (folder, *folder.iterdir())) < time.time() - KEPT_S:
                shutil.rmtree(folder)
                folder.parent.rmdir()  # unless something else is in it


class AnswerJournal:
    """Answers by key, on disk.

    Args:
        path: The file; made, with its folder, if it is not there.

    Raises:
        StorageError: if it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offsets: dict[bytes, int] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a+b")
            self._read_offsets()
        except OSError as error:
            raise StorageError(
                f"expected to write the answers' journal {path}: {error}; free or choose a disk"
            ) from error

    def __contains__(self, key: str) -> bool:
        return _digest(key) in self._offsets

    def __len__(self) -> int:
        return len(self._offsets)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def get(self, key: str) -> Any:
        """The answer to ``key``; None if there is none."""
        offset = self._offsets.get(_digest(key))
        if offset is None:
            return None
        self._file.seek(offset)
        return json.loads(self._file.readline())["value"]

    def put(self, answers: Iterable[tuple[str, Any]]) -> None:
        """Append answers in one write; they survive the death of the process from then on.

        Args:
            answers: Pairs of key and JSON value.

        Raises:
            StorageError: if they cannot be written.
        """
        lines = [(key, (canonical_json({"key": key, "value": value}) + "\n").encode()) for key, value in answers]
        try:
            offset = self._file.seek(0, os.SEEK_END)
            self._file.write(b"".join(line for _, line in lines))
            self._file.flush()
        except OSError as error:
            raise StorageError(f"expected to write the answers' journal {self.path}: {error}; free its disk") from error
        for key, line in lines:
            self._offsets[_digest(key)] = offset
            offset += len(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _read_offsets(self) -> None:
        self._file.seek(0)
        offset = 0
        for line in self._file:
            if not line.endswith(b"\n"):
                self._file.truncate(offset)
                return
            if (key := _key_of(line)) is not None:
                self._offsets[_digest(key)] = offset
            offset += len(line)


def _key_of(line: bytes) -> str | None:
    """The key of a line; None if the line is damaged, which makes it an answer that was never given."""
    try:
        found = json.loads(line)
        return str(found["key"]) if "value" in found else None
    except (ValueError, TypeError, KeyError):
        return None


def _digest(key: str) -> bytes:
    return bytes.fromhex(hash_text(key)[:32])

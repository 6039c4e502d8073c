"""Room on the disk that is kept for answers that arrive when it is full.

Calls in flight have been paid for: should the journal not take their answers any more, they go into a file whose blocks
were allocated before the first call left, a JSON line a row with its checksum. Who opens the journal next moves them
there.
"""

import errno
import json
import os
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from proxykd.teacher.entries import Attempt, Row

NUM_BYTES = 8 * 2**20
"""Allocated: some hundred long answers."""


class Spill:
    """The file ``path``, which exists from ``reserve`` on, and after ``close`` only if something is in it.

    Args:
        path: The file.
        num_bytes: To allocate.
    """

    def __init__(self, path: Path, num_bytes: int = NUM_BYTES) -> None:
        self._path, self._num_bytes = path, num_bytes
        self._descriptor, self._end = -1, 0

    def reserve(self) -> None:
        """Allocate the room, once.

        Raises:
            OSError: if the disk has not so much.
        """
        if self._descriptor < 0:
            self._descriptor = os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(self._descriptor, 0, self._num_bytes)
            except OSError:
                self.close()
                raise

    def write(self, rows: Iterable[Row], attempts: Iterable[Attempt]) -> None:
        """Append rows, and calls whose price is not known, durably and as a whole.

        Raises:
            OSError: if it cannot be written, or not all of it.
        """
        lines = [*(("row", *row) for row in rows), *(("attempt", *attempt) for attempt in attempts)]
        content = "".join(json.dumps(line) + "\n" for line in lines).encode()
        if os.pwrite(self._descriptor, content, self._end) < len(content):
            raise OSError(errno.ENOSPC, "the room that was kept for answers in flight is used up")
        os.fsync(self._descriptor)
        self._end += len(content)

    def close(self) -> None:
        """Give the room back; what was written stays."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
            if not self._end:
                with suppress(OSError):
                    self._path.unlink()


class Spilled(NamedTuple):
    """What is in a file.

    Attributes:
        rows: Answers that are intact.
        attempts: Calls whose price is not known.
        is_whole: Whether every line could be read.
    """

    rows: list[Row]
    attempts: list[Attempt]
    is_whole: bool


def read_spill(path: Path) -> Spilled:
    """The content of a file; lines that are not what was written are passed over."""
    rows, attempts, is_whole = [], [], True
    with path.open("rb") as file:
        for line in file.read().rstrip(b"\0").splitlines():
            try:
                kind, *values = json.loads(line)
                if kind == "attempt":
                    attempts.append(Attempt(*values))
                elif (row := Row(*values)).is_intact:
                    rows.append(row)
                else:
                    is_whole = False
            except (ValueError, TypeError):
                is_whole = False
    return Spilled(rows, attempts, is_whole)

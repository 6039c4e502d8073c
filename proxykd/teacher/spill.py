"""Room on the disk that is kept for answers that arrive when it is full.

Calls in flight have been paid for: should the journal not take their answers any more, they go into a file whose blocks
were allocated before the first call left, a JSON line a row with its checksum. Who opens the journal next moves them
there.
"""

import json
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from proxykd.teacher.entries import Row

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

    def write(self, rows: Iterable[Row]) -> None:
        """Append rows, durably, as far as there is room.

        Raises:
            OSError: if it cannot be written.
        """
        content = "".join(json.dumps(row) + "\n" for row in rows).encode()
        os.pwrite(self._descriptor, content, self._end)
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


def read_spill(path: Path) -> Iterator[Row]:
    """The rows of a file, up to the first that is not whole."""
    with path.open("rb") as file:
        for line in file:
            try:
                row = Row(*json.loads(line))
            except (ValueError, TypeError):
                return
            if not row.is_intact:
                return
            yield row

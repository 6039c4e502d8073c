"""A temporary SQLite database: the set that is too large for memory.

It keeps 32 MiB of pages in memory at most and the rest in a file that nobody else reads, so it trades durability for
speed. What is in it is lost with it.
"""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from proxykd.exceptions import StorageError

_CACHE_KIB = 32_768


@contextmanager
def scratch_database(path: Path | None = None) -> Iterator[sqlite3.Connection]:
    """A database for the length of a ``with`` block.

    Args:
        path: Its file, replaced if it exists; None = an unnamed file in the system's temporary folder, removed at
            the end.

    Raises:
        StorageError: if the disk is full or cannot be written.
    """
    try:
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
        with closing(sqlite3.connect(str(path or ""), isolation_level=None)) as database:
            for setting in ("journal_mode=OFF", "synchronous=OFF", f"cache_size=-{_CACHE_KIB}"):
                database.execute(f"PRAGMA {setting}")
            database.execute("BEGIN")
            yield database
            database.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise StorageError(f"expected to write temporary data to {path or 'the temporary folder'}: {error}") from None

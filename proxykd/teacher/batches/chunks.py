"""Which requests are in which batch: durable before a batch is submitted, in the journal's file.

A chunk is a set of requests that are, or are about to be, one batch. It is written down before anything is sent, and
the batch's id is written down as soon as it is known. Whoever finds a chunk without an id after a kill can therefore
ask the endpoint whether that batch exists, instead of submitting its requests a second time.
"""

import sqlite3
from collections.abc import Collection, Iterable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from proxykd.exceptions import StorageError
from proxykd.teacher.journal_sql import connect

_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS batches (
    chunk TEXT PRIMARY KEY,
    endpoint TEXT NOT NULL,      -- host and path, and the API's shape
    num_requests INTEGER NOT NULL,
    prepared_at REAL NOT NULL,   -- seconds since 1970 UTC
    batch_id TEXT NOT NULL       -- as the endpoint calls it; '' = not known (yet)
)
""",
    """
CREATE TABLE IF NOT EXISTS batch_requests (
    key TEXT PRIMARY KEY,
    chunk TEXT NOT NULL,
    asked TEXT NOT NULL          -- what is asked, for the journal
)
""",
    "CREATE INDEX IF NOT EXISTS batch_requests_by_chunk ON batch_requests (chunk)",
)


class Chunk(NamedTuple):
    """Requests that are, or are about to be, one batch.

    Attributes:
        name: Unique.
        endpoint: Host and path, and the API's shape.
        num_requests: How many.
        prepared_at: When it was written down, seconds since 1970 UTC.
        batch_id: As the endpoint calls it; "" = not known (yet).
    """

    name: str
    endpoint: str
    num_requests: int
    prepared_at: float
    batch_id: str = ""


def requests_in_batches(path: Path, endpoint: str, *, besides: Collection[str] = ()) -> set[str]:
    """Keys of all requests that are in chunks which are not settled; writes nothing.

    Args:
        path: A journal that exists, with or without chunks.
        endpoint: As ``Chunk`` has it.
        besides: Batches that do not count.

    Raises:
        StorageError: if the journal cannot be read.
    """
    with _guarded(path), closing(connect(path)) as connection:
        if not connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'batch_requests'").fetchone():
            return set()
        query = "SELECT key, batch_id FROM batch_requests NATURAL JOIN batches WHERE endpoint = ?"
        return {key for key, batch_id in connection.execute(query, (endpoint,)) if batch_id not in besides}


@contextmanager
def _guarded(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise StorageError(
            f"cannot use the batches in the journal {path}: {error}; make sure that its disk has room and "
            "works, then run the same command again: no batch is submitted twice"
        ) from error


class Chunks:
    """The chunks of all runs of a journal.

    Args:
        path: The journal's file, which exists.

    Raises:
        StorageError: if it cannot be used; so do all methods.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with _guarded(self._path):
            self._connection = connect(path)
            for statement in _SCHEMA:
                self._connection.execute(statement)

    def __enter__(self) -> Self:
        """The open table."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; everything in it stays."""
        self._connection.close()

    def prepare(self, chunk: Chunk, requests: Iterable[tuple[str, str]]) -> None:
        """Write down a chunk that is about to be submitted.

        Args:
            chunk: The chunk.
            requests: Key of each request, and what it asks.
        """
        with _guarded(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.execute("INSERT INTO batches VALUES (?, ?, ?, ?, ?)", chunk)
                rows = ((key, chunk.name, asked) for key, asked in requests)
                self._connection.executemany("INSERT INTO batch_requests VALUES (?, ?, ?)", rows)
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def name_batch(self, chunk: Chunk, batch_id: str) -> Chunk:
        """Write down what the endpoint calls a chunk."""
        with _guarded(self._path):
            self._connection.execute("UPDATE batches SET batch_id = ? WHERE chunk = ?", (batch_id, chunk.name))
        return chunk._replace(batch_id=batch_id)

    def drop(self, chunk: Chunk) -> None:
        """Forget a chunk: it is settled, or was never submitted."""
        with _guarded(self._path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._connection.execute("DELETE FROM batch_requests WHERE chunk = ?", (chunk.name,))
                self._connection.execute("DELETE FROM batches WHERE chunk = ?", (chunk.name,))
                self._connection.execute("COMMIT")
            finally:
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")

    def open_at(self, endpoint: str) -> list[Chunk]:
        """The chunks of an endpoint that are not settled, oldest first."""
        with _guarded(self._path):
            query = "SELECT * FROM batches WHERE endpoint = ? ORDER BY prepared_at"
            return [Chunk(*row) for row in self._connection.execute(query, (endpoint,))]

    def get(self, name: str) -> Chunk | None:
        """A chunk as it is now; None = somebody settled it."""
        with _guarded(self._path):
            row = self._connection.execute("SELECT * FROM batches WHERE chunk = ?", (name,)).fetchone()
            return None if row is None else Chunk(*row)

    def asked(self, key: str) -> str:
        """What a request asks; "" = it is in no chunk."""
        with _guarded(self._path):
            row = self._connection.execute("SELECT asked FROM batch_requests WHERE key = ?", (key,)).fetchone()
            return "" if row is None else str(row[0])

    def has_any(self) -> bool:
        """Whether there are chunks at all."""
        with _guarded(self._path):
            return self._connection.execute("SELECT 1 FROM batches").fetchone() is not None

    def keys(self, chunk: Chunk) -> set[str]:
        """Keys of the requests of a chunk."""
        with _guarded(self._path):
            rows = self._connection.execute("SELECT key FROM batch_requests WHERE chunk = ?", (chunk.name,))
            return {key for (key,) in rows}

    def holds(self, key: str) -> bool:
        """Whether a request is in a chunk that is not settled."""
        with _guarded(self._path):
            found = self._connection.execute("SELECT 1 FROM batch_requests WHERE key = ?", (key,))
            return found.fetchone() is not None

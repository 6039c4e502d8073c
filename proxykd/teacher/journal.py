"""The journal: every answer that was paid for, on disk before it counts, so that nothing is paid for twice.

One SQLite file, a row a request. Write-ahead logging lets others read while one writes, ``synchronous=FULL`` makes a
commit survive a power cut, and ``GroupCommits`` puts all answers that arrive during one commit into the next, so that
the price of a commit is shared. Two processes may use one journal: the first final answer to a request stays.

A row that is not final (the endpoint was down, say) is kept for its reason alone and asked again by the next run.

Beside the answers stand open attempts: calls that were announced before they left and whose price is not known yet, or
never will be (``proxykd.teacher.budget``).
"""

import asyncio
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from proxykd.exceptions import StorageError
from proxykd.teacher.replies import Reply

_BUSY_S = 60.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    key TEXT PRIMARY KEY,        -- hash of the canonical request and the sample's index
    reply TEXT NOT NULL,         -- the parts of the response that are kept, JSON
    is_final INTEGER NOT NULL,   -- 0 = ask again in the next run
    answered_at REAL NOT NULL    -- seconds since 1970 UTC
)
"""
_ATTEMPTS = """
CREATE TABLE IF NOT EXISTS attempts (
    attempt_id TEXT PRIMARY KEY,
    key TEXT NOT NULL,                   -- of the request
    prompt_tokens INTEGER NOT NULL,      -- the most that it can be billed for
    completion_tokens INTEGER NOT NULL
)
"""
_UPSERT = """
INSERT INTO answers VALUES (?, ?, ?, ?) ON CONFLICT (key) DO UPDATE
SET reply = excluded.reply, is_final = excluded.is_final, answered_at = excluded.answered_at WHERE answers.is_final = 0
"""


class Entry(NamedTuple):
    """A row of the journal.

    Attributes:
        key: Hash of the request.
        reply: What came of it.
        is_final: False = the next run asks again.
    """

    key: str
    reply: Reply
    is_final: bool


class Attempt(NamedTuple):
    """A call that was announced before it left, with the most that it can be billed for.

    Attributes:
        attempt_id: Unique.
        key: Hash of the request.
        prompt_tokens: Upper bound.
        completion_tokens: Upper bound.
    """

    attempt_id: str
    key: str
    prompt_tokens: int
    completion_tokens: int


class _Changes(NamedTuple):
    """What one task wants written."""

    entries: Sequence[Entry] = ()
    opened: Sequence[Attempt] = ()
    closed: Sequence[str] = ()


def connect(path: Path) -> sqlite3.Connection:
    """A durable, shareable connection; used by one thread at a time."""
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    return connection


class Journal:
    """The journal in the file ``path``, which is created with its folder where there is none.

    Args:
        path: The SQLite file.
        open_connection: Opens the file; tests pass one whose disk is small.

    Raises:
        StorageError: if the file cannot be opened, is no journal, or (``commit``) cannot be written.
    """

    def __init__(self, path: Path, open_connection: Callable[[Path], sqlite3.Connection] = connect) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = open_connection(path)
            self._writer.execute(_SCHEMA)
            self._writer.execute(_ATTEMPTS)
            self._reader = open_connection(path)
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"expected a journal at {path} that can be used: {_advice(path, error)}") from error

    def __enter__(self) -> Self:
        """The open journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; whatever was committed stays."""
        self._reader.close()
        self._writer.close()

    def get(self, key: str) -> Entry | None:
        """The entry of one request, final or not; None if it was never settled.

        Raises:
            StorageError: if the journal is damaged or cannot be read.
        """
        row = self._read("SELECT is_final, reply FROM answers WHERE key = ?", key)
        try:
            return None if row is None else Entry(key, Reply(**json.loads(row[1])), bool(row[0]))
        except (ValueError, TypeError) as error:
            raise StorageError(f"cannot read the journal {self.path}: {_damage(self.path, error)}") from error

    def has_final(self, key: str) -> bool:
        """Whether the request must not be asked again.

        Raises:
            StorageError: if the journal is damaged or cannot be read.
        """
        row = self._read("SELECT is_final FROM answers WHERE key = ?", key)
        return row is not None and bool(row[0])

    def _read(self, query: str, key: str) -> tuple[Any, ...] | None:
        try:
            row: tuple[Any, ...] | None = self._reader.execute(query, (key,)).fetchone()
        except sqlite3.Error as error:
            raise StorageError(f"cannot read the journal {self.path}: {_advice(self.path, error)}") from error
        return row

    def open_attempts(self) -> list[Attempt]:
        """All calls whose price is not known, of every run of this journal.

        Raises:
            StorageError: if the journal cannot be read.
        """
        try:
            rows = self._reader.execute("SELECT attempt_id, key, prompt_tokens, completion_tokens FROM attempts")
            return [Attempt(*row) for row in rows]
        except sqlite3.Error as error:
            raise StorageError(f"cannot read the journal {self.path}: {_advice(self.path, error)}") from error

    def commit(
        self, entries: Iterable[Entry] = (), *, opened: Iterable[Attempt] = (), closed: Iterable[str] = ()
    ) -> None:
        """Write all of it in one transaction and return when it is durable.

        Args:
            entries: Answers.
            opened: Calls that are about to leave.
            closed: Ids of attempts whose price is known now.

        Raises:
            StorageError: if the disk is full, another run holds the file or it cannot be written; nothing of it is
                kept then.
        """
        rows = [(e.key, json.dumps(asdict(e.reply)), int(e.is_final), time.time()) for e in entries]
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            self._writer.executemany(_UPSERT, rows)
            self._writer.executemany("INSERT INTO attempts VALUES (?, ?, ?, ?)", opened)
            self._writer.executemany("DELETE FROM attempts WHERE attempt_id = ?", [(name,) for name in closed])
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise StorageError(f"cannot add to the journal {self.path}: {_advice(self.path, error)}") from error


class GroupCommits:
    """Collects changes from many tasks and commits them together, off the event loop.

    Args:
        journal: Where they go; nobody else may commit to this object meanwhile.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._waiting: list[tuple[_Changes, asyncio.Future[None]]] = []
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="journal")
        self._flush: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        """Ready to take entries."""
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit what is still waiting."""
        if self._flush is not None:
            await self._flush
        self._thread.shutdown()

    async def put(self, entry: Entry, *, closes: str | None = None) -> None:
        """Return once ``entry`` is durable, and with it that the price of the attempt ``closes`` is known.

        Raises:
            StorageError: if it cannot be written.
        """
        await self._add(_Changes(entries=[entry], closed=[] if closes is None else [closes]))

    async def open(self, attempt: Attempt) -> None:
        """Return once it is durable that a call is about to leave.

        Raises:
            StorageError: if it cannot be written.
        """
        await self._add(_Changes(opened=[attempt]))

    async def close(self, attempt: Attempt) -> None:
        """Return once it is durable that the price of a call is known.

        Raises:
            StorageError: if it cannot be written.
        """
        await self._add(_Changes(closed=[attempt.attempt_id]))

    async def _add(self, changes: _Changes) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((changes, done))
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._commit_all())
        await done

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            failure: StorageError | None = None
            try:
                await loop.run_in_executor(self._thread, self._commit, [changes for changes, _ in batch])
            except StorageError as error:
                failure = error
            for _, done in batch:
                _settle(done, failure)

    def _commit(self, batch: list[_Changes]) -> None:
        entries, opened, closed = (chain.from_iterable(parts) for parts in zip(*batch, strict=True))
        self._journal.commit(entries, opened=opened, closed=closed)


def _advice(path: Path, error: Exception) -> str:
    """What is wrong with the file and what to do about it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # extended codes share their lowest byte
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "decode to UTF-8" in str(error):
        return _damage(path, error)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return (
            f"{error}: another run uses this workspace and kept it for {_BUSY_S:g} s; wait for its end or stop it, "
            "then run the same command again"
        )
    if code == sqlite3.SQLITE_FULL:
        return (
            f"{error}; free space on its disk and run the same command again: every answer that is in the journal "
            "stays and is not paid for twice"
        )
    return f"{error}; make sure that it is a file on a disk that works, which you may read and write"


def _damage(path: Path, error: Exception) -> str:
    return (
        f"it is damaged ({error}); restore a copy of it, or rebuild it with "
        f"`sqlite3 {path} .recover | sqlite3 {path}.recovered` and put that in its place; do not delete it: its "
        "answers are paid for"
    )


def _settle(done: "asyncio.Future[None]", failure: StorageError | None) -> None:
    if done.done():
        return  # whoever waited was cancelled; the changes are written all the same
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)

"""The journal: every answer that was paid for, on disk before it counts, so that nothing is paid for twice.

One SQLite file, append-only: a row an answer, with what was asked, what came and a SHA-256 over both. The key of an
answer is the hash of what was asked. Write-ahead logging lets others read while one writes and drops a last record that
was torn by a crash; ``synchronous=FULL`` makes a commit survive a power cut; ``proxykd.teacher.commits`` puts all
answers that arrive during one commit into the next, so that the price of a commit is shared.

Two processes may use one journal. The first final answer to a request stays, and before a request is sent it is
claimed: nobody else sends it while its owner lives (``proxykd.teacher.owners``).

A row that is not final (the endpoint was down, say) is kept for its reason alone and asked again by the next run.
Beside the answers stand open attempts: calls that were announced before they left and whose price is not known yet, or
never will be (``proxykd.teacher.budget``).
"""

import fcntl
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self

from proxykd.exceptions import BusyError, ProxykdError, StorageError
from proxykd.teacher.entries import Attempt, Entry, Row, checksum_of, dump_reply
from proxykd.teacher.journal_sql import (
    ALL_AMONG,
    CLAIM,
    CLAIMED_AMONG,
    FINAL_AMONG,
    FORGET,
    FORGET_AMONG,
    KEEP_ATTEMPT,
    LATEST,
    LOSE_CLAIM,
    LOST,
    OPEN,
    SCHEMA,
    VERSION,
    advice,
    connect,
    connect_to_read,
    damage_advice,
    insert_rows,
)
from proxykd.teacher.owners import Owner
from proxykd.teacher.spill import NUM_BYTES, Spill, read_spill


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
        self._owner = Owner(path.with_name(f"{path.name}-owners"))
        self._spill = Spill(self._owner.beside("spill"))
        with self._guarded(f"expected a journal at {path} that can be used"):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._writer = open_connection(path)
            try:
                self._prepare()
                self._take_in_spills()
                self._reader = connect_to_read(path, open_connection)
            except BaseException:
                self._writer.close()
                raise

    def _prepare(self) -> None:
        if self._form() == VERSION:
            return
        with self._transaction() as connection:  # another process may be about to make the same tables
            if self._form() == 0 and not connection.execute("SELECT 1 FROM sqlite_schema").fetchone():
                for statement in (*SCHEMA, f"PRAGMA user_version={VERSION}"):
                    connection.execute(statement)
        if self._form() != VERSION:
            raise StorageError(
                f"expected a journal of form {VERSION} at {self.path}, found another form: an earlier release of "
                "proxykd wrote it; move it away and start a new one (PROXYKD_HOME names another workspace)"
            )

    def _form(self) -> int:
        return int(self._writer.execute("PRAGMA user_version").fetchone()[0])

    def _take_in_spills(self) -> None:
        """Take in what processes that are gone could not write any more."""
        for path in self._owner.left_by_the_dead("spill"):
            found = read_spill(path)
            with self._transaction() as connection:
                insert_rows(connection, found.rows)
                connection.executemany(KEEP_ATTEMPT, found.attempts)
                # What these calls cost is known, or counted by its attempt: their claims must not count too.
                told = [row.key for row in found.rows] + [attempt.key for attempt in found.attempts]
                connection.executemany(FORGET, [(key, path.stem) for key in told])
            if found.is_whole:
                path.unlink(missing_ok=True)
            else:
                path.replace(path.with_suffix(".damaged"))

    def __enter__(self) -> Self:
        """The open journal."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close it; whatever was committed stays, claims do not."""
        self._spill.close()
        self._owner.leave()
        self._reader.close()
        self._writer.close()

    def get(self, key: str) -> Entry | None:
        """The entry of one request, final or not; None if it was never settled.

        Raises:
            StorageError: if the journal is damaged or cannot be read.
        """
        with self._guarded():
            found = self._reader.execute(LATEST, (key,)).fetchone()
            return None if found is None else self._read(Row(*found))

    def get_many(self, keys: Sequence[str]) -> dict[str, Entry]:
        """``get`` of many requests, several times as fast as one by one; those that were never settled are left out.

        Raises:
            StorageError: if the journal is damaged or cannot be read.
        """
        return {key: self._read(row) for key, row in self.rows_among(keys).items()}

    def rows_among(self, keys: Sequence[str]) -> dict[str, Row]:
        """The rows that count for many requests, unchecked; those that were never settled are left out.

        Raises:
            StorageError: if the journal cannot be read.
        """
        with self._guarded():
            rows = [Row(*found) for found in self._reader.execute(ALL_AMONG, (json.dumps(keys),))]
        return {row.key: row for row in rows}  # of one key, the one that counts comes last

    def _read(self, row: Row) -> Entry:
        if not row.is_intact:
            raise StorageError(
                f"the journal {self.path} is damaged: the checksum of row {row.seq} is wrong; restore a copy of it and "
                "do not delete it, its answers are paid for; or let go of the damaged rows alone, which are then asked "
                f"again: `proxykd journal verify --drop-damaged --journal {self.path}`"
            )
        try:
            return row.entry()
        except (ValueError, TypeError) as error:
            raise StorageError(f"cannot read the journal {self.path}: {damage_advice(self.path, error)}") from error

    def has_final(self, key: str) -> bool:
        """Whether the request must not be asked again.

        Raises:
            StorageError: if the journal is damaged or cannot be read.
        """
        with self._guarded():
            query = "SELECT 1 FROM answers WHERE key = ? AND is_final = 1"
            return self._reader.execute(query, (key,)).fetchone() is not None

    def is_empty(self) -> bool:
        """Whether nothing was ever asked.

        Raises:
            StorageError: if the journal cannot be read.
        """
        with self._guarded():
            tables = ("answers", "attempts", "claims")
            return not any(self._reader.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in tables)

    def finals_among(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that have a final answer, several times as fast as one by one.

        Raises:
            StorageError: if the journal is damaged or cannot be read.
        """
        with self._guarded():
            return {key for (key,) in self._reader.execute(FINAL_AMONG, (json.dumps(keys),))}

    def rows(self, *, by_key: bool = False) -> Iterator[Row]:
        """All rows, unchecked; others may write meanwhile.

        Args:
            by_key: Whether they come in the order of their keys; else in that in which they were written.

        Raises:
            StorageError: if the journal is damaged or cannot be read.
        """
        with self._guarded():
            order = "key, is_final, seq" if by_key else "seq"
            for found in self._reader.execute(f"SELECT * FROM answers ORDER BY {order}"):
                yield Row(*found)

    def open_attempts(self) -> list[Attempt]:
        """All calls whose price is not known, of every run of this journal; those that we have claimed are not yet.

        Raises:
            StorageError: if the journal cannot be read.
        """
        with self._guarded():
            return [Attempt(*row) for row in self._reader.execute(OPEN, (self._owner.name,))]

    def lost_attempts(self) -> list[Attempt]:
        """``open_attempts``, without what processes that are alive have in flight, under names that stay."""
        with self._guarded():
            found = self._reader.execute(LOST).fetchall()
            return [Attempt(*row) for *row, owner in found if not (owner and self._owner.is_alive(owner))]

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
        rows, opened, closed = _rows_of(entries), list(opened), list(closed)
        with self._transaction() as connection:
            insert_rows(connection, rows)
            if opened:
                connection.executemany("INSERT INTO attempts VALUES (?, ?, ?, ?)", opened)
            if closed:
                connection.executemany("DELETE FROM attempts WHERE attempt_id = ?", [(name,) for name in closed])

    def reserve_room(self) -> None:
        """Keep room on the disk for answers to calls that are in flight when it is full.

        Raises:
            StorageError: if it has none.
        """
        with self._guarded(f"cannot keep {NUM_BYTES / 2**20:g} MiB free beside the journal {self.path}"):
            self._owner.enter()
            self._spill.reserve()

    def spill(self, entries: Iterable[Entry], opened: Iterable[Attempt]) -> None:
        """Put what ``commit`` could not write into that room; the next who opens the journal takes it in.

        Raises:
            StorageError: if it cannot be written.
        """
        with self._guarded(f"cannot add to the journal {self.path}"):
            self._spill.write(_rows_of(entries), opened)

    def add_rows(self, rows: Iterable[Row], *, lost: Iterable[Attempt] = ()) -> int:
        """Append rows of another journal, or such as were exported, as they are; a final answer that is here stays.

        Args:
            rows: The rows.
            lost: What the other journal counts as lost; each is counted once.

        Returns:
            How many were new.

        Raises:
            StorageError: as ``commit``.
        """
        with self._transaction() as connection:
            connection.executemany(KEEP_ATTEMPT, list(lost))
            return insert_rows(connection, rows)

    def claim(self, wanted: Iterable[Attempt], *, settled: Iterable[str] = ()) -> dict[str, bool]:
        """Announce that this process is about to ask; ``release``, a final answer or the process's end ends a claim.

        A claim whose process is gone is taken over, and its call counts as made: it may have left.

        Args:
            wanted: The calls, with the most that each can be billed for; their ids do not count.
            settled: Keys of former claims of ours that are to be forgotten.

        Returns:
            For every key that has no final answer yet whether the claim is ours; False = another process that is
            alive is asking it now.

        Raises:
            StorageError: as ``commit``.
        """
        bounds = {call.key: call for call in wanted}
        with self._guarded(f"cannot add to the journal {self.path}"):
            self._take_in_spills()
        with self._transaction() as connection:
            mine, keys = self._owner.enter(), json.dumps(list(bounds))
            connection.execute(FORGET_AMONG, (json.dumps(list(settled)), mine))
            final = {key for (key,) in connection.execute(FINAL_AMONG, (keys,))}
            owners = dict(connection.execute(CLAIMED_AMONG, (keys,)))
            alive = {name: name == mine or self._owner.is_alive(name) for name in set(owners.values())}
            void = [(key,) for key, owner in owners.items() if not alive[owner] and key not in final]
            connection.executemany(LOSE_CLAIM, void)
            connection.executemany("DELETE FROM claims WHERE key = ?", void)
            found = {key: owners.get(key, mine) == mine or not alive[owners[key]] for key in bounds if key not in final}
            new = [call for key, call in bounds.items() if found.get(key) and owners.get(key) != mine]
            rows = [(call.key, call.prompt_tokens, call.completion_tokens) for call in new]
            connection.execute(CLAIM, (mine, json.dumps(rows)))
        return found

    def release(self, keys: Iterable[str]) -> None:
        """Give claims back without an answer.

        Raises:
            StorageError: as ``commit``.
        """
        with self._transaction() as connection:
            connection.execute(FORGET_AMONG, (json.dumps(list(keys)), self._owner.name))

    def drop(self, rows: Iterable[Row]) -> None:
        """Remove rows: what they answered is asked again, and what it cost stays counted as far as they tell it.

        Raises:
            StorageError: as ``commit``.
        """
        rows = list(rows)
        paid = [row.as_attempt() for row in rows if row.is_final]
        with self._transaction() as connection:
            connection.executemany(KEEP_ATTEMPT, paid)
            connection.executemany("DELETE FROM answers WHERE seq = ?", [(row.seq,) for row in rows])

    def compact(self) -> None:
        """Remove rows that a later one of the same request replaced, and give the space back to the disk.

        Raises:
            StorageError: as ``commit``; nobody else may write meanwhile.
        """
        with self._transaction() as connection:
            connection.execute(
                "DELETE FROM answers WHERE is_final = 0 AND EXISTS (SELECT 1 FROM answers AS later "
                "WHERE later.key = answers.key AND (later.is_final = 1 OR later.seq > answers.seq))"
            )
        with self._guarded():
            self._writer.execute("VACUUM")
            self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Be the only process that spends under a cap: two that each know half of what is spent could break it.

        Raises:
            BusyError: if another one is.
            StorageError: if the disk knows no locks.
        """
        with self._guarded(), self.path.with_name(f"{self.path.name}-spending").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BusyError(
                    f"expected to be alone in spending under a cap (teacher.budget) on the journal {self.path}, but "
                    "another process is doing so; wait for its end, or give each shard a journal and a part of the cap"
                ) from None
            yield

    def damage(self) -> list[str]:
        """What SQLite finds wrong with the file itself; empty = nothing."""
        with self._guarded():
            found = [str(text) for (text,) in self._reader.execute("PRAGMA integrity_check")]
        return [] if found == ["ok"] else found

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._guarded(f"cannot add to the journal {self.path}"):
            try:
                self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                self._writer.execute("COMMIT")
            finally:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")

    @contextmanager
    def _guarded(self, what: str = "") -> Iterator[None]:
        try:
            yield
        except ProxykdError:
            raise
        except (OSError, sqlite3.Error) as error:
            what = what or f"cannot read the journal {self.path}"
            raise StorageError(f"{what}: {advice(self.path, error)}") from error


def _rows_of(entries: Iterable[Entry]) -> list[Row]:
    now, rows = time.time(), []
    for entry in entries:
        content = entry.key, entry.request, dump_reply(entry.reply), int(entry.is_final), now
        rows.append(Row(0, *content, checksum_of(*content)))
    return rows

"""The statements of the journal, and what its disk's errors mean."""

import sqlite3
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from proxykd.artifacts import batched
from proxykd.teacher.entries import Row

_BUSY_S = 60.0
_BUSY_POLL_S = 0.01
VERSION = 3
SCHEMA = (
    """
CREATE TABLE answers (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL,           -- SHA-256 of request
    request TEXT NOT NULL,       -- what was asked: canonical JSON
    reply TEXT NOT NULL,         -- the parts of the response that are kept, JSON
    is_final INTEGER NOT NULL,   -- 0 = ask again in the next run
    answered_at REAL NOT NULL,   -- seconds since 1970 UTC
    checksum TEXT NOT NULL       -- SHA-256 of the columns from key to answered_at
)
""",
    "CREATE INDEX by_key ON answers (key, is_final)",
    """
CREATE TABLE attempts (
    attempt_id TEXT PRIMARY KEY,
    key TEXT NOT NULL,                   -- of the request
    prompt_tokens INTEGER NOT NULL,      -- the most that it can be billed for
    completion_tokens INTEGER NOT NULL
)
""",
    """
CREATE TABLE claims (
    key TEXT PRIMARY KEY,
    owner TEXT NOT NULL,                 -- who is asking it now
    prompt_tokens INTEGER NOT NULL,      -- the most that its call can be billed for; 0 = nobody counts
    completion_tokens INTEGER NOT NULL
) WITHOUT ROWID
""",
)
_INSERT = """
INSERT INTO answers (key, request, reply, is_final, answered_at, checksum) SELECT * FROM (VALUES {values}) AS new
WHERE NOT EXISTS (SELECT 1 FROM answers WHERE key = new.column1 AND is_final = 1)
"""
_ROWS_A_STATEMENT = 64
_CACHE_KIB = 16_384
_READ_CACHE_KIB = 65_536
"""More than half of the index of a million keys: a rerun looks all of them up, in no order."""
_PAGES_A_CHECKPOINT = 8_000
"""32 MiB: a page that many commits touch is then copied once."""
_AMONG = "IN (SELECT value FROM json_each(?))"
FINAL_AMONG = f"SELECT key FROM answers WHERE is_final = 1 AND key {_AMONG}"
ALL_AMONG = f"SELECT * FROM answers WHERE key {_AMONG} ORDER BY key, is_final, seq"
CLAIMED_AMONG = f"SELECT key, owner FROM claims WHERE key {_AMONG}"
FORGET = "DELETE FROM claims WHERE key = ? AND owner = ?"
FORGET_AMONG = f"DELETE FROM claims WHERE key {_AMONG} AND owner = ?"
CLAIM = """
INSERT INTO claims
SELECT json_extract(value, '$[0]'), ?, json_extract(value, '$[1]'), json_extract(value, '$[2]') FROM json_each(?)
"""
LOSE_CLAIM = """
INSERT INTO attempts SELECT 'void ' || owner || key, key, prompt_tokens, completion_tokens FROM claims
WHERE key = ? AND completion_tokens > 0
"""
KEEP_ATTEMPT = "INSERT OR IGNORE INTO attempts VALUES (?, ?, ?, ?)"
OPEN = """
SELECT attempt_id, key, prompt_tokens, completion_tokens FROM attempts
UNION ALL SELECT 'claim ' || key, key, prompt_tokens, completion_tokens FROM claims
WHERE completion_tokens > 0 AND owner <> ?
AND NOT EXISTS (SELECT 1 FROM answers WHERE key = claims.key AND is_final = 1)
"""
LOST = """
SELECT attempt_id, key, prompt_tokens, completion_tokens, '' FROM attempts
UNION ALL SELECT 'void ' || owner || key, key, prompt_tokens, completion_tokens, owner FROM claims
WHERE completion_tokens > 0 AND NOT EXISTS (SELECT 1 FROM answers WHERE key = claims.key AND is_final = 1)
"""
LATEST = "SELECT * FROM answers WHERE key = ? ORDER BY is_final DESC, seq DESC LIMIT 1"


def connect(path: Path) -> sqlite3.Connection:
    """A durable, shareable connection; used by one thread at a time."""
    connection = sqlite3.connect(path, timeout=_BUSY_S, isolation_level=None, check_same_thread=False)
    _enter_wal(connection)
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute(f"PRAGMA cache_size=-{_CACHE_KIB}")
    connection.execute(f"PRAGMA wal_autocheckpoint={_PAGES_A_CHECKPOINT}")
    return connection


def connect_to_read(path: Path, open_connection: Callable[[Path], sqlite3.Connection] = connect) -> sqlite3.Connection:
    """A connection for look-ups; a damaged text is read as it is, so that its checksum tells."""
    connection = open_connection(path)
    connection.execute(f"PRAGMA cache_size=-{_READ_CACHE_KIB}")
    connection.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    return connection


def _enter_wal(connection: sqlite3.Connection) -> None:
    """Turn the write-ahead log on; SQLite itself does not wait where another process is just doing the same."""
    deadline = time.monotonic() + _BUSY_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                raise
            time.sleep(_BUSY_POLL_S)


def insert_rows(connection: sqlite3.Connection, rows: Iterable[Row]) -> int:
    """Append those rows whose request has no final answer; returns how many.

    Many rows a statement: the thread gives the interpreter away for each statement, and at a busy time waits long to
    have it back.
    """
    num_new, answered = 0, set[str]()
    for block in batched(rows, _ROWS_A_STATEMENT):
        part = []
        for row in block:
            if row.key not in answered:
                part.append(row)
            if row.is_final:
                answered.add(row.key)
        if not part:
            continue
        values = ", ".join(["(?, ?, ?, ?, ?, ?)"] * len(part))
        parameters = [value for row in part for value in row[1:]]
        num_new += connection.execute(_INSERT.format(values=values), parameters).rowcount
    return num_new


def advice(path: Path, error: Exception) -> str:
    """What is wrong with the file and what to do about it."""
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_OK) & 0xFF  # extended codes share their lowest byte
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "decode to UTF-8" in str(error):
        return damage_advice(path, error)
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


def damage_advice(path: Path, error: Exception) -> str:
    """That the file is damaged, and how to save what is in it."""
    return (
        f"it is damaged ({error}); restore a copy of it, or rebuild it with "
        f"`sqlite3 {path} .recover | sqlite3 {path}.recovered` and put that in its place; do not delete it: its "
        "answers are paid for"
    )

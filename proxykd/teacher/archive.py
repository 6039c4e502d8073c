"""The journal as a whole: checked, written out for others, and filled from elsewhere.

Rows travel as they are, with their checksums, so that a journal that was exported and imported, or put together from
the journals of several shards, is the same to the last bit. The root is one hash over all final answers in the order of
their keys: two journals with the same root hold the same answers, whatever the order in which they came.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.artifacts import batched
from proxykd.exceptions import ArtifactError, InputError
from proxykd.records import canonical_json
from proxykd.teacher.entries import Row
from proxykd.teacher.journal import Journal
from proxykd.teacher.replies import outcome_of

_BATCH = 2000
SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("request", pa.string()),
        ("reply", pa.string()),
        ("is_final", pa.int64()),
        ("answered_at", pa.float64()),
        ("checksum", pa.string()),
        ("outcome", pa.string()),
        ("text", pa.string()),
    ]
)
"""Columns of an export; those after the checksum repeat what the reply says."""


@dataclass(slots=True)
class Verification:
    """What a check of a journal found.

    Attributes:
        num_rows: Rows in all.
        num_final: Final answers that are intact.
        damaged: Rows whose checksum is wrong, or whose key is not that of the request beside it.
        file_damage: What SQLite finds wrong with the file itself.
        root: 64 hex digits over the checksums of the final answers that are intact, in the order of their keys.
    """

    num_rows: int = 0
    num_final: int = 0
    damaged: list[Row] = field(default_factory=list)
    file_damage: list[str] = field(default_factory=list)
    root: str = ""

    @property
    def is_intact(self) -> bool:
        """Whether nothing is wrong."""
        return not (self.damaged or self.file_damage)


def verify(journal: Journal) -> Verification:
    """Recompute every checksum.

    Raises:
        StorageError: if the file is so damaged that its rows cannot be read.
    """
    found, root = Verification(file_damage=journal.damage()), hashlib.sha256()
    for row in journal.rows(by_key=True):
        found.num_rows += 1
        if not row.is_intact:
            found.damaged.append(row)
        elif row.is_final:
            found.num_final += 1
            root.update(bytes.fromhex(row.checksum))
    found.root = root.hexdigest()
    return found


def export(journal: Journal, path: Path) -> int:
    """Write all rows to a new ``.jsonl`` or ``.parquet`` file; returns how many.

    Raises:
        InputError: if the name has another ending, its folder is missing, or the file exists.
        ArtifactError: if rows are damaged; the intact ones are written.
        OSError: if it cannot be written.
    """
    writers = {".jsonl": _write_jsonl, ".parquet": write_parquet}
    if path.suffix not in writers:
        raise InputError(f"expected a file that ends in .jsonl or .parquet, got {path.name!r}; name one")
    if path.exists():
        raise InputError(f"expected a new file, but {path} exists; name another or remove it")
    if not path.parent.is_dir():
        raise InputError(f"expected the folder {path.parent} for the export, found none; make it")
    damaged: list[int] = []

    def intact() -> Iterator[Row]:
        for row in journal.rows():
            if row.is_intact:
                yield row
            else:
                damaged.append(row.seq)

    count = writers[path.suffix](path, intact())
    if damaged:
        raise ArtifactError(
            f"{count:,} rows written to {path}, but {len(damaged)} are damaged and left out (rows {damaged[:10]}); see "
            f"`proxykd journal verify --journal {journal.path}`"
        )
    return count


def import_rows(journal: Journal, path: Path) -> tuple[int, int]:
    """Add the rows of another journal or of an export; answers that are here stay.

    Args:
        journal: Where they go.
        path: A journal (``.sqlite``), or what ``export`` wrote.

    Returns:
        How many rows were read, and how many were new.

    Raises:
        InputError: if the file is none of these, or a row is not what was exported, naming it.
        StorageError: if a journal cannot be read or written.
    """
    num_read = num_new = 0
    for batch in batched(_read(path), _BATCH):
        num_read += len(batch)
        num_new += journal.add_rows(batch)
    return num_read, num_new


def _write_jsonl(path: Path, rows: Iterable[Row]) -> int:
    count = 0
    with path.open("x", encoding="utf-8") as file:
        for row in rows:
            count += 1
            line = {**_columns(row), "request": json.loads(row.request or "null"), "reply": json.loads(row.reply)}
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return count


def write_parquet(path: Path, rows: Iterable[Row]) -> int:
    """Write rows as ``import_rows`` reads them; returns how many."""
    count = 0
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for batch in batched(rows, _BATCH):
            writer.write_table(pa.Table.from_pylist([_columns(row) for row in batch], schema=SCHEMA))
            count += len(batch)
    return count


def _columns(row: Row) -> dict[str, Any]:
    reply = row.entry().reply
    return {**row._asdict(), "outcome": outcome_of(reply)[0].value, "text": reply.text}


def _read(path: Path) -> Iterator[Row]:
    readers = {".jsonl": _read_jsonl, ".parquet": _read_parquet, ".sqlite": _read_journal}
    if path.suffix not in readers or not path.is_file():
        raise InputError(f"expected a journal (.sqlite) or an export of one (.jsonl, .parquet) at {path}")
    for number, row in enumerate(readers[path.suffix](path), start=1):
        if row is None or not row.is_intact:
            raise InputError(
                f"expected row {number} of {path} as it was exported, found another content (its checksum is wrong); "
                "what other tools wrote is imported with --config"
            )
        yield row


def _read_jsonl(path: Path) -> Iterator[Row | None]:
    with path.open(encoding="utf-8") as file:
        for line in file:
            try:
                value = json.loads(line)
                request = "" if value["request"] is None else canonical_json(value["request"])
                yield _row({**value, "request": request, "reply": json.dumps(value["reply"])})
            except (ValueError, KeyError, TypeError):
                yield None


def _read_parquet(path: Path) -> Iterator[Row | None]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_BATCH):
                yield from (_row(value) for value in batch.to_pylist())
    except (pa.ArrowException, KeyError) as error:
        raise InputError(f"expected an export of a journal at {path}, found another file: {error}") from None


def _read_journal(path: Path) -> Iterator[Row | None]:
    with Journal(path) as other:
        yield from other.rows()


def _row(value: dict[str, Any]) -> Row:
    return Row(0, *(value[name] for name in Row._fields[1:]))

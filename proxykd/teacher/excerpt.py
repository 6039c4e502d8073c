"""The part of the journal that a run's completions came from: its root, and when each teacher answered.

    root = SHA-256(c_1 || c_2 || ... || c_n),   c_i = checksum of the entry behind the i-th completion, 32 bytes

in the order of the completions, 32 zero bytes where there is no entry. The checksum is recomputed from what was asked,
what came and when, so that the root is the same for ever while the answers are, on whatever machine and in whatever
order the journal was written, and differs where one byte of one answer does. The further call of an answer that was cut
(``teacher.on_truncated``) is not in it; its text is in the completions.
"""

import hashlib
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from proxykd.artifacts import CompletionSet, JournalExcerpt, seal, write_json
from proxykd.exceptions import ArtifactError
from proxykd.teacher.entries import Row, checksum_of
from proxykd.teacher.journal import Journal

JOURNAL_FILE = "journal.json"
_BATCH_ROWS = 2000
_MAX_NAMED = 10
_NONE = bytes(32)


@dataclass(slots=True)
class Excerpt:
    """What the entries come to.

    Attributes:
        root: 64 hex digits.
        num_entries: Completions that have an entry.
        num_missing: Completions that have none: they were never answered, or the entry was dropped since.
        damaged: Numbers of the rows that are not what was written; at most ten.
        dates: Stage -> seconds since 1970 UTC of the first and of the last answer.
    """

    root: str = ""
    num_entries: int = 0
    num_missing: int = 0
    damaged: list[int] = field(default_factory=list)
    dates: dict[int, tuple[float, float]] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """As ``journal.json`` has it; dates as ISO 8601, UTC."""
        stages = [
            {"stage": stage, "first_answer_at": _iso(first), "last_answer_at": _iso(last)}
            for stage, (first, last) in sorted(self.dates.items())
        ]
        return {
            "root": self.root,
            "num_entries": self.num_entries,
            "num_missing": self.num_missing,
            "stages": stages,
        }

    def add(self, row: Row, stage: int) -> bytes:
        """Count an entry; returns its checksum, recomputed."""
        self.num_entries += 1
        checksum = checksum_of(row.key, row.request, row.reply, row.is_final, row.answered_at)
        if checksum != row.checksum and len(self.damaged) < _MAX_NAMED:
            self.damaged.append(row.seq)
        first, last = self.dates.get(stage, (row.answered_at, row.answered_at))
        self.dates[stage] = min(first, row.answered_at), max(last, row.answered_at)
        return bytes.fromhex(checksum)


def read_excerpt(completions: CompletionSet, journal_path: Path) -> Excerpt:
    """Look up the entry of every completion; holds one batch in memory.

    Args:
        completions: Of a teacher that was asked.
        journal_path: The journal; it must exist.

    Raises:
        ArtifactError: if there is no journal.
        StorageError: if it cannot be read.
    """
    if not journal_path.is_file():
        raise ArtifactError(f"expected the journal at {journal_path}, found none; restore it, or set PROXYKD_HOME")
    found, root = Excerpt(), hashlib.sha256()
    columns = ["request_hash", "stage"]
    with Journal(journal_path) as journal:
        for batch in completions.batches(batch_rows=_BATCH_ROWS, columns=columns):
            keys, stages = (batch[column].to_pylist() for column in columns)
            rows = journal.rows_among(keys)
            for key, stage in zip(keys, stages, strict=True):
                if (row := rows.get(key)) is None:
                    found.num_missing += 1
                root.update(_NONE if row is None else found.add(row, stage))
    found.root = root.hexdigest()
    return found


def write_excerpt(completions: CompletionSet, journal_path: Path | None, *, output: Path) -> JournalExcerpt:
    """Seal the excerpt as an artifact.

    Args:
        completions: What the teachers said.
        journal_path: The journal; None = the texts were recorded and there is none.
        output: Folder of the new artifact.
    """
    excerpt = JournalExcerpt(output)
    content = {"root": None} if journal_path is None else read_excerpt(completions, journal_path).to_json()
    write_json(output / JOURNAL_FILE, content)
    seal(excerpt, {"completions": completions.hash})
    return excerpt


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")

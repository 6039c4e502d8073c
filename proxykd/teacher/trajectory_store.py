"""Trajectories while they grow, in a temporary database: memory does not grow with the attempts."""

import hashlib
import json
import sqlite3
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from proxykd.data.splits import uniform_of
from proxykd.exceptions import InputError
from proxykd.records import Prompt
from proxykd.trajectories import SegmentKind, TrajectoryEnd

_PAGE_ROWS = 256
_TABLES = """
CREATE TABLE attempt (number INTEGER PRIMARY KEY, prompt_id TEXT, text TEXT, digest BLOB, UNIQUE (prompt_id, digest));
CREATE TABLE item (
    id INTEGER PRIMARY KEY, prompt TEXT, attempt_idx INTEGER, end TEXT, asked TEXT, draw REAL, kept INTEGER
);
CREATE INDEX item_asked ON item (asked) WHERE asked IS NOT NULL;
CREATE TABLE segment (item INTEGER, position INTEGER, kind TEXT, text TEXT, PRIMARY KEY (item, position)) WITHOUT ROWID
"""


@dataclass(frozen=True, slots=True)
class Item:
    """A trajectory that grows.

    Attributes:
        number: Its place in the order of the prompts and, within one, of the attempts.
        prompt: The question.
        attempt_idx: Which attempt at the prompt.
        segments: (kind, text) so far.
        end: How it ended; None = it goes on.
        is_kept: Whether the balance has room for it; set by ``balance``.
    """

    number: int
    prompt: Prompt
    attempt_idx: int
    segments: tuple[tuple[SegmentKind, str], ...]
    end: TrajectoryEnd | None
    is_kept: bool

    @property
    def answer(self) -> str:
        """The latest attempt or update."""
        return next(text for kind, text in reversed(self.segments) if kind is not SegmentKind.FEEDBACK)

    @property
    def feedback(self) -> str:
        """The latest feedback; "" before the first."""
        return next((text for kind, text in reversed(self.segments) if kind is SegmentKind.FEEDBACK), "")


class TrajectoryStore:
    """Items in a database of ``scratch_database``."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        for statement in _TABLES.strip().split(";\n"):
            database.execute(statement)

    def add_attempts(self, attempts: Iterable[tuple[str, str]]) -> str:
        """Take the attempts in; a second equal one at the same prompt is passed over.

        Args:
            attempts: (prompt id, text).

        Returns:
            Hash of all of them in their order.
        """
        everything = hashlib.sha256()
        for prompt_id, text in attempts:
            row = json.dumps([prompt_id, text]).encode()
            everything.update(row)
            digest = hashlib.sha256(row).digest()[:16]
            self._database.execute(
                "INSERT OR IGNORE INTO attempt (prompt_id, text, digest) VALUES (?, ?, ?)", (prompt_id, text, digest)
            )
        return everything.hexdigest()

    def attempts_at(self, prompts: Iterable[Prompt]) -> Iterator[tuple[Prompt, int, str]]:
        """(prompt, which attempt at it, text) in the order of the prompts; prompts without an attempt are passed over.

        Raises:
            InputError: at the end, if there are attempts at other prompts.
        """
        num_found = 0
        for prompt in prompts:
            rows = self._database.execute(
                "SELECT text FROM attempt WHERE prompt_id = ? ORDER BY number", (prompt.prompt_id,)
            ).fetchall()
            num_found += len(rows)
            yield from ((prompt, attempt_idx, text) for attempt_idx, (text,) in enumerate(rows))
        if (total := self._count("SELECT count(*) FROM attempt")) != num_found:
            raise InputError(
                f"expected attempts at the given prompts, {total - num_found} of {total} are at others; give the "
                "prompts that the student was asked"
            )

    def add(self, prompt: Prompt, attempt_idx: int, text: str, *, is_right: bool) -> None:
        """Begin a trajectory with an attempt."""
        end = TrajectoryEnd.RIGHT.value if is_right else None
        cursor = self._database.execute(
            "INSERT INTO item (prompt, attempt_idx, end, draw, kept) VALUES (?, ?, ?, ?, 0)",
            (json.dumps(prompt.to_row()), attempt_idx, end, uniform_of(f"{prompt.prompt_id}:{attempt_idx}:{text}")),
        )
        self._append(int(cursor.lastrowid or 0), SegmentKind.ATTEMPT, text)

    def items(self, where: str = "1") -> Iterator[Item]:
        """The items that a fixed condition of this package selects, in order; may be changed on the way."""
        last = -1
        columns = "id, prompt, attempt_idx, end, kept"
        query = f"SELECT {columns} FROM item WHERE id > ? AND ({where}) ORDER BY id LIMIT {_PAGE_ROWS}"
        while page := self._database.execute(query, (last,)).fetchall():
            for number, prompt, attempt_idx, end, kept in page:
                segments = self._database.execute(
                    "SELECT kind, text FROM segment WHERE item = ? ORDER BY position", (number,)
                )
                yield Item(
                    number,
                    Prompt.from_row(json.loads(prompt)),
                    attempt_idx,
                    tuple((SegmentKind(kind), text) for kind, text in segments.fetchall()),
                    None if end is None else TrajectoryEnd(end),
                    bool(kept),
                )
            last = page[-1][0]

    def open_items(self) -> Iterator[Item]:
        """Those that go on."""
        return self.items("end IS NULL")

    def ask(self, item: Item, question: Prompt) -> bool:
        """Note that ``item`` waits for the answer to ``question``; whether no other item waits for it yet."""
        is_new = not self._count("SELECT count(*) FROM item WHERE asked = ?", question.prompt_id)
        self._database.execute("UPDATE item SET asked = ? WHERE id = ?", (question.prompt_id, item.number))
        return is_new

    def answer(self, prompt_id: str, kind: SegmentKind, text: str | None) -> None:
        """Hand the answer to a question (None = there is none) to every item that waits for it."""
        waiting = self._database.execute("SELECT id FROM item WHERE asked = ?", (prompt_id,)).fetchall()
        for (number,) in waiting:
            if text is None:
                self.end(number, TrajectoryEnd.UNANSWERED)
            else:
                self._append(number, kind, text)
        self._database.execute("UPDATE item SET asked = NULL WHERE asked = ?", (prompt_id,))

    def end(self, number: int, end: TrajectoryEnd) -> None:
        """End an item."""
        self._database.execute("UPDATE item SET end = ? WHERE id = ?", (end.value, number))

    def balance(self, improve_ratio: float) -> None:
        """Mark what teaches: all improved, and of those right at once as many as the ratio has room for.

        Which ones is decided by a hash of prompt and attempt: the same for the same data, whatever its order.
        """
        self._database.execute("UPDATE item SET kept = (end = ?)", (TrajectoryEnd.IMPROVED.value,))
        room = int(self._count("SELECT count(*) FROM item WHERE kept") / improve_ratio)
        self._database.execute(
            "UPDATE item SET kept = 1 WHERE id IN (SELECT id FROM item WHERE end = ? ORDER BY draw, id LIMIT ?)",
            (TrajectoryEnd.RIGHT.value, room),
        )

    def _append(self, number: int, kind: SegmentKind, text: str) -> None:
        position = self._count("SELECT count(*) FROM segment WHERE item = ?", number)
        self._database.execute("INSERT INTO segment VALUES (?, ?, ?, ?)", (number, position, kind.value, text))

    def _count(self, query: str, *values: object) -> int:
        return int(self._database.execute(query, values).fetchone()[0])

"""The order of promotions: what a log of intents means. Pure: knows neither MLflow nor a clock.

MLflow moves an alias without asking where it pointed before: of two promoters the later one wins in silence. What it
does do atomically is to number: each new version of a registered model gets the next number, once, and is seen by
everybody in that order. So a promotion is first appended to a log, a registered model of its own (``NAME.promotions``)
whose versions are the entries, and every reader draws the same conclusion from the same entries:

    an entry takes effect  <=>  the last entry that took effect is the one that its writer had seen (``after``)

Of two promoters that saw the same state the first in the log takes effect and the second does not, whatever happens to
either of them later. No lock is held by anybody, so that nobody who dies holds one. The number of an entry is its
fencing token. Aliases follow the log (``steps.adapters.mlflow_promotion``).
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Action = Literal["promote", "rollback", "undo"]

MAX_LINE = 20
"""Former champions that a rollback can return to."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Who is champion after an entry.

    Attributes:
        number: The last entry that took effect; 0 = none yet.
        champion: Version; None = none.
        line: Former champions, the latest last; at most ``MAX_LINE``.
    """

    number: int = 0
    champion: str | None = None
    line: tuple[str, ...] = ()

    @property
    def previous(self) -> str | None:
        """The champion before this one; None = there was none."""
        return self.line[-1] if self.line else None


@dataclass(frozen=True, slots=True)
class Entry:
    """One intent.

    Attributes:
        number: Its place in the log, from 1.
        intent: Names the attempt: a repeated write of the same attempt has the same.
        action: promote; rollback to a former champion; undo of the entry ``after``, whose version is gone.
        version: Who shall be champion; None = nobody.
        after: The last entry in effect that its writer saw.
        replaced: Where the alias pointed when it was written; None = nowhere.
        by: Who.
        reason: Why.
        at: When, ISO 8601 in UTC, by the writer's clock; shown and never compared.
        standing: What it led to, recorded once the aliases were set; None = not yet, or without effect.
    """

    number: int
    intent: str
    action: Action
    version: str | None
    after: int
    replaced: str | None = None
    by: str = ""
    reason: str = ""
    at: str = ""
    standing: Standing | None = field(default=None, compare=False)


def replay(entries: Iterable[Entry], start: Standing = Standing()) -> list[tuple[Entry, Standing]]:
    """The entries that took effect, each with the standing that it led to.

    Args:
        entries: In the order of their numbers, all of them from ``start`` on.
        start: What the entries before led to.
    """
    found, standing = [], start
    for entry in entries:
        if entry.after == standing.number:
            standing = _after(entry, standing)
            found.append((entry, standing))
    return found


def _after(entry: Entry, before: Standing) -> Standing:
    line = before.line
    if entry.action == "promote":
        line = _pushed(line, entry.replaced, entry.version)
    elif entry.version in line:
        # Back to a former champion: what came after it is no way back any more.
        line = line[: len(line) - 1 - line[::-1].index(entry.version)]
    return Standing(entry.number, entry.version, line[-MAX_LINE:])


def _pushed(line: tuple[str, ...], replaced: str | None, version: str | None) -> tuple[str, ...]:
    return line if replaced is None or replaced == version else (*line, replaced)

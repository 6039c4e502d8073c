"""What a look at a cluster found: it is there, it is missing, or it could not be looked at."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from proxykd.exceptions import ClusterForbiddenError

State = Literal["ok", "missing", "unchecked"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor's table.

    Attributes:
        what: What was looked for.
        state: ok, missing (a run would fail or wait for ever), or unchecked (this identity or this place cannot tell).
        found: What is there instead, or why it could not be looked at; never the value of a secret.
        remedy: What to do; "" where nothing is to be done.
    """

    what: str
    state: State
    found: str = ""
    remedy: str = ""


def ok(what: str, found: str = "") -> Finding:
    """It is there."""
    return Finding(what, "ok", found)


def missing(what: str, found: str, remedy: str) -> Finding:
    """It is not there, and a run needs it."""
    return Finding(what, "missing", found, remedy)


def unchecked(what: str, found: str, remedy: str = "") -> Finding:
    """It could not be looked at from here."""
    return Finding(what, "unchecked", found, remedy)


def guarded(what: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings, and one more where this identity may not look further."""
    try:
        yield from findings
    except ClusterForbiddenError:
        yield unchecked(what, "this identity may not look at it", "ask an administrator to run the same command")

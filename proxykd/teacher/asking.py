"""Asks a live teacher all that the journal has no answer to, and says on the way how that goes.

Where calls end without an answer, an outage of an hour say, the asking stops with an error: nothing that is built on
the answers exists then, and the same command asks again what is missing. ``teacher.on_unanswered=fail_rows`` is the
way past calls that an endpoint never answers.
"""

import asyncio
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import chain
from typing import NamedTuple

from proxykd.artifacts import PromptSet, batched
from proxykd.exceptions import BudgetError, TeacherError
from proxykd.progress import Progress, report, stage
from proxykd.records import Outcome
from proxykd.teacher.batches.asker import Listener
from proxykd.teacher.batches.asking import ask_in_batches
from proxykd.teacher.budget import Cost
from proxykd.teacher.endpoint import KEPT, OPT_OUT
from proxykd.teacher.engine import Engine, Unanswered
from proxykd.teacher.journal import Journal
from proxykd.teacher.live import LiveTeacher
from proxykd.teacher.replies import Reply, Request

_LONGEST_ERROR = 80
_LOOKED_UP = 256
"""Requests that are looked up in the journal at once; meanwhile nothing is sent."""
_SAID_EVERY_S = 0.1


def ask_all(teacher: LiveTeacher, prompts: PromptSet, journal: Journal, *, title: str = "Asking the teacher") -> None:
    """Settle what the journal lacks; the first such request is the probe.

    Args:
        teacher: Who is asked.
        prompts: The questions.
        journal: Keeps the answers.
        title: What the asking is called.

    Raises:
        TeacherError: if the endpoint is unusable, at the start or on the way, or if calls got no answer and
            ``teacher.on_unanswered`` is stop.
        BudgetError: if a cap of ``teacher.budget`` allows no further call and ``teacher.on_unanswered`` is stop.
        StorageError: if the journal cannot be used.
    """
    total = teacher.num_requests(prompts)

    def spent() -> Cost:
        return teacher.spent(prompts, journal)

    def first_calls() -> Iterator[Request]:
        return (request for _, _, request in teacher.requests(prompts))

    with stage(title, total=total, unit="answer") as progress:
        asked = _ask(teacher, journal, first_calls, progress, spent)
    if asked.num_known:
        report(f"{asked.num_known} of {total} answers were in the journal {journal.path} and were not asked again")
    if asked.reached:
        num_answered = sum(journal.has_final(request.key) for _, _, request in teacher.requests(prompts))
        _end_at_cap(asked.reached, teacher, total - num_answered, total)
        return
    if asked.missing.num_requests:
        _account_for(asked.missing, teacher, total)
    if teacher.asks_further:
        with stage("Asking for what was cut off", unit="answer") as progress:
            further = _ask(teacher, journal, lambda: teacher.furthers(prompts, journal), progress, spent)
        if further.reached or further.missing.num_requests:
            why = further.reached or further.missing.last_reason
            report(f"some texts stay truncated, because their further calls got no answer ({why}); {KEPT}")


class _Asked(NamedTuple):
    """What came of asking.

    Attributes:
        num_known: Answers that were in the journal.
        missing: What ended without an answer.
        reached: The caps that allow no further call; "" = they do.
    """

    num_known: int
    missing: Unanswered = Unanswered(0, "")
    reached: str = ""


def _ask(
    teacher: LiveTeacher,
    journal: Journal,
    requests: Callable[[], Iterator[Request]],
    progress: Progress,
    spent: Callable[[], Cost],
) -> _Asked:
    """Ask those of the requests that the journal has no answer to; the first one alone is the probe."""
    num_known, found, tally = 0, _Asked(0), _Tally(teacher, progress)
    heard = Listener(progress, tally.settled, tally.troubled)
    if (end := ask_in_batches(teacher, requests, journal, heard, spent=spent)) is not None:
        return _Asked(end.num_known, Unanswered(end.num_missing, end.last_reason), end.reached)

    def unanswered() -> Iterator[Request]:
        nonlocal num_known
        for block in batched(requests(), _LOOKED_UP):
            finals = journal.finals_among([request.key for request in block])
            missing = [request for request in block if request.key not in finals]
            num_known += len(block) - len(missing)
            progress.advance(len(block) - len(missing))
            yield from missing

    pending = unanswered()
    first = next(pending, None)

    async def work(engine: Engine) -> None:
        nonlocal found
        assert first is not None
        async with alive(progress):
            try:
                await engine.probe(first)
            except BudgetError:
                found = found._replace(reached=str(engine.ledger))
                return
            if (entry := journal.get(first.key)) is not None and entry.is_final:
                tally.settled(entry.reply)
            missing = await engine.run(chain([first], pending), on_settled=tally.settled, on_trouble=tally.troubled)
            found = _Asked(0, missing, str(engine.ledger) if engine.ledger.is_exhausted else "")

    if first is not None:
        teacher.drive(journal, work, spent=spent)
        tally.say()
    return found._replace(num_known=num_known)


def _account_for(missing: Unanswered, teacher: LiveTeacher, total: int) -> None:
    what = f"{missing.num_requests} of {total} requests got no answer (last reason: {missing.last_reason})"
    if teacher.spec.on_unanswered == "stop":
        raise TeacherError(f"{what}; {KEPT}; {OPT_OUT}")
    report(f"{what} and count as failed, because teacher.on_unanswered=fail_rows")


def _end_at_cap(reached: str, teacher: LiveTeacher, num_missing: int, total: int) -> None:
    what = f"{reached} allows no further call, and {num_missing:,} of {total:,} requests have no answer"
    if teacher.spec.on_unanswered == "stop":
        raise BudgetError(
            f"{what}; raise the cap and run the same command again, it asks only the missing ones; or go on with what "
            "is there: lower prompts.limit, or set teacher.on_unanswered=fail_rows to count them as failed"
        )
    report(f"{what} and count as failed, because teacher.on_unanswered=fail_rows")


class _Tally:
    """What is said beside the count of answers."""

    def __init__(self, teacher: LiveTeacher, progress: Progress) -> None:
        self._teacher, self._progress = teacher, progress
        self._num_not_ok, self._spent_usd, self._latest_error = 0, 0.0, ""
        self._num_unsaid, self._said_s = 0, 0.0

    def settled(self, reply: Reply) -> None:
        self._spent_usd += self._teacher.tariff.of_reply(reply).usd
        self._num_not_ok += self._teacher.outcome_of(reply)[0] is not Outcome.OK
        self._latest_error = reply.error or self._latest_error
        self._num_unsaid += 1
        self._say_if_due()

    def troubled(self, reason: str) -> None:
        self._latest_error = reason
        self._say_if_due()

    def _say_if_due(self) -> None:
        # A thousand answers a second need no thousand reports.
        if time.monotonic() - self._said_s >= _SAID_EVERY_S:
            self.say()

    def say(self) -> None:
        facts: dict[str, float | str] = {"not_ok": str(self._num_not_ok)}
        if self._teacher.price is not None:
            facts["usd"] = self._spent_usd
        if self._latest_error:
            facts["latest_error"] = textwrap.shorten(self._latest_error, _LONGEST_ERROR, placeholder="...")
        self._progress.advance(self._num_unsaid, **facts)
        self._num_unsaid, self._said_s = 0, time.monotonic()


@asynccontextmanager
async def alive(progress: Progress, *, every_s: float = 1.0) -> AsyncIterator[None]:
    """Report nothing new again and again, so that a stage that waits for slow answers is not silent.

    Args:
        progress: The stage.
        every_s: Seconds between two reports.
    """

    async def beat() -> None:
        while True:
            await asyncio.sleep(every_s)
            progress.advance(0)

    beating = asyncio.create_task(beat())
    try:
        yield
    finally:
        beating.cancel()

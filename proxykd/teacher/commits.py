"""Puts what many tasks want written into few commits, off the event loop."""

import asyncio
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from threading import Thread
from types import TracebackType
from typing import Any, NamedTuple, Self

from proxykd.teacher.entries import Attempt, Entry
from proxykd.teacher.journal import Journal

_GATHER_S = 0.001
"""Seconds for which a commit waits for more: each costs a write to the disk, whatever is in it."""


class _Job(NamedTuple):
    """What one task wants written: answers and calls of unknown price, which share a commit, or something else."""

    done: "asyncio.Future[Any]"
    entries: Sequence[Entry] = ()
    lost: Sequence[Attempt] = ()
    apart: Callable[[], Any] | None = None


class GroupCommits:
    """Collects changes from many tasks and commits them together, in a thread of its own.

    The thread begins the next commit when the last one is done, without a turn of the event loop, which may be busy.

    Args:
        journal: Where they go; nobody else may commit to this object meanwhile.
    """

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._jobs = SimpleQueue[_Job | None]()
        self._has_failed = False

    async def __aenter__(self) -> Self:
        """Ready to take entries, with room for those that come when the disk is full.

        Raises:
            StorageError: if the disk has no such room.
        """
        self._journal.reserve_room()
        self._loop = asyncio.get_running_loop()
        self._ended = self._loop.create_future()
        self._thread = Thread(target=self._write_all, name="journal")
        self._thread.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Return when all that was handed in is written, however often the caller is cancelled meanwhile."""
        self._jobs.put(None)
        is_cancelled = False
        try:
            while not self._ended.done():
                try:
                    await asyncio.wait([self._ended])
                except asyncio.CancelledError:
                    is_cancelled = True
        finally:  # a second interrupt closes the loop: the journal must not be closed before all is written
            self._thread.join()
        if is_cancelled:
            raise asyncio.CancelledError

    def put(self, entry: Entry) -> "asyncio.Future[None]":
        """Hand an answer in.

        Returns:
            Done once it is durable; raises ``StorageError`` if it cannot be written. Nobody need wait for it.
        """
        return self._hand_in(entries=[entry])

    def lose(self, attempt: Attempt) -> "asyncio.Future[None]":
        """Hand in that the price of a call is not known; as ``put``."""
        return self._hand_in(lost=[attempt])

    async def claim(self, wanted: Sequence[Attempt], *, settled: Sequence[str] = ()) -> dict[str, bool]:
        """As ``Journal.claim``.

        Raises:
            StorageError: if it cannot be written.
        """
        found: dict[str, bool] = await self._hand_in(apart=partial(self._journal.claim, wanted, settled=settled))
        return found

    async def release(self, keys: Sequence[str], *, unsent: Sequence[str] = ()) -> None:
        """As ``Journal.release``, once all that was handed in is written; cancelling does not prevent it.

        Args:
            keys: Of requests that may have been sent. Where something could not be written they stay claimed, because
                the claim alone knows of the call.
            unsent: Of requests that never were.

        Raises:
            StorageError: if it cannot be written.
        """
        await self._hand_in(apart=partial(self._release, keys, unsent))

    def _hand_in(
        self, entries: Sequence[Entry] = (), lost: Sequence[Attempt] = (), apart: Callable[[], Any] | None = None
    ) -> "asyncio.Future[Any]":
        done = self._loop.create_future()
        self._jobs.put(_Job(done, entries, lost, apart))
        return done

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            jobs = [self._jobs.get()]
            time.sleep(_GATHER_S)
            jobs += [self._jobs.get_nowait() for _ in range(self._jobs.qsize())]
            if together := [job for job in jobs if job and not job.apart]:
                self._write(together, partial(self._commit, together))
            for job in jobs:
                if job and job.apart:
                    self._write([job], job.apart)
            is_open = None not in jobs
        self._tell(self._ended.set_result, None)

    def _tell(self, callback: Callable[..., None], *told: Any) -> None:
        with suppress(RuntimeError):  # the loop is closed, nobody waits any more; the rest is written all the same
            self._loop.call_soon_threadsafe(callback, *told)

    def _write(self, jobs: list[_Job], write: Callable[[], Any]) -> None:
        result, failure = None, None
        try:
            result = write()
        except Exception as error:  # whatever it is, those who wait are to hear of it
            failure = error
        self._tell(_settle, jobs, result, failure)

    def _commit(self, jobs: list[_Job]) -> None:
        paid_for = [entry for job in jobs for entry in job.entries]
        lost = [attempt for job in jobs for attempt in job.lost]
        try:
            self._journal.commit(paid_for, opened=lost)
        except Exception:
            self._has_failed = True
            self._journal.spill(paid_for, lost)
            raise

    def _release(self, keys: Sequence[str], unsent: Sequence[str]) -> None:
        self._journal.release([*unsent, *(() if self._has_failed else keys)])


def _settle(jobs: list[_Job], result: Any, failure: Exception | None) -> None:
    for job in jobs:
        if job.done.done():
            continue  # whoever waited was cancelled; the changes are written all the same
        if failure is None:
            job.done.set_result(result)
        else:
            job.done.set_exception(failure)
            job.done.exception()  # told, also where nobody waits for it

"""Puts what many tasks want written into few commits, off the event loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import NamedTuple, Self

from proxykd.exceptions import StorageError
from proxykd.teacher.entries import Attempt, Entry
from proxykd.teacher.journal import Journal

_GATHER_S = 0.0005
"""Seconds for which a commit waits for more: each costs a write to the disk, whatever is in it."""


class _Changes(NamedTuple):
    """What one task wants written."""

    entries: Sequence[Entry]
    lost: Sequence[Attempt]


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
        self._has_failed = False

    async def __aenter__(self) -> Self:
        """Ready to take entries, with room for those that come when the disk is full.

        Raises:
            StorageError: if the disk has no such room.
        """
        self._journal.reserve_room()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Commit what is still waiting."""
        await self._finish()
        self._thread.shutdown()

    async def put(self, entry: Entry, *, lost: Attempt | None = None) -> None:
        """Return once ``entry`` is durable, and with it that the price of the call ``lost`` is not known.

        Raises:
            StorageError: if it cannot be written.
        """
        await self._add(_Changes([entry], () if lost is None else [lost]))

    async def lose(self, attempt: Attempt) -> None:
        """Return once it is durable that the price of a call is not known.

        Raises:
            StorageError: if it cannot be written.
        """
        await self._add(_Changes((), [attempt]))

    async def claim(self, wanted: Sequence[Attempt], *, settled: Sequence[str] = ()) -> dict[str, bool]:
        """As ``Journal.claim``.

        Raises:
            StorageError: if it cannot be written.
        """
        claim = partial(self._journal.claim, wanted, settled=settled)
        return await asyncio.get_running_loop().run_in_executor(self._thread, claim)

    async def release(self, keys: Sequence[str], *, unsent: Sequence[str] = ()) -> None:
        """As ``Journal.release``, once all that was handed in is written.

        Args:
            keys: Of requests that may have been sent. Where something could not be written they stay claimed, because
                the claim alone knows of the call.
            unsent: Of requests that never were.

        Raises:
            StorageError: if it cannot be written.
        """
        await self._finish()
        free = [*unsent, *(() if self._has_failed else keys)]
        await asyncio.get_running_loop().run_in_executor(self._thread, self._journal.release, free)

    async def _finish(self) -> None:
        """Return when all that was handed in is written, however often the caller is cancelled meanwhile."""
        is_cancelled = False
        while self._flush is not None and not self._flush.done():
            try:
                await asyncio.wait([self._flush])
            except asyncio.CancelledError:
                is_cancelled = True
        if is_cancelled:
            raise asyncio.CancelledError

    async def _add(self, changes: _Changes) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((changes, done))
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._commit_all())
        await done

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await asyncio.sleep(_GATHER_S)
            batch, self._waiting = self._waiting, []
            failure: Exception | None = None
            try:
                await loop.run_in_executor(self._thread, self._commit, [changes for changes, _ in batch])
            except Exception as error:  # whatever it is, those who wait are to hear of it
                failure, self._has_failed = error, True
            for _, done in batch:
                _settle(done, failure)

    def _commit(self, batch: list[_Changes]) -> None:
        paid_for = [entry for changes in batch for entry in changes.entries]
        lost = [attempt for changes in batch for attempt in changes.lost]
        try:
            self._journal.commit(paid_for, opened=lost)
        except StorageError:
            self._journal.spill(paid_for, lost)
            raise


def _settle(done: "asyncio.Future[None]", failure: Exception | None) -> None:
    if done.done():
        return  # whoever waited was cancelled; the changes are written all the same
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)

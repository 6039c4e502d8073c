"""Puts what many tasks want written into few commits, off the event loop."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from types import TracebackType
from typing import NamedTuple, Self

from proxykd.exceptions import StorageError
from proxykd.teacher.entries import Attempt, Entry
from proxykd.teacher.journal import Journal


class _Changes(NamedTuple):
    """What one task wants written."""

    entries: Sequence[Entry] = ()
    opened: Sequence[Attempt] = ()
    closed: Sequence[str] = ()


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
        if self._flush is not None:
            await self._flush
        self._thread.shutdown()

    async def put(self, entry: Entry, *, closes: str | None = None) -> None:
        """Return once ``entry`` is durable, and with it that the price of the attempt ``closes`` is known.

        Raises:
            StorageError: if it cannot be written.
        """
        await self._add(_Changes(entries=[entry], closed=[] if closes is None else [closes]))

    async def open(self, attempt: Attempt) -> None:
        """Return once it is durable that a call is about to leave.

        Raises:
            StorageError: if it cannot be written.
        """
        await self._add(_Changes(opened=[attempt]))

    async def close(self, attempt: Attempt) -> None:
        """Return once it is durable that the price of a call is known.

        Raises:
            StorageError: if it cannot be written.
        """
        await self._add(_Changes(closed=[attempt.attempt_id]))

    async def claim(self, keys: Sequence[str]) -> dict[str, bool]:
        """As ``Journal.claim``.

        Raises:
            StorageError: if it cannot be written.
        """
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._journal.claim, keys)

    async def release(self, keys: Sequence[str]) -> None:
        """As ``Journal.release``.

        Raises:
            StorageError: if it cannot be written.
        """
        await asyncio.get_running_loop().run_in_executor(self._thread, self._journal.release, keys)

    async def _add(self, changes: _Changes) -> None:
        done = asyncio.get_running_loop().create_future()
        self._waiting.append((changes, done))
        if self._flush is None or self._flush.done():
            self._flush = asyncio.create_task(self._commit_all())
        await done

    async def _commit_all(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            batch, self._waiting = self._waiting, []
            failure: StorageError | None = None
            try:
                await loop.run_in_executor(self._thread, self._commit, [changes for changes, _ in batch])
            except StorageError as error:
                failure = error
            for _, done in batch:
                _settle(done, failure)

    def _commit(self, batch: list[_Changes]) -> None:
        entries, opened, closed = (chain.from_iterable(parts) for parts in zip(*batch, strict=True))
        paid_for = list(entries)
        try:
            self._journal.commit(paid_for, opened=opened, closed=closed)
        except StorageError:
            self._journal.spill(paid_for)
            raise


def _settle(done: "asyncio.Future[None]", failure: StorageError | None) -> None:
    if done.done():
        return  # whoever waited was cancelled; the changes are written all the same
    if failure is None:
        done.set_result(None)
    else:
        done.set_exception(failure)

"""Hands out the requests that nobody has answered and nobody else is asking: each to one worker of one process."""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import NamedTuple

from proxykd.teacher.clock import Clock
from proxykd.teacher.commits import GroupCommits
from proxykd.teacher.entries import Attempt
from proxykd.teacher.replies import Request

_POLL_S = 0.2


class Claimed(NamedTuple):
    """A request that is ours to ask.

    Attributes:
        request: The request.
        bound: Its call with the most that it can be billed for.
    """

    request: Request
    bound: Attempt


class Feed:
    """Requests that are claimed in the journal, a block in one transaction.

    One that another process is asking, or this one under another worker, is put aside until all others are handed out;
    then it is waited for, or taken over if its process is gone.

    Args:
        stream: Requests, taken a block at a time or less; one may occur twice.
        commits: Where claims are made.
        bound: The most that a call can be billed for; the claim keeps it.
        block: Most requests claimed at once; no more than twice as many are claimed and not settled at any moment.
        clock: Time.
        on_known: Called for a request that was put aside and has been answered meanwhile.
    """

    def __init__(
        self,
        stream: Iterator[Request],
        commits: GroupCommits,
        *,
        bound: Callable[[Request], Attempt],
        block: int,
        clock: Clock,
        on_known: Callable[[Request], None],
    ) -> None:
        self._stream, self._commits, self._block, self._clock, self._on_known = stream, commits, block, clock, on_known
        self._bound = bound
        self._ready, self._aside, self._is_exhausted = deque[Claimed](), list[Request](), False
        self._mine, self._settled = set[str](), list[str]()
        self._refilling: asyncio.Task[None] | None = None
        self._failure: Exception | None = None

    async def take(self) -> Claimed | None:
        """The next request, to be given back by ``done``; None = all are answered or handed out.

        Raises:
            StorageError: if the journal cannot be written.
        """
        while not self._ready or self._failure is not None:
            if self._failure is not None:  # of a claim ahead of need, for which nobody waited
                raise self._failure
            if self._is_exhausted and not self._aside and self._is_idle():
                return None
            await asyncio.shield(self._refill())
        claimed = self._ready.popleft()
        if len(self._ready) < self._block // 4 and not self._is_exhausted and self._failure is None:
            self._refill()  # ahead of need, so that nobody waits for a claim
        return claimed

    def done(self, request: Request) -> None:
        """A request that was taken is settled."""
        self._mine.discard(request.key)
        self._settled.append(request.key)

    def put_back(self, claimed: Claimed) -> None:
        """A request that was taken and not sent is the next to be taken."""
        self._ready.appendleft(claimed)

    async def close(self) -> None:
        """Give back what was claimed and not settled, so that others may ask it.

        Raises:
            StorageError: if the journal cannot be written.
        """
        if self._refilling is not None:
            await asyncio.wait([self._refilling])
        unsent = [claimed.request.key for claimed in self._ready]
        if self._mine or self._settled:
            await self._commits.release([*self._mine.difference(unsent), *self._settled], unsent=unsent)

    def _is_idle(self) -> bool:
        return self._refilling is None or self._refilling.done()

    def _refill(self) -> "asyncio.Task[None]":
        """The one claim that is under way; all who need requests wait for the same."""
        if self._refilling is None or self._refilling.done():
            self._refilling = asyncio.create_task(self._try_to_claim())
        return self._refilling

    async def _try_to_claim(self) -> None:
        try:
            await self._claim_block()
        except Exception as error:
            self._failure = error

    async def _claim_block(self) -> None:
        block = list(islice(self._stream, max(1, min(self._block, 2 * self._block - len(self._mine)))))
        self._is_exhausted = self._is_exhausted or not block
        was_aside = not block
        if was_aside:
            block, self._aside = self._aside, []
        bounds = {request.key: self._bound(request) for request in block if request.key not in self._mine}
        settled, self._settled = self._settled, []
        claims = await self._commits.claim(list(bounds.values()), settled=settled) if bounds or settled else {}
        for request in block:
            if request.key in self._mine or claims.get(request.key) is False:
                self._aside.append(request)
            elif request.key in claims:
                self._mine.add(request.key)
                self._ready.append(Claimed(request, bounds[request.key]))
            elif was_aside:
                self._on_known(request)
        if was_aside and not self._ready and self._aside:
            await self._clock.sleep(_POLL_S)

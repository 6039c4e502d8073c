"""Asks a teacher many things at once: a fixed number of workers pull requests from one stream.

No batches and so no barriers: a slow answer holds up one worker. A worker takes its next request only when the last
answer is durable, so a kill at any moment loses at most ``concurrency`` answers, and memory does not grow with the
stream. Clock and randomness come from outside.
"""

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from proxykd.exceptions import TeacherAuthError, TeacherError, TeacherUnreachableError
from proxykd.teacher.chat_shape import Reply, Request, Verdict, judge
from proxykd.teacher.journal import Entry, GroupCommits, Journal
from proxykd.teacher.retry import RetryPolicy, parse_retry_after
from proxykd.teacher.transport import HttpResponse, Transport

_UNSUPPORTED = re.compile(r"unsupported (parameter|value)|max_completion_tokens", re.IGNORECASE)


class Clock(Protocol):
    """Time, so that tests need not wait for it."""

    def now_s(self) -> float:
        """Seconds since 1970 UTC."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""


class WallClock:
    """The real time."""

    def now_s(self) -> float:
        """Seconds since 1970 UTC."""
        return time.time()

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)


@dataclass(frozen=True, slots=True)
class Endpoint:
    """What messages say about the other side; never the secret itself.

    Attributes:
        url: Where requests go.
        model: Model name that is asked for.
        secret_name: ``${NAME}`` of the environment variable that holds the key; None = no key is sent.
    """

    url: str
    model: str
    secret_name: str | None

    @property
    def key_advice(self) -> str:
        """What to check about the key."""
        if self.secret_name is None:
            return "set teacher.api_key to ${NAME}, the environment variable that holds the key"
        return f"check the key in the environment variable {self.secret_name.strip('${}')}"


@dataclass(frozen=True, slots=True)
class Engine:
    """Sends requests through a transport and journals what comes back.

    Attributes:
        endpoint: For messages.
        transport: Sends one request.
        journal: Remembers every answer.
        policy: When to try again.
        concurrency: Most calls in flight.
        clock: Time.
        rng: Source of the jitter.
    """

    endpoint: Endpoint
    transport: Transport
    journal: Journal
    policy: RetryPolicy
    concurrency: int
    clock: Clock = field(default_factory=WallClock)
    rng: random.Random = field(default_factory=random.Random)

    async def probe(self, request: Request) -> None:
        """Send one request once and stop if the endpoint cannot be used at all; a usable answer is journaled.

        Raises:
            TeacherUnreachableError: if nothing answers.
            TeacherAuthError: if the key is refused.
            TeacherError: if the model or the address does not exist there, or it does not know a parameter of ours.
        """
        try:
            response = await self.transport.send(request.body)
        except TeacherUnreachableError as error:
            raise TeacherUnreachableError(
                f"expected a teacher at {self.endpoint.url}: {error}; check teacher.base_url and that it is running"
            ) from None
        self._stop_if_refused(response, statuses=(401, 403))
        verdict = judge(response.status, response.body)
        if response.status == 404 or 300 <= response.status < 400:
            raise TeacherError(
                f"expected the model {self.endpoint.model!r} at {self.endpoint.url}, got {verdict.reply.error}; "
                "check teacher.model and teacher.base_url (up to and including the version)"
            )
        if response.status in (400, 422) and _UNSUPPORTED.search(verdict.reply.error):
            raise TeacherError(
                f"{self.endpoint.url} does not take our parameters, got {verdict.reply.error}; set "
                "teacher.max_tokens_parameter=max_completion_tokens if it asks for that, or change teacher.sampling"
            )
        if verdict.is_final and not verdict.is_retryable:
            async with GroupCommits(self.journal) as commits:
                await commits.put(Entry(request.key, verdict.reply, is_final=True))

    async def run(self, requests: Iterable[Request], *, on_settled: Callable[[Reply], None]) -> None:
        """Settle every request that the journal has no final answer to.

        Cancelling this cancels the calls in flight and commits the answers that have arrived.

        Args:
            requests: Taken one by one, never collected.
            on_settled: Called after a request's entry is durable.

        Raises:
            TeacherAuthError: if the key is refused on the way.
            StorageError: if the journal cannot be written.
        """
        stream = iter(requests)
        async with GroupCommits(self.journal) as commits:
            workers = [asyncio.create_task(self._work(stream, commits, on_settled)) for _ in range(self.concurrency)]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)

    async def _work(
        self, stream: Iterator[Request], commits: GroupCommits, on_settled: Callable[[Reply], None]
    ) -> None:
        for request in stream:
            if self.journal.has_final(request.key):
                continue
            verdict = await self._settle(request)
            await commits.put(Entry(request.key, verdict.reply, verdict.is_final))
            on_settled(verdict.reply)

    async def _settle(self, request: Request) -> Verdict:
        num_attempts = 0
        while True:
            num_attempts += 1
            verdict, retry_after_s = await self._attempt(request)
            if not verdict.is_retryable:
                return verdict
            draw = self.rng.random()
            wait_s = self.policy.wait_s(num_attempts, retry_after_s=retry_after_s, draw=draw)
            if wait_s is None:
                return verdict
            await self.clock.sleep(wait_s)

    async def _attempt(self, request: Request) -> tuple[Verdict, float | None]:
        try:
            response = await self.transport.send(request.body)
        except TeacherUnreachableError as error:
            return Verdict(Reply(error=str(error)), is_final=False, is_retryable=True), None
        self._stop_if_refused(response, statuses=(401,))
        retry_after_s = parse_retry_after(
            response.headers.get("retry-after"),
            now_s=self.clock.now_s(),
            server_date=response.headers.get("date"),
        )
        return judge(response.status, response.body), retry_after_s

    def _stop_if_refused(self, response: HttpResponse, *, statuses: tuple[int, ...]) -> None:
        if response.status in statuses:
            raise TeacherAuthError(
                f"{self.endpoint.url} refused us with HTTP {response.status}; {self.endpoint.key_advice}"
            )

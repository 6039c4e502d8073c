"""Asks a teacher many things at once: a fixed number of workers pull requests from one stream.

No batches and so no barriers: a slow answer holds up one worker. A worker takes its next request only when the last
answer is durable, so a kill at any moment loses at most ``concurrency`` answers, and memory does not grow with the
stream. Clock and randomness come from outside.

A row that fails harms no other, but where no other would fare better the engine stops at once: the key is refused, the
account has no credit left, or a long run of requests got no answer at all.
"""

import asyncio
import random
import re
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from proxykd.config.teacher import BudgetSpec
from proxykd.exceptions import BudgetError, TeacherAuthError, TeacherError, TeacherUnreachableError
from proxykd.teacher.budget import Cost, Ledger, Tariff
from proxykd.teacher.journal import Entry, GroupCommits, Journal
from proxykd.teacher.providers.base import Provider
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.replies import Reply, Request, Verdict
from proxykd.teacher.retry import RetryPolicy, parse_retry_after
from proxykd.teacher.transport import HttpResponse, Transport

KEPT = "the answers that came are kept; run the same command again, it asks only the missing ones"
OPT_OUT = "should it never answer these, set teacher.on_unanswered=fail_rows to count them as failed"
_UNSUPPORTED = re.compile(
    r"unsupported (parameter|value)|max_completion_tokens|cannot both be|logprobs|json_?schema|response_?format", re.I
)


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
        secret_name: ``${NAME}`` of the environment variable that holds the key, or the path of its file; None = no
            key is sent.
    """

    url: str
    model: str
    secret_name: str | None

    @property
    def key_advice(self) -> str:
        """What to check about the key."""
        if self.secret_name is None:
            return "set teacher.api_key to ${NAME}, the environment variable that holds the key"
        place = "environment variable" if self.secret_name.startswith("${") else "file"
        return f"check the key in the {place} {self.secret_name.strip('${}')}"


class Unanswered(NamedTuple):
    """Requests that ended without a final answer, and so are asked again by the next run.

    Attributes:
        num_requests: How many.
        last_reason: Why the latest of them has none; "" = there are none.
    """

    num_requests: int
    last_reason: str


@dataclass(slots=True)
class _Losses:
    """Counts what gets no final answer, in all and in a row."""

    num_requests: int = 0
    num_in_a_row: int = 0
    last_reason: str = ""

    def add(self, verdict: Verdict) -> None:
        if verdict.is_final:
            self.num_in_a_row = 0
        else:
            self.num_requests += 1
            self.num_in_a_row += 1
            self.last_reason = verdict.reply.error


@dataclass(frozen=True, slots=True)
class _Listener:
    """Who hears of what happens."""

    on_settled: Callable[[Reply], None]
    on_trouble: Callable[[str], None]


def _ignore(_: str) -> None:
    pass


def _without_caps() -> Ledger:
    return Ledger(BudgetSpec(), Tariff(None), Cost())


class _Answer(NamedTuple):
    """What came back for one attempt.

    Attributes:
        response: As it came.
        verdict: What it means.
        closes: The attempt whose price is known once the verdict's reply is journaled; None = there is none.
    """

    response: HttpResponse
    verdict: Verdict
    closes: str | None


@dataclass(frozen=True, slots=True)
class Engine:
    """Sends requests through a transport and journals what comes back.

    Attributes:
        endpoint: For messages.
        transport: Sends one request.
        journal: Remembers every answer.
        policy: When to try again.
        concurrency: Most calls in flight.
        ledger: Lets calls pass, or not.
        max_unanswered_in_a_row: The engine stops when so many requests in a row, in the order in which they are
            settled, got no final answer after all attempts; None = it never does.
        clock: Time.
        rng: Source of the jitter.
        provider: Reads what comes back.
    """

    endpoint: Endpoint
    transport: Transport
    journal: Journal
    policy: RetryPolicy
    concurrency: int
    ledger: Ledger = field(default_factory=_without_caps)
    max_unanswered_in_a_row: int | None = None
    clock: Clock = field(default_factory=WallClock)
    rng: random.Random = field(default_factory=random.Random)
    provider: Provider = field(default_factory=OpenAIProvider)

    async def probe(self, request: Request) -> None:
        """Send one request once and stop if the endpoint cannot be used at all; a usable answer is journaled.

        Raises:
            TeacherUnreachableError: if nothing answers.
            TeacherAuthError: if the key is refused.
            BudgetError: if a cap does not allow the call.
            TeacherError: if the account has no credit, the model or the address does not exist there, or it does not
                know a parameter of ours.
        """
        async with GroupCommits(self.journal) as commits:
            try:
                answer = await self._send(request, commits)
            except TeacherUnreachableError as error:
                raise TeacherUnreachableError(
                    f"expected a teacher at {self.endpoint.url}: {error}; check teacher.base_url and that it is running"
                ) from None
            if answer is None:
                raise BudgetError(f"expected room for one more call, but {self.ledger}; raise the cap; {KEPT}")
            response, verdict, closes = answer
            self._stop_if_hopeless(response, verdict)
            self._stop_if_unusable(response, verdict)
            if verdict.is_final and not verdict.is_retryable:
                await commits.put(Entry(request.key, verdict.reply, is_final=True), closes=closes)

    async def run(
        self,
        requests: Iterable[Request],
        *,
        on_settled: Callable[[Reply], None],
        on_trouble: Callable[[str], None] = _ignore,
    ) -> Unanswered:
        """Settle every request that the journal has no final answer to, or as many as the ledger lets pass.

        Cancelling this cancels the calls in flight and commits the answers that have arrived.

        Args:
            requests: Taken one by one, never collected.
            on_settled: Called after a request's entry is durable.
            on_trouble: Called with the reason before a request is tried again.

        Returns:
            What ended without a final answer.

        Raises:
            TeacherAuthError: if the key is refused on the way.
            TeacherError: if the account has no credit or quota left, or ``max_unanswered_in_a_row`` is reached.
            StorageError: if the journal cannot be written.
        """
        stream, losses, listener = iter(requests), _Losses(), _Listener(on_settled, on_trouble)
        async with GroupCommits(self.journal) as commits:
            workers = [
                asyncio.create_task(self._work(stream, commits, losses, listener)) for _ in range(self.concurrency)
            ]
            try:
                await asyncio.gather(*workers)
            finally:
                for worker in workers:
                    worker.cancel()
                await asyncio.gather(*workers, return_exceptions=True)
        return Unanswered(losses.num_requests, losses.last_reason)

    async def _work(
        self, stream: Iterator[Request], commits: GroupCommits, losses: _Losses, listener: _Listener
    ) -> None:
        for request in stream:
            if self.journal.has_final(request.key):
                continue
            settled = await self._settle(request, commits, listener)
            if settled is None:
                return  # a cap is reached
            verdict, closes = settled
            await commits.put(Entry(request.key, verdict.reply, verdict.is_final), closes=closes)
            listener.on_settled(verdict.reply)
            losses.add(verdict)
            self._stop_if_silent(losses)

    async def _settle(
        self, request: Request, commits: GroupCommits, listener: _Listener
    ) -> tuple[Verdict, str | None] | None:
        num_attempts = 0
        while True:
            num_attempts += 1
            retry_after_s, closes = None, None
            try:
                answer = await self._send(request, commits)
            except TeacherUnreachableError as error:
                verdict = Verdict(Reply(error=str(error)), is_final=False, is_retryable=True)
            else:
                if answer is None:
                    return None
                response, verdict, closes = answer
                self._stop_if_hopeless(response, verdict)
                retry_after_s = self._retry_after_s(response)
            if not verdict.is_retryable:
                return verdict, closes
            wait_s = self.policy.wait_s(num_attempts, retry_after_s=retry_after_s, draw=self.rng.random())
            if wait_s is None:
                return verdict, closes
            listener.on_trouble(verdict.reply.error)
            await self.clock.sleep(wait_s)

    async def _send(self, request: Request, commits: GroupCommits) -> _Answer | None:
        """Send one request if the ledger lets it pass, and settle its price; None = it does not."""
        attempt = await self.ledger.reserve(request, commits)
        if attempt is None:
            return None
        try:
            response = await self.transport.send(request.body)
        except TeacherUnreachableError as error:
            if error.was_sent:
                await self.ledger.lose(attempt)
            elif await self.ledger.free(attempt):
                await commits.close(attempt)
            raise
        verdict = self.provider.judge(response.status, response.body)
        is_closed = await self.ledger.settle(attempt, request, response.status, verdict.reply)
        if is_closed and response.status != 200:
            await commits.close(attempt)
        return _Answer(response, verdict, attempt.attempt_id if is_closed and response.status == 200 else None)

    def _retry_after_s(self, response: HttpResponse) -> float | None:
        return parse_retry_after(
            response.headers.get("retry-after"), now_s=self.clock.now_s(), server_date=response.headers.get("date")
        )

    def _stop_if_unusable(self, response: HttpResponse, verdict: Verdict) -> None:
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

    def _stop_if_hopeless(self, response: HttpResponse, verdict: Verdict) -> None:
        # The endpoint's own words are left out: they may speak of the key.
        if verdict.stops == "key":
            raise TeacherAuthError(
                f"{self.endpoint.url} refused us with HTTP {response.status}; {self.endpoint.key_advice}; {KEPT}"
            )
        if verdict.stops == "credit":
            raise TeacherError(
                f"{self.endpoint.url} says with HTTP {response.status} that the account has no credit or quota left; "
                f"add some or raise its limit; {KEPT}"
            )

    def _stop_if_silent(self, losses: _Losses) -> None:
        if self.max_unanswered_in_a_row is not None and losses.num_in_a_row >= self.max_unanswered_in_a_row:
            raise TeacherError(
                f"{self.endpoint.url} gave no answer to {losses.num_in_a_row} requests in a row (last reason: "
                f"{losses.last_reason}); wait until it answers; {KEPT}; {OPT_OUT}"
            )

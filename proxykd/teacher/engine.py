"""Asks a teacher many things at once: a fixed number of workers pull requests from one stream.

No batches and so no barriers: a slow answer holds up one worker. A call keeps its place among the ``concurrency`` that
may be in flight until what came of it is durable, so a kill at any moment loses at most so many answers; a worker that
waits before it tries again has none, and one of a few more workers sends meanwhile. Memory does not grow with the
stream. Clock and randomness come from outside.

A request goes this way: ``Feed`` (claimed in the journal), ``Ledger`` (its worst case is reserved), ``Limiter`` (its
turn), transport, ``Provider`` (what the answer means), ledger and limiter again (what it used), journal.

A row that fails harms no other, but where no other would fare better the engine stops at once: the key is refused, the
account has no credit left, or a long run of requests got no answer at all.
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import NamedTuple

from proxykd.config.teacher import BudgetSpec, LimitsSpec
from proxykd.exceptions import BudgetError, StorageError, TeacherUnreachableError
from proxykd.teacher.budget import Cost, Ledger, Tariff
from proxykd.teacher.clock import Clock, WallClock
from proxykd.teacher.commits import GroupCommits
from proxykd.teacher.endpoint import KEPT, Endpoint
from proxykd.teacher.entries import Attempt, Entry
from proxykd.teacher.feed import Claimed, Feed
from proxykd.teacher.journal import Journal
from proxykd.teacher.limiter import Limiter
from proxykd.teacher.limits import StateStore, Tokens
from proxykd.teacher.providers.base import Provider
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.replies import Reply, Request, Verdict
from proxykd.teacher.retry import RetryPolicy, parse_retry_after
from proxykd.teacher.transport import HttpResponse, Transport

_GRACE_S = 30.0
"""Seconds that a run which ends with an error waits for answers that are on their way."""
_WORKERS_A_SPARE = 4
"""Workers for each one more, which asks while others wait before they try again."""
_MOST_PAID_TRIES = 2
"""Tries of a request whose answers cannot be read: each of them may have been paid for."""


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


def _ignore(_: object) -> None:
    pass


def _without_caps() -> Ledger:
    return Ledger(BudgetSpec(), Tariff(None), Cost())


class _Answer(NamedTuple):
    """What came back for one attempt.

    Attributes:
        response: As it came.
        verdict: What it means.
        retry_after_s: Seconds that the endpoint asked for; None = it did not.
        lost: Done once it is durable that the call's price is not known; None = it is known.
    """

    response: HttpResponse
    verdict: Verdict
    retry_after_s: float | None
    lost: asyncio.Future[None] | None


@dataclass(slots=True)
class _Worker:
    """Whether a worker's call has left and its answer is not durable yet, for which it has a place of the limiter's.

    A spare worker asks once for each time that another one waits, and when another one has nothing left to do.
    """

    has_sent: bool = False
    is_spare: bool = False

    def land(self, limiter: Limiter) -> None:
        """Give the place back: a kill costs nothing any more."""
        self.has_sent = False
        limiter.ended()


@dataclass(frozen=True, slots=True)
class _Run:
    """What one run of the engine works with, and who hears of what happens."""

    commits: GroupCommits
    limiter: Limiter
    losses: _Losses = field(default_factory=_Losses)
    on_settled: Callable[[Reply], None] = _ignore
    on_trouble: Callable[[str], None] = _ignore
    is_stopping: asyncio.Event = field(default_factory=asyncio.Event)
    spare: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(0))  # turns of the spare workers


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
        limits: How fast the endpoint may be asked.
        limit_store: Shares the state of the limits with others; None = this engine asks alone.
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
    limits: LimitsSpec = field(default_factory=LimitsSpec)
    limit_store: StateStore | None = None

    async def probe(self, request: Request) -> None:
        """Send one request once and stop if the endpoint cannot be used at all; a usable answer is journaled.

        A request that another process is asking now is left to it.

        Raises:
            TeacherUnreachableError: if nothing answers.
            TeacherAuthError: if the key is refused.
            BudgetError: if a cap does not allow the call.
            TeacherError: if the account has no credit, the model or the address does not exist there, or it does not
                know a parameter of ours.
        """
        async with self._starting(_ignore, _ignore) as run:
            claimed, worker, is_mine = Claimed(request, self.ledger.bound(request)), _Worker(), True
            try:
                is_mine = bool((await run.commits.claim([claimed.bound])).get(request.key))
                if not is_mine:
                    return
                answer = await self._send(claimed, run, worker)
                if answer is None:
                    raise BudgetError(f"expected room for one more call, but {self.ledger}; raise the cap; {KEPT}")
                self.endpoint.stop_if_hopeless(answer.response, answer.verdict)
                self.endpoint.stop_if_unusable(answer.response, answer.verdict)
                if answer.verdict.is_final and not answer.verdict.is_retryable:
                    await run.commits.put(_entry(request, answer.verdict))
            except TeacherUnreachableError as error:
                raise TeacherUnreachableError(
                    f"expected a teacher that answers, got {error}; check teacher.base_url and that it is running"
                ) from None
            finally:
                if is_mine:
                    sent, unsent = ([request.key], []) if worker.has_sent else ([], [request.key])
                    await run.commits.release(sent, unsent=unsent)

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
            requests: Taken ``concurrency`` at a time, never collected.
            on_settled: Called after a request's entry is durable, whoever asked it.
            on_trouble: Called with the reason before a request is tried again.

        Returns:
            What ended without a final answer.

        Raises:
            TeacherAuthError: if the key is refused on the way.
            TeacherError: if the account has no credit or quota left, or ``max_unanswered_in_a_row`` is reached.
            StorageError: if the journal cannot be written.
        """

        def on_known(request: Request) -> None:
            if (entry := self.journal.get(request.key)) is not None:
                on_settled(entry.reply)

        async with self._starting(on_settled, on_trouble) as run:
            feed = Feed(
                iter(requests),
                run.commits,
                bound=self.ledger.bound,
                block=self.concurrency,
                clock=self.clock,
                on_known=on_known,
            )
            workers = [_Worker() for _ in range(self.concurrency)]
            workers += [_Worker(is_spare=True) for _ in range(self.concurrency // _WORKERS_A_SPARE)]
            tasks = [asyncio.create_task(self._work(feed, run, worker)) for worker in workers]
            try:
                await asyncio.gather(*tasks)
            except Exception:
                run.is_stopping.set()
                await _let_arrive(workers, tasks)
                raise
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                with suppress(StorageError):  # what ended the run is told, not what it leads to
                    await feed.close()
        return Unanswered(run.losses.num_requests, run.losses.last_reason)

    @asynccontextmanager
    async def _starting(
        self, on_settled: Callable[[Reply], None], on_trouble: Callable[[str], None]
    ) -> AsyncIterator[_Run]:
        limiter = Limiter(self.limits, self.concurrency, self.clock, self.limit_store)
        async with GroupCommits(self.journal) as commits:
            yield _Run(commits, limiter, on_settled=on_settled, on_trouble=on_trouble)

    async def _work(self, feed: Feed, run: _Run, worker: _Worker) -> None:
        while (claimed := await self._next(feed, run, worker)) is not None:
            settled = None
            try:
                settled = await self._settle(claimed, run, worker)
            finally:
                if settled is None and not worker.has_sent:
                    feed.put_back(claimed)
            if settled is None:
                break  # a cap is reached
            verdict, lost = settled
            await run.commits.put(_entry(claimed.request, verdict))
            if lost is not None:
                await lost
            worker.land(run.limiter)
            feed.done(claimed.request)
            run.on_settled(verdict.reply)
            run.losses.add(verdict)
            self.endpoint.stop_if_silent(
                run.losses.num_in_a_row, run.losses.last_reason, most=self.max_unanswered_in_a_row
            )
        run.spare.release()

    async def _next(self, feed: Feed, run: _Run, worker: _Worker) -> Claimed | None:
        if worker.is_spare and not run.is_stopping.is_set():
            await run.spare.acquire()
        return None if run.is_stopping.is_set() else await feed.take()

    async def _settle(
        self, claimed: Claimed, run: _Run, worker: _Worker
    ) -> tuple[Verdict, asyncio.Future[None] | None] | None:
        num_attempts = 0
        while True:
            num_attempts += 1
            retry_after_s, lost = None, None
            try:
                answer = await self._send(claimed, run, worker)
            except TeacherUnreachableError as error:
                verdict = Verdict(Reply(error=str(error)), is_final=False, is_retryable=True)
            else:
                if answer is None:
                    return None
                verdict, lost, retry_after_s = answer.verdict, answer.lost, answer.retry_after_s
                self.endpoint.stop_if_hopeless(answer.response, verdict)
            if not verdict.is_retryable or (verdict.is_final and num_attempts >= _MOST_PAID_TRIES):
                return verdict, lost
            wait_s = self.policy.wait_s(num_attempts, retry_after_s=retry_after_s, draw=self.rng.random())
            if wait_s is None or run.is_stopping.is_set():
                return verdict, lost
            if lost is not None:
                await lost
            worker.land(run.limiter)
            run.on_trouble(verdict.reply.error)
            run.spare.release()
            await self.clock.sleep(wait_s)

    async def _send(self, claimed: Claimed, run: _Run, worker: _Worker) -> _Answer | None:
        """Send one request in its turn, if the ledger lets it pass, and settle its price; None = it does not."""
        request, bound = claimed
        attempt = await self.ledger.reserve(bound)
        if attempt is None:
            return None
        try:
            leave = await run.limiter.admit(len(request.asked))
        except BaseException:
            self.ledger.free(attempt)
            raise
        worker.has_sent = True
        response = await self._transmit(request, attempt, run)
        verdict = self.provider.judge(response.status, response.body)
        retry_after_s = None if response.status == 200 else self._retry_after_s(response)
        used = Tokens(verdict.reply.prompt_tokens, verdict.reply.completion_tokens)
        try:
            run.limiter.answered(leave, response.status, response.headers, used=used, retry_after_s=retry_after_s)
        except BaseException:  # its file cannot be used: the answer is lost, its price must not be
            if (unknown := self.ledger.lose(attempt)) is not None:
                run.commits.lose(unknown)
            raise
        unknown = self.ledger.settle(attempt, bound, response.status, verdict.reply)
        lost = None if unknown is None else run.commits.lose(unknown)
        return _Answer(response, verdict, retry_after_s, lost)

    async def _transmit(self, request: Request, attempt: Attempt, run: _Run) -> HttpResponse:
        try:
            return await self.transport.send(request)
        except BaseException as error:
            if isinstance(error, TeacherUnreachableError) and not error.was_sent:
                self.ledger.free(attempt)
            elif (unknown := self.ledger.lose(attempt)) is not None:
                lost = run.commits.lose(unknown)
                if isinstance(error, TeacherUnreachableError):
                    await lost
            raise

    def _retry_after_s(self, response: HttpResponse) -> float | None:
        return parse_retry_after(
            response.headers.get("retry-after"), now_s=self.clock.now_s(), server_date=response.headers.get("date")
        )


def _entry(request: Request, verdict: Verdict) -> Entry:
    return Entry(request.key, verdict.reply, verdict.is_final, request.asked)


async def _let_arrive(workers: list[_Worker], tasks: list["asyncio.Task[None]"]) -> None:
    """Wait a while for answers that are on their way: they have been paid for."""
    for worker, task in zip(workers, tasks, strict=True):
        if not worker.has_sent:
            task.cancel()
    await asyncio.wait(tasks, timeout=_GRACE_S)

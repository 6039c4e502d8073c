"""One asking through a batch API, and what is durable when.

    draw requests -> write the chunk down -> reserve its worst case -> submit -> write the batch's id down
    poll -> download -> journal the answers and close their reservations -> forget the chunk

Each arrow is durable before the next begins. A kill between submitting and writing the id down leaves a chunk without
one: it is looked for at the endpoint, and its requests are free again only when it is certainly not there. A kill after
that leaves a batch that is polled, and downloaded again if need be: the first final answer to a request stays.

Requests without an answer (an expired batch, a request that failed in passing) go into the next round's batches.
"""

import tempfile
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

from proxykd.config.teacher import BatchSpec
from proxykd.exceptions import TeacherError, TeacherUnreachableError
from proxykd.progress import Progress
from proxykd.teacher.batches.api import BatchApi, NotNow, RefusedError, Result, Status, ValueT, checked
from proxykd.teacher.batches.chunks import Chunk, Chunks
from proxykd.teacher.budget import BATCHED, Cost, describe_caps, is_within, worst_case
from proxykd.teacher.calls import Lookups
from proxykd.teacher.clock import Clock
from proxykd.teacher.endpoint import KEPT, Endpoint
from proxykd.teacher.entries import Attempt, Entry
from proxykd.teacher.journal import Journal
from proxykd.teacher.live import LiveTeacher, provider_of
from proxykd.teacher.replies import Reply, Request
from proxykd.teacher.transport import HttpResponse

_BLOCK = 500
"""Requests claimed, or answers journaled, in one transaction."""


class End(NamedTuple):
    """How the asking ended.

    Attributes:
        num_known: Answers that the journal had before.
        num_missing: Requests without a final answer.
        last_reason: Why the latest of them has none; "" = not known.
        reached: The caps that allow no further request, and what is spent; "" = none is reached.
    """

    num_known: int
    num_missing: int
    last_reason: str
    reached: str


class Listener(NamedTuple):
    """Who hears of what happens.

    Attributes:
        progress: Told of answers that the journal has, and that we are alive.
        on_settled: Called for each final answer, after it is durable.
        on_trouble: Called with the reason where a request is to be asked again.
    """

    progress: Progress
    on_settled: Callable[[Reply], None]
    on_trouble: Callable[[str], None]


def address_of(teacher: LiveTeacher) -> str:
    """What a teacher's chunks have as their endpoint."""
    return f"{teacher.spec.kind} {provider_of(teacher.spec)}"


@dataclass(slots=True)
class _Draft:
    """A chunk in the making.

    Attributes:
        rows: File of what is submitted.
        requests: Key and question of each request.
        attempts: Their worst cases.
        cost: Of all attempts.
        left: The request that did not fit; None = there is none.
        is_capped: Whether it was a cap that it did not fit under.
    """

    rows: Path
    requests: list[tuple[str, str]] = field(default_factory=list)
    attempts: list[Attempt] = field(default_factory=list)
    cost: Cost = field(default_factory=Cost)
    left: Request | None = None
    is_capped: bool = False


@dataclass(slots=True)
class Asker:
    """One asking.

    Attributes:
        teacher: Who is asked.
        journal: Keeps the answers.
        chunks: What is in which batch.
        api: The endpoint's batches.
        endpoint: For messages.
        batch: Sizes and patience.
        listener: Hears of what happens.
        folder: For files that are on their way.
        clock: Time.
    """

    teacher: LiveTeacher
    journal: Journal
    chunks: Chunks
    api: BatchApi
    endpoint: Endpoint
    batch: BatchSpec
    listener: Listener
    folder: Path
    clock: Clock
    _spent: Cost = field(default_factory=Cost)
    _in_flight: list[Chunk] = field(default_factory=list)
    _num_known: int = 0
    _num_settled: int = 0
    _is_first_pass: bool = True
    _settled_in_pass: set[str] = field(default_factory=set)
    _is_last_round: bool = False
    _last_reason: str = ""
    _may_pass: bool = False

    async def take_up_all(self, spent: Cost) -> None:
        """Put in flight what earlier runs submitted; to be called first, and once.

        Args:
            spent: What the run's calls have cost before.
        """
        self._spent = spent
        for chunk in self.chunks.open_at(self._address):
            if chunk.batch_id in self.batch.give_up:
                self.chunks.drop(chunk)  # it may have been paid for: its reservations stay
            else:
                await self._take_up(chunk)

    async def settle_all(self) -> None:
        """Wait until all that is in flight is settled."""
        while self._in_flight:
            await self._settle_next()

    async def run(self, lookups: Lookups) -> End:
        """Ask, round after round, until all is answered, nothing helps or a cap is reached.

        Args:
            lookups: Looks all calls up in the journal, each time that it is called.
        """
        is_capped = False
        for number in range(self.teacher.spec.max_attempts):
            before, self._may_pass = self._num_settled, False
            self._is_last_round = number + 1 == self.teacher.spec.max_attempts
            is_capped = await self._submit_all(lookups)
            await self.settle_all()
            is_in_vain = self._num_settled == before and not self._may_pass
            if is_capped or is_in_vain or not self._count_missing(lookups):
                break
            if self._num_settled == before:
                await self.clock.sleep(self.batch.poll_s)
        reached = describe_caps(self.teacher.budget, self._spent) if is_capped else ""
        return End(self._num_known, self._count_missing(lookups), self._last_reason, reached)

    @property
    def _address(self) -> str:
        return address_of(self.teacher)

    def _count_missing(self, lookups: Lookups) -> int:
        return sum(found.num_missing for found in lookups())

    # --- submitting

    def _free(self, lookups: Lookups) -> Iterator[Request]:
        """Claimed requests that nobody has answered and no batch holds."""
        unheld = self._open(lookups)
        while block := list(islice(unheld, _BLOCK)):
            claims = self.journal.claim([Attempt("", request.key, 0, 0) for request in block])
            yield from (request for request in block if claims.get(request.key))

    def _open(self, lookups: Lookups) -> Iterator[Request]:
        for found in lookups():
            if self._is_first_pass:
                num_known = sum(key not in self._settled_in_pass for key in found.known)
                self._num_known += num_known
                self.listener.progress.advance(num_known)
            yield from (request for request in found.missing if not self.chunks.holds(request.key))
        self._is_first_pass = False
        self._settled_in_pass.clear()

    async def _submit_all(self, lookups: Lookups) -> bool:
        """Submit what is free; returns whether a cap leaves no room for more."""
        free, left = self._free(lookups), None
        while True:
            draft = self._draw(chain([] if left is None else [left], free))
            if draft.requests:
                await self._submit(draft)
            left = draft.left
            if left is None:
                return False
            if draft.is_capped:
                if not self._in_flight:
                    self.journal.release([left.key])
                    return True
                await self._settle_next()

    def _draw(self, requests: Iterator[Request]) -> _Draft:
        """As many requests as one batch may hold and the caps let pass, written to a file."""
        draft, most_bytes = _Draft(self.folder / "rows"), self.batch.max_megabytes * 1e6
        before, between, after = self.api.envelope()
        with draft.rows.open("wb") as file:
            size = file.write(before)
            for request in requests:
                row = self.api.row(request)
                attempt = worst_case(request, self.teacher.provider)
                cost = draft.cost + self.teacher.tariff.of_attempt(attempt._replace(attempt_id=BATCHED))
                draft.is_capped = not is_within(self.teacher.budget, self._spent + cost)
                is_full = len(draft.requests) == self.batch.max_requests or size + len(row) > most_bytes
                if draft.is_capped or (draft.requests and is_full):
                    draft.left = request
                    break
                size += file.write(between if draft.requests else b"") + file.write(row)
                draft.requests.append((request.key, request.asked))
                draft.attempts.append(attempt)
                draft.cost = cost
            file.write(after)
        return draft

    async def _submit(self, draft: _Draft) -> None:
        chunk = Chunk(uuid4().hex, self._address, len(draft.requests), self.clock.now_s())
        self.chunks.prepare(chunk, draft.requests)
        if self.teacher.budget.is_set:
            name = f"{BATCHED}{chunk.name}-"
            self.journal.commit(opened=[one._replace(attempt_id=name + one.key) for one in draft.attempts])
            self._spent += draft.cost
        try:
            batch_id = await checked(self.api.create(chunk, draft.rows))
        except RefusedError as error:
            await self._turn_away(chunk, error)
        except TeacherUnreachableError as error:
            if not error.was_sent:
                self._release(chunk)
                raise
            self.listener.on_trouble(str(error))
            await self._take_up(chunk)
        else:
            self._in_flight.append(self.chunks.name_batch(chunk, batch_id))

    async def _turn_away(self, chunk: Chunk, error: RefusedError) -> None:
        """Free the requests of a batch that the endpoint refused."""
        self._release(chunk)
        if not error.verdict.is_retryable:
            raise TeacherError(
                f"{self.endpoint.url} refused a batch: {error}; correct that, or unset teacher.batch; {KEPT}"
            )
        self._note(str(error))
        self._may_pass = True
        await self.clock.sleep(self.batch.poll_s)

    async def _take_up(self, chunk: Chunk) -> None:
        """Put a chunk that an earlier call submitted, or did not, in flight, or free its requests."""
        while True:
            now = self.chunks.get(chunk.name)
            if now is None or now.batch_id:
                self._in_flight += [] if now is None else [now]
                return
            self.listener.progress.advance(0)
            keys = self.chunks.keys(chunk)
            is_ours = all(self.journal.claim([Attempt("", key, 0, 0) for key in sorted(keys)]).values())
            # A batch that was submitted a moment ago may not be in the endpoint's list yet.
            wait_s = chunk.prepared_at + 2 * self.batch.poll_s - self.clock.now_s()
            if not is_ours or wait_s > 0:
                await self.clock.sleep(max(wait_s, 0.0) if is_ours else self.batch.poll_s)
                continue
            others = {one.batch_id for one in self.chunks.open_at(self._address)}
            try:
                batch_id = await checked(self.api.find(chunk, keys, others))
            except NotNow:
                await self.clock.sleep(self.batch.poll_s)
                continue
            if not batch_id:
                self._release(chunk)
                return
            self.chunks.name_batch(chunk, batch_id)

    def _release(self, chunk: Chunk) -> None:
        """Forget a chunk that was never worked on."""
        self._close(self._attempts(chunk).values(), Cost())
        self.journal.release(self.chunks.keys(chunk))
        self.chunks.drop(chunk)

    def _attempts(self, chunk: Chunk) -> dict[str, Attempt]:
        if not self.teacher.budget.is_set:
            return {}
        name = f"{BATCHED}{chunk.name}-"
        return {one.key: one for one in self.journal.open_attempts() if one.attempt_id.startswith(name)}

    # --- settling

    async def _settle_next(self) -> None:
        """Wait until one batch is ended, and settle it."""
        while True:
            num_done = 0
            for chunk in self._in_flight:
                status = await self._known(chunk, self.api.status(chunk.batch_id))
                num_done += status.num_done
                if status.is_ended:
                    self._in_flight.remove(chunk)
                    await self._settle(chunk, status)
                    return
            self.listener.progress.advance(0, batches=str(len(self._in_flight)), done_in_batches=str(num_done))
            await self.clock.sleep(self.batch.poll_s)

    async def _known(self, chunk: Chunk, answer: Awaitable[ValueT]) -> ValueT:
        try:
            return await checked(answer)
        except RefusedError as error:
            raise TeacherError(
                f"{self.endpoint.url} says of the batch {chunk.batch_id}: {error}; use the key that it was submitted "
                f"with, or, if its answers are lost, set teacher.batch.give_up=[{chunk.batch_id}] and they are asked "
                f"again; {KEPT}"
            ) from None

    async def _settle(self, chunk: Chunk, status: Status) -> None:
        if status.failure:
            self._release(chunk)
            if not status.may_pass:
                raise TeacherError(
                    f"{self.endpoint.url} did not take up a batch: {status.failure}; correct that, or unset "
                    f"teacher.batch; {KEPT}"
                )
            self._note(status.failure)
            self._may_pass = True
            return
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            paths = await self._known(chunk, self.api.fetch(chunk.batch_id, Path(folder)))
            hopeless = self._ingest(chunk, self._results(paths))
        if hopeless is not None:
            response = HttpResponse(hopeless.status, {}, b"")
            self.endpoint.stop_if_hopeless(response, hopeless.verdict)

    def _results(self, paths: list[Path]) -> Iterator[Result | None]:
        for path in paths:
            with path.open("rb") as lines:
                yield from (self.api.result(line) for line in lines if line.strip())

    def _ingest(self, chunk: Chunk, results: Iterator[Result | None]) -> Result | None:
        """Journal what came and forget the chunk; returns a result that says that asking on is hopeless."""
        keys, attempts, hopeless, are_all_read = self.chunks.keys(chunk), self._attempts(chunk), None, True
        while block := list(islice(results, _BLOCK)):
            read = [result for result in block if result is not None]
            are_all_read = are_all_read and len(read) == len(block)
            known = [result for result in read if result.key in keys]
            keys.difference_update(result.key for result in known)
            self._journal(known, attempts)
            hopeless = next((result for result in known if result.verdict.stops), hopeless)
        if keys:
            self._note(f"{len(keys)} requests have no result in their batch")
        if are_all_read:  # what has no result is not billed
            self._close([attempts[key] for key in keys if key in attempts], Cost())
        self.journal.release(keys)
        self.chunks.drop(chunk)
        return hopeless

    def _journal(self, results: list[Result], attempts: dict[str, Attempt]) -> None:
        entries, closed, cost = [], [], Cost()
        for result in results:
            verdict = result.verdict
            is_final = verdict.is_final and (not verdict.is_retryable or self._is_last_round)
            reply = replace(verdict.reply, is_batched=True)
            if not self.journal.has_final(result.key):
                entries.append(Entry(result.key, reply, is_final, self.chunks.asked(result.key)))
            if result.key in attempts and self.teacher.tariff.is_told(result.status, reply):
                closed.append(attempts[result.key])
                cost += self.teacher.tariff.of_reply(reply)
        self._close(closed, cost, entries)
        for entry in entries:
            if not entry.is_final:
                self._note(entry.reply.error)
                continue
            self._num_settled += 1
            self.listener.on_settled(entry.reply)
            if self._is_first_pass:
                self._settled_in_pass.add(entry.key)

    def _close(self, attempts: Iterable[Attempt], cost: Cost, entries: Iterable[Entry] = ()) -> None:
        """Put what was billed in place of reservations, in one transaction with the answers that tell of it."""
        attempts = list(attempts)
        self.journal.commit(entries, closed=[attempt.attempt_id for attempt in attempts])
        for attempt in attempts:
            self._spent -= self.teacher.tariff.of_attempt(attempt)
        self._spent += cost

    def _note(self, reason: str) -> None:
        self._last_reason = reason
        self.listener.on_trouble(reason)

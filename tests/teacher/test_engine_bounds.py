"""What a kill may cost at any moment: calls that left and are not settled on disk, and claims on calls that did not."""

import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.config.prices import PriceSpec
from proxykd.config.teacher import BudgetSpec
from proxykd.exceptions import StorageError
from proxykd.teacher.budget import Cost, Ledger, Tariff
from proxykd.teacher.endpoint import Endpoint
from proxykd.teacher.engine import Engine
from proxykd.teacher.entries import Attempt, Entry
from proxykd.teacher.journal import Journal
from proxykd.teacher.replies import Request
from proxykd.teacher.retry import RetryPolicy
from proxykd.teacher.transport import HttpResponse

TARIFF = Tariff(PriceSpec(input_usd_per_million=1.0, output_usd_per_million=1.0))
USAGE = {"prompt_tokens": 3, "completion_tokens": 2}
OK = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "usage": USAGE}


class Watch:
    """Counts, by key, what left and is not settled: no answer on disk, no unknown price on disk, no refusal."""

    def __init__(self) -> None:
        self.open, self.most_open, self.num_calls = Counter[str](), 0, 0

    def sent(self, key: str) -> None:
        self.num_calls += 1
        self.open[key] += 1
        self.most_open = max(self.most_open, self.open.total())

    def settled(self, keys: Iterable[str]) -> None:
        for key in keys:
            self.open.pop(key, None)


class WatchedJournal(Journal):
    """Tells what is durable; slow, and from some commit on broken."""

    watch: Watch
    num_good = 10**9
    delay_s = 0.0

    def commit(self, entries: Iterable[Entry] = (), *, opened: Iterable[Attempt] = (), **closed: Any) -> None:
        entries, opened = list(entries), list(opened)
        time.sleep(self.delay_s)
        if self.num_good <= 0:
            raise StorageError("the disk is gone")
        self.num_good -= 1
        super().commit(entries, opened=opened, **closed)
        self.watch.settled([entry.key for entry in entries] + [attempt.key for attempt in opened])


class FaultyTransport:
    """Answers most calls, refuses some, and leaves the price of some unknown."""

    def __init__(self, watch: Watch, seed: int, fault_rate: float, on_send: Any = None) -> None:
        self._watch, self._rng, self._fault_rate, self._on_send = watch, random.Random(seed), fault_rate, on_send

    async def send(self, request: Request) -> HttpResponse:
        self._watch.sent(request.key)
        if self._on_send is not None:
            self._on_send()
        await asyncio.sleep(self._rng.random() * 0.002)
        if (fault := self._rng.random()) < self._fault_rate / 2:
            self._watch.settled([request.key])
            return HttpResponse(429, {}, b"later")
        return HttpResponse(500 if fault < self._fault_rate else 200, {}, json.dumps(OK).encode())


def _requests(count: int) -> list[Request]:
    body = {"max_tokens": 7, "messages": [{"role": "user", "content": "ask"}]}
    return [Request(f"key-{number}", body) for number in range(count)]


def _engine(journal: Journal, transport: Any, concurrency: int) -> Engine:
    ledger = Ledger(BudgetSpec(requests=10**6), TARIFF, Cost())
    policy = RetryPolicy(40, base_s=0.002, cap_s=0.004)
    return Engine(Endpoint("http://t", "m", None), transport, journal, policy, concurrency, ledger)


@settings(max_examples=15, deadline=None)
@given(
    concurrency=st.sampled_from([1, 2, 4, 9, 16]),
    fault_rate=st.sampled_from([0.0, 0.2, 0.6]),
    num_good=st.sampled_from([0, 1, 2, 10**9]),
    delay_s=st.sampled_from([0.0, 0.004]),
    seed=st.integers(0, 99),
)
def test_no_more_calls_are_unsettled_than_may_be_in_flight(
    concurrency: int, fault_rate: float, num_good: int, delay_s: float, seed: int
) -> None:
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder, WatchedJournal(Path(folder) / "j.sqlite") as journal:
        journal.watch, journal.num_good, journal.delay_s = watch, num_good, delay_s
        work = _engine(journal, FaultyTransport(watch, seed, fault_rate), concurrency).run(
            _requests(40), on_settled=lambda _: None
        )
        if num_good < 10**9:
            with pytest.raises(StorageError, match="the disk is gone"):
                asyncio.run(work)
        else:
            assert asyncio.run(work).num_requests == 0
            assert not watch.open
    assert watch.most_open <= concurrency
    if num_good == 10**9 and delay_s:
        assert watch.most_open == concurrency


@pytest.mark.parametrize("fault_rate", [0.0, 0.5])
def test_no_more_requests_are_claimed_than_twice_the_calls_in_flight(tmp_path: Path, fault_rate: float) -> None:
    watch, num_claimed = Watch(), []
    with WatchedJournal(tmp_path / "j.sqlite") as journal, Journal(tmp_path / "j.sqlite") as later:
        journal.watch = watch

        def look() -> None:
            num_claimed.append(sum(call.attempt_id.startswith("claim ") for call in later.open_attempts()))

        transport = FaultyTransport(watch, 0, fault_rate, look)
        asyncio.run(_engine(journal, transport, 8).run(_requests(200), on_settled=lambda _: None))
    assert 8 < max(num_claimed) <= 2 * 8
    assert len(num_claimed) == watch.num_calls


def test_others_are_sent_while_one_waits_to_be_tried_again(tmp_path: Path) -> None:
    waits, four, in_flight, most = asyncio.Event(), asyncio.Event(), 0, 0

    class Waits:
        def now_s(self) -> float:
            return 0.0

        def steady_s(self) -> float:
            return 0.0

        async def sleep(self, seconds: float) -> None:
            waits.set()
            await four.wait()

    class RefusesFirst:
        async def send(self, request: Request) -> HttpResponse:
            nonlocal in_flight, most
            if not waits.is_set() and request.key == "key-0":
                return HttpResponse(503, {}, b"later")
            await waits.wait()
            in_flight += 1
            most = max(most, in_flight)
            if in_flight == 4:
                four.set()
            await four.wait()  # nobody ends before four are in flight, beside the one that waits
            in_flight -= 1
            return HttpResponse(200, {}, json.dumps(OK).encode())

    with Journal(tmp_path / "j.sqlite") as journal:
        engine = replace(_engine(journal, RefusesFirst(), 4), clock=Waits())
        asyncio.run(asyncio.wait_for(engine.run(_requests(9), on_settled=lambda _: None), 10))
        assert all(journal.has_final(request.key) for request in _requests(9))
    assert most == 4

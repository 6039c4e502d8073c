"""Calls wait for their turn, refusals narrow the window, and the asking recovers."""

import asyncio
import heapq
import random
from collections.abc import Awaitable, Callable
from itertools import count

import pytest

from proxykd.config.teacher import LimitsSpec
from proxykd.teacher.limiter import Leave, Limiter
from proxykd.teacher.limits import OwnState, Tokens


class SimulatedClock:
    """Time that jumps to the next waking whenever all tasks sleep."""

    def __init__(self) -> None:
        self.time_s, self._sleepers, self._ids = 0.0, list[tuple[float, int, asyncio.Future[None]]](), count()

    def now_s(self) -> float:
        return self.time_s

    def steady_s(self) -> float:
        return self.time_s

    async def sleep(self, seconds: float) -> None:
        waking = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self.time_s + seconds, next(self._ids), waking))
        await waking

    async def run(self, tasks: list["asyncio.Task[None]"]) -> None:
        while not all(task.done() for task in tasks):
            for _ in range(20):
                await asyncio.sleep(0)
            if self._sleepers:
                self.time_s, _, waking = heapq.heappop(self._sleepers)
                if not waking.done():
                    waking.set_result(None)
        await asyncio.gather(*tasks)


Serve = Callable[[SimulatedClock], Awaitable[tuple[int, dict[str, str], float | None]]]


def _simulate(limiter: Limiter, clock: SimulatedClock, num_calls: int, num_workers: int, serve: Serve) -> list[float]:
    """When each call left; a refused one is asked again until it is answered."""
    left: list[float] = []
    calls = iter(range(num_calls))

    async def work() -> None:
        for _ in calls:
            status = 0
            while status != 200:
                leave = await limiter.admit(400)
                left.append(clock.time_s)
                status, headers, retry_after_s = await serve(clock)
                used = Tokens(100, 50) if status == 200 else Tokens(0, 0)
                limiter.answered(leave, status, headers, used=used, retry_after_s=retry_after_s)
                limiter.ended()

    async def main() -> None:
        await clock.run([asyncio.create_task(work()) for _ in range(num_workers)])

    asyncio.run(main())
    return left


def _answering(latency_s: float, headers: dict[str, str] | None = None) -> Serve:
    async def serve(clock: SimulatedClock) -> tuple[int, dict[str, str], float | None]:
        await clock.sleep(latency_s)
        return 200, headers or {}, None

    return serve


def test_a_stated_rate_is_kept_and_used() -> None:
    clock = SimulatedClock()
    left = _simulate(Limiter(LimitsSpec(requests_per_minute=600), 32, clock), clock, 300, 32, _answering(0.1))
    assert len(left) == 300
    assert left[-1] == pytest.approx(300 / 10, abs=1.2)


def test_a_rate_of_tokens_learns_what_calls_use() -> None:
    clock = SimulatedClock()
    limiter = Limiter(LimitsSpec(tokens_per_minute=9000), 8, clock, expected_output_tokens=50)
    left = _simulate(limiter, clock, 120, 8, _answering(0.1))
    # 150 tokens a call at 150 tokens a second.
    assert left[-1] == pytest.approx(120.0, rel=0.05)


def test_what_the_endpoint_tells_of_its_limit_is_kept() -> None:
    clock = SimulatedClock()
    left = _simulate(
        Limiter(LimitsSpec(), 16, clock), clock, 200, 16, _answering(0.1, {"x-ratelimit-limit-requests": "300"})
    )
    assert left[-1] - left[16] == pytest.approx((200 - 17) / 5, rel=0.05)


def test_two_limiters_of_one_state_keep_one_rate() -> None:
    clock, store = SimulatedClock(), OwnState()
    limiters = [Limiter(LimitsSpec(requests_per_minute=600), 8, clock, store) for _ in range(2)]
    left: list[float] = []

    async def work(limiter: Limiter) -> None:
        for _ in range(15):
            leave = await limiter.admit(1)
            left.append(clock.time_s)
            await clock.sleep(0.05)
            limiter.answered(leave, 200, {}, used=Tokens(1, 1), retry_after_s=None)
            limiter.ended()

    async def main() -> None:
        await clock.run([asyncio.create_task(work(limiter)) for limiter in limiters for _ in range(8)])

    asyncio.run(main())
    assert max(left) == pytest.approx(240 / 10, abs=1.2)


def test_retry_after_holds_up_every_call() -> None:
    clock, num_asked = SimulatedClock(), count(1)

    async def serve(clock: SimulatedClock) -> tuple[int, dict[str, str], float | None]:
        is_refused = next(num_asked) == 1
        await clock.sleep(0.1 if is_refused else 0.2)
        return (429, {}, 30.0) if is_refused else (200, {}, None)

    left = _simulate(Limiter(LimitsSpec(), 4, clock), clock, 40, 4, serve)
    assert not [left_s for left_s in left if 0.1 < left_s < 30.1]
    assert len(left) == 41


def test_after_a_pause_the_rate_is_kept() -> None:
    clock, num_asked = SimulatedClock(), count(1)

    async def serve(clock: SimulatedClock) -> tuple[int, dict[str, str], float | None]:
        is_refused = next(num_asked) == 3
        await clock.sleep(0.1)
        return (429, {}, 30.0) if is_refused else (200, {}, None)

    left = _simulate(Limiter(LimitsSpec(requests_per_minute=60), 32, clock), clock, 60, 32, serve)
    for start_s in left:
        assert sum(start_s <= left_s <= start_s + 10.0 for left_s in left) <= 10 + 2


def test_a_server_of_few_places_is_found_out_and_kept_busy() -> None:
    clock, rng = SimulatedClock(), random.Random(0)
    busy, num_refused = 0, 0

    async def serve(clock: SimulatedClock) -> tuple[int, dict[str, str], float | None]:
        nonlocal busy, num_refused
        if busy >= 8:
            num_refused += 1
            await clock.sleep(0.001)
            return 503, {}, None
        busy += 1
        await clock.sleep(0.08 + 0.04 * rng.random())
        busy -= 1
        return 200, {}, None

    limiter = Limiter(LimitsSpec(), 64, clock)
    _simulate(limiter, clock, 2000, 64, serve)
    # 8 places of 0.1 s each answer 80 calls a second.
    assert clock.time_s < 1.35 * 2000 / 80
    assert num_refused < 2000
    assert limiter.window < 32


def test_the_odd_refusal_costs_next_to_nothing() -> None:
    clock, rng = SimulatedClock(), random.Random(0)

    async def serve(clock: SimulatedClock) -> tuple[int, dict[str, str], float | None]:
        await clock.sleep(0.02)
        return (429, {}, 0.0) if rng.random() < 0.025 else (200, {}, None)

    limiter = Limiter(LimitsSpec(), 64, clock)
    left = _simulate(limiter, clock, 4000, 64, serve)
    assert clock.time_s < 1.1 * len(left) * 0.02 / 64


def test_a_waiter_that_is_cancelled_leaves_its_place_to_the_next() -> None:
    async def main() -> int:
        limiter = Limiter(LimitsSpec(), 1, SimulatedClock())
        await limiter.admit(1)
        waiters: list[asyncio.Task[Leave]] = [asyncio.create_task(limiter.admit(1)) for _ in range(3)]
        await asyncio.sleep(0)
        waiters[0].cancel()
        limiter.ended()
        waiters[1].cancel()
        await asyncio.gather(*waiters[:2], return_exceptions=True)
        await asyncio.wait_for(waiters[2], 1)
        return sum(waiter.cancelled() for waiter in waiters)

    assert asyncio.run(main()) == 2

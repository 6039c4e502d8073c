"""A loop that asks ends at the signals by which a pod is told to go, whatever their handlers raise."""

import asyncio
import os
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from proxykd.teacher.clock import run_loop

NUM_TURNS = 500


class Told(Exception):
    """What a pipeline's handler raises."""


@pytest.fixture(params=[signal.SIGTERM, signal.SIGINT])
def number(request: pytest.FixtureRequest) -> Iterator[int]:
    """A signal whose handler raises an ordinary exception."""

    def tell(*_: object) -> None:
        raise Told

    before = signal.signal(request.param, tell)
    yield request.param
    assert signal.getsignal(request.param) is tell
    signal.signal(request.param, before)


async def turns(done: list[int]) -> None:
    for turn in range(NUM_TURNS):
        await asyncio.sleep(0.002)
        ends = time.monotonic() + 0.008
        while time.monotonic() < ends:
            pass
        done.append(turn)


@pytest.mark.parametrize("after_s", [0.05, 0.053, 0.056, 0.059])
def test_an_exception_of_a_signals_handler_ends_the_loop_soon(number: int, after_s: float) -> None:
    done: list[int] = []
    sender = threading.Timer(after_s, os.kill, (os.getpid(), number))
    sender.start()
    with pytest.raises(Told):
        run_loop(turns(done))
    sender.join()
    assert len(done) < NUM_TURNS // 2


def test_work_that_is_told_to_end_may_still_clear_up(number: int) -> None:
    told: list[str] = []

    async def work() -> None:
        try:
            signal.raise_signal(number)
            await asyncio.sleep(60)
        finally:
            await asyncio.sleep(0)
            told.append("cleared")

    with pytest.raises(Told):
        run_loop(work())
    assert told == ["cleared"]


def test_a_signal_that_comes_with_the_last_turn_is_not_lost(number: int) -> None:
    async def work() -> int:
        signal.raise_signal(number)
        return 1

    with pytest.raises(Told):
        run_loop(work())

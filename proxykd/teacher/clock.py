"""Time, as the asking needs it; a seam, so that tests need not wait."""

import asyncio
import sys
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import uvloop

_TURN_S = 0.0005

ResultT = TypeVar("ResultT")


def run_loop(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """``asyncio.run`` for many calls a second: on uvloop's loop, with short turns of the threads.

    The interpreter changes threads every 5 ms where one of them is always busy; a commit to the journal needs a few.
    """
    before_s = sys.getswitchinterval()
    sys.setswitchinterval(_TURN_S)
    try:
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(main)
    finally:
        sys.setswitchinterval(before_s)


class Clock(Protocol):
    """Time."""

    def now_s(self) -> float:
        """Seconds since 1970 UTC, for dates that others state; may jump."""

    def steady_s(self) -> float:
        """Seconds of a clock that no change of the date moves, the same for all processes of the machine."""

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""


class WallClock:
    """The real time."""

    def now_s(self) -> float:
        """Seconds since 1970 UTC."""
        return time.time()

    def steady_s(self) -> float:
        """Seconds since the machine started."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """Return after ``seconds``."""
        await asyncio.sleep(seconds)

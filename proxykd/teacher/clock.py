"""Time, as the asking needs it; a seam, so that tests need not wait."""

import asyncio
import gc
import sys
import time
from collections.abc import Coroutine
from typing import Any, Protocol, TypeVar

import uvloop

_TURN_S = 0.0002
_OBJECTS_A_COLLECTION = 20_000

ResultT = TypeVar("ResultT")


class _Loop(uvloop.Loop):
    """uvloop's loop, whose connections send at once what it would keep back until the end of a turn."""

    async def create_connection(self, *args: Any, **options: Any) -> Any:
        connection: tuple[Any, Any] = await super().create_connection(*args, **options)
        connection[0].set_write_buffer_limits(high=0)
        return connection


def run_loop(main: Coroutine[Any, Any, ResultT]) -> ResultT:
    """``asyncio.run`` for many calls a second: uvloop's loop, short turns of the threads, rare collections of garbage.

    The interpreter changes threads every 5 ms where one of them is always busy; a commit to the journal needs a few.
    """
    turn_s, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(_TURN_S)
    gc.set_threshold(max(thresholds[0], _OBJECTS_A_COLLECTION), *thresholds[1:])
    try:
        with asyncio.Runner(loop_factory=_Loop) as runner:
            return runner.run(main)
    finally:
        sys.setswitchinterval(turn_s)
        gc.set_threshold(*thresholds)


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

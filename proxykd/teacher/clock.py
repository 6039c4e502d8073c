"""Time, as the asking needs it; a seam, so that tests need not wait."""

import asyncio
import gc
import signal
import sys
import threading
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import FrameType
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

    A signal whose handler raises an exception (a step's, when its pod is told to go) cancels ``main``, and is raised
    again when that has ended: a loop would swallow the exception, or never end.
    """
    turn_s, thresholds = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(_TURN_S)
    gc.set_threshold(max(thresholds[0], _OBJECTS_A_COLLECTION), *thresholds[1:])
    try:
        with asyncio.Runner(loop_factory=_Loop) as runner, _deferred_signals(runner.get_loop()) as signals:
            return runner.run(signals.heed(main))
    finally:
        sys.setswitchinterval(turn_s)
        gc.set_threshold(*thresholds)


class _Signals:
    """Those that came while a loop ran; the first one cancels what runs there."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.came: list[int] = []
        self._loop = loop
        self._task: asyncio.Task[Any] | None = None

    def note(self, number: int, _: FrameType | None) -> None:
        self.came.append(number)
        if self._task is not None:
            self._loop.call_soon_threadsafe(self._task.cancel)

    async def heed(self, main: Coroutine[Any, Any, ResultT]) -> ResultT:
        self._task = asyncio.current_task()
        if self.came:
            main.close()
            raise asyncio.CancelledError
        return await main


@contextmanager
def _deferred_signals(loop: asyncio.AbstractEventLoop) -> Iterator[_Signals]:
    """Keep signals that have handlers of their own until the end; Ctrl-C's usual one the loop knows how to heed."""
    signals, handlers = _Signals(loop), dict[int, Any]()
    if threading.current_thread() is threading.main_thread():
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    own = {n: one for n, one in handlers.items() if callable(one) and one is not signal.default_int_handler}
    for number in own:
        signal.signal(number, signals.note)
    try:
        yield signals
    finally:
        for number, handler in own.items():
            signal.signal(number, handler)
        for number in dict.fromkeys(signals.came):
            signal.raise_signal(number)


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

"""Time, as the asking needs it; a seam, so that tests need not wait."""

import asyncio
import time
from typing import Protocol


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

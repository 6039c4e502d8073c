"""A request to stop (SIGTERM), heeded by all processes at the same step, after they saved how far they are.

A node that is about to be taken away tells its processes so and gives them a grace period. A process that stops on its
own leaves the others waiting for it, so the request is only noted; the next exchange of the processes carries it.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class InterruptedTrainingError(Exception):
    """Training was asked to stop and saved a checkpoint; the same command goes on from there."""


class _Request:
    is_pending = False


def is_stop_asked() -> bool:
    """Whether this process was asked to stop."""
    return _Request.is_pending


@contextmanager
def noting_stops() -> Iterator[None]:
    """Note SIGTERM instead of ending at once, in the main thread of a process that does not ignore it.

    Once the work inside has heeded it, the signal goes to whoever had plans for it before (ZenML, which ends the step
    by an exception) or ends the process.
    """
    before = signal.getsignal(signal.SIGTERM)
    is_heeded = before is signal.SIG_DFL or callable(before)
    if threading.current_thread() is not threading.main_thread() or not is_heeded:
        yield
        return

    def note(*_: Any) -> None:
        _Request.is_pending = True

    signal.signal(signal.SIGTERM, note)
    try:
        yield
    except InterruptedTrainingError:
        signal.signal(signal.SIGTERM, before)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
        _Request.is_pending = False

"""A request to stop waits for the end of a step, and ends the process as it would have."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from proxykd.launching.interruption import InterruptedTrainingError, is_stop_asked, noting_stops

CODE = """
import os, signal
from proxykd.launching.interruption import InterruptedTrainingError, is_stop_asked, noting_stops
with noting_stops():
    os.kill(os.getpid(), signal.SIGTERM)
    print("saved", is_stop_asked(), flush=True)
    raise InterruptedTrainingError
"""


def test_the_process_ends_by_the_signal_after_the_step() -> None:
    finished = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, timeout=60)
    assert finished.stdout == "saved True\n"
    assert finished.returncode == -signal.SIGTERM


def test_work_that_ends_before_it_heeds_the_request_is_done() -> None:
    with noting_stops():
        os.kill(os.getpid(), signal.SIGTERM)
        assert is_stop_asked()
    assert not is_stop_asked()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


class StepEndedError(Exception):
    """As ZenML ends a step that is told to stop."""


@contextmanager
def handled(handler: Any) -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
        assert signal.getsignal(signal.SIGTERM) is handler
    finally:
        signal.signal(signal.SIGTERM, before)


def test_whoever_has_plans_for_the_signal_has_it_after_the_step() -> None:
    def end(*_: object) -> None:
        raise StepEndedError

    def train() -> None:
        with noting_stops():
            os.kill(os.getpid(), signal.SIGTERM)
            assert is_stop_asked()
            raise InterruptedTrainingError

    with handled(end), pytest.raises(StepEndedError):
        train()
    assert not is_stop_asked()


def test_who_ignores_the_signal_goes_on_ignoring_it() -> None:
    with handled(signal.SIG_IGN), noting_stops():
        os.kill(os.getpid(), signal.SIGTERM)
        assert not is_stop_asked()


def test_other_threads_leave_the_signal_alone() -> None:
    thread = threading.Thread(target=lambda: noting_stops().__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

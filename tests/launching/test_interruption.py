"""A request to stop waits for the end of a step, and ends the process as it would have."""

import os
import signal
import subprocess
import sys
import threading

from proxykd.launching.interruption import is_stop_asked, noting_stops

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


def test_whoever_has_plans_for_the_signal_keeps_them() -> None:
    before = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        with noting_stops():
            os.kill(os.getpid(), signal.SIGTERM)
            assert not is_stop_asked()
    finally:
        signal.signal(signal.SIGTERM, before)
    thread = threading.Thread(target=lambda: noting_stops().__enter__())
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL

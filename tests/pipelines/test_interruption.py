"""Killed and interrupted runs: the same command goes on, pays for nothing twice and ends in the same numbers."""

import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.program import LIMIT_S, NUM_PROMPTS, Finished, Home

pytestmark = pytest.mark.integration


def disturb(home: Home, wanted: signal.Signals, is_time: Callable[[str], bool]) -> Finished:
    """Send a signal to a run's process group as soon as ``is_time(stderr so far)``; how the run ended."""
    deadline = time.monotonic() + LIMIT_S
    with home.start() as started:
        while not is_time(started.stderr):
            assert started.process.poll() is None, started.stderr
            assert time.monotonic() < deadline
            time.sleep(0.002)
        started.signal(wanted)
        return started.finish()


def test_a_run_that_is_killed_again_and_again_ends_in_the_same_numbers(
    undisturbed: tuple[Home, Finished], tmp_path: Path
) -> None:
    home = Home.create(tmp_path / "disturbed")

    killed = disturb(home, signal.SIGKILL, lambda _: home.num_answers() >= 10)
    assert killed.status == -signal.SIGKILL
    paid = home.num_answers()
    assert 10 <= paid < NUM_PROMPTS
    assert home.has_no_server_soon()

    interrupted = disturb(home, signal.SIGINT, lambda printed: "proxy warm-up:" in printed)
    assert interrupted.status == 130
    assert f"{paid} of {NUM_PROMPTS} answers were in the journal" in interrupted.stderr
    assert home.num_answers() == NUM_PROMPTS
    *_, last = interrupted.stderr.splitlines()
    assert last.startswith("proxykd: interrupted; ")
    # An interrupt that comes while an object is being freed is told by Python, and goes on being one.
    told = re.sub(r"Exception ignored in: .*\n(?:  .*\n|Traceback .*\n)*KeyboardInterrupt: ?\n", "", interrupted.stderr)
    assert "Traceback" not in told + interrupted.stdout

    killed = disturb(home, signal.SIGKILL, lambda printed: "estimate distributions:" in printed)
    assert killed.status == -signal.SIGKILL
    assert "Asking the teacher" not in killed.stderr

    finished = home.run()
    assert finished.status == 0, finished.stderr
    assert "Asking the teacher" not in finished.stderr
    assert "proxy warm-up" not in finished.stderr
    assert home.num_answers() == NUM_PROMPTS
    assert finished.report["arms"] == undisturbed[1].report["arms"]
    assert home.has_no_server_soon()

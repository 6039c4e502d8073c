"""One line a stage where output is no terminal, nothing when quiet, and always all items."""

import io
import logging
import os
import signal
import sys
import warnings

import pytest

from proxykd.progress import heed_interrupts, hush_engines, report, stage, track


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def stderr(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What is written to the real standard error."""
    monkeypatch.delenv("PROXYKD_PROGRESS", raising=False)
    written = io.StringIO()
    monkeypatch.setattr(sys, "__stderr__", written)
    return written


def test_a_stage_is_one_line_where_output_is_no_terminal(stderr: io.StringIO) -> None:
    with stage("Reading", total=3, unit="row") as progress:
        progress.advance(2, loss=0.123456)
        progress.advance()
    (line,) = stderr.getvalue().splitlines()
    assert line.startswith("Reading: 3 rows in ")
    assert line.endswith("/s), loss=0.1235")


def test_a_long_stage_says_every_minute_how_far_it_is(stderr: io.StringIO) -> None:
    now_s = 1000.0
    with stage("Asking", total=500, unit="answer", clock=lambda: now_s) as progress:
        for _ in range(100):
            progress.advance(1)
        now_s += 59.0
        progress.advance(19)
        assert stderr.getvalue() == ""
        now_s += 1.0
        progress.advance(1, latest_error="HTTP 503: down")
        progress.advance(0)
        now_s += 60.0
        progress.advance(0)
    # 120 answers in the first minute, none in the second, and the summary over both.
    assert stderr.getvalue().splitlines() == [
        "Asking: 120 of 500 answers after 60 s (2.0/s now), latest_error=HTTP 503: down",
        "Asking: 120 of 500 answers after 120 s (0.0/s now), latest_error=HTTP 503: down",
        "Asking: 120 answers in 120.0 s (1.0/s), latest_error=HTTP 503: down",
    ]


@pytest.mark.parametrize("mode", ["off", "bar"])
def test_no_minute_is_told_to_those_who_are_quiet_or_see_a_bar(
    stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("PROXYKD_PROGRESS", mode)
    now_s = 0.0
    with stage("Asking", clock=lambda: now_s) as progress:
        now_s = 1e6
        progress.advance()
    assert "after" not in stderr.getvalue()


def test_a_terminal_gets_a_bar_with_rate_and_time_left_whatever_the_environment_says_of_others(
    stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = _Terminal()
    monkeypatch.setattr(sys, "__stderr__", terminal)
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(track([1, 2, 3], "Reading", unit="row")) == [1, 2, 3]
    assert all(part in terminal.getvalue() for part in ("Reading", "3/3", "row/s"))


@pytest.mark.parametrize(("mode", "num_lines"), [("off", 0), ("lines", 2)])
def test_quiet_means_quiet(stderr: io.StringIO, monkeypatch: pytest.MonkeyPatch, mode: str, num_lines: int) -> None:
    monkeypatch.setenv("PROXYKD_PROGRESS", mode)
    assert list(track(iter("abc"), "Reading")) == list("abc")
    report("a remark")
    assert len(stderr.getvalue().splitlines()) == num_lines


def test_engines_are_heard_from_warnings_on(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "warnoptions", [])
    monkeypatch.setattr(os, "environ", {})
    loud = logging.getLogger("some.engine")
    loud.setLevel(logging.DEBUG)
    with warnings.catch_warnings():
        try:
            hush_engines()
            warnings.warn("an engine's own", FutureWarning, stacklevel=1)
            loud.info("starting")
            loud.error("broken")
        finally:
            logging.disable(logging.NOTSET)
    assert [record.message for record in caplog.records] == ["broken"]


@pytest.mark.parametrize(("mode", "is_watched"), [("lines", False), ("off", False), ("bar", True)])
def test_engines_draw_bars_for_those_who_watch_alone(
    monkeypatch: pytest.MonkeyPatch, mode: str, is_watched: bool
) -> None:
    environ = {"PROXYKD_PROGRESS": mode}
    monkeypatch.setattr(os, "environ", environ)
    with warnings.catch_warnings():
        try:
            hush_engines()
        finally:
            logging.disable(logging.NOTSET)
    assert ("HF_HUB_DISABLE_PROGRESS_BARS" in environ) is not is_watched  # what is downloaded takes long
    assert environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] == "false"


def test_an_interrupt_that_a_finaliser_swallows_counts_at_the_next_report(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with heed_interrupts(), stage("Working") as progress:
            Interrupted()  # is gone at once
            with pytest.raises(KeyboardInterrupt):
                progress.advance()
        with heed_interrupts(), stage("Working") as progress:
            progress.advance()
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)

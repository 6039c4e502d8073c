"""Progress that a person can follow: bars on a terminal, lines elsewhere, nothing when quiet.

A stage is one line, written when it ends; one that lasts says every minute how far it is.

The environment variable ``PROXYKD_PROGRESS`` (``auto``, ``bar``, ``lines`` or ``off``) decides, so that it
reaches steps that run in processes of their own; anything else counts as ``auto``.
"""

import logging
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

from tqdm import tqdm

ItemT = TypeVar("ItemT")

HEARTBEAT_S = 60.0
"""Seconds between two lines of a stage that is still under way, where output is no terminal."""


class Progress(Protocol):
    """A stage that is under way."""

    def advance(self, count: int = 1, **facts: float | str) -> None:
        """Report ``count`` finished units and, beside them, the latest ``facts`` (a loss, a price).

        A count of 0 says that the stage is alive: a line that is due is written then.
        """


class _Interrupts:
    """Whether somebody asked to stop."""

    is_pending = False

    @classmethod
    def heed(cls) -> None:
        if cls.is_pending:
            raise KeyboardInterrupt


@contextmanager
def heed_interrupts() -> Iterator[None]:
    """An interrupt (Ctrl-C) that is swallowed on its way counts again at the next report of progress.

    Python drops any exception, KeyboardInterrupt too, that is raised while a finaliser runs; a run would go on as if
    nobody had asked it to stop. To be entered in the main thread, before handlers that pass the signal on are set.
    """
    previous = signal.getsignal(signal.SIGINT)
    if previous is not signal.default_int_handler:
        yield  # ignored, or somebody else's business
        return

    def note(*_: Any) -> None:
        _Interrupts.is_pending = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        _Interrupts.is_pending = False
        signal.signal(signal.SIGINT, previous)


class _Silence:
    def advance(self, count: int = 1, **facts: float | str) -> None:
        _Interrupts.heed()


class _Bar:
    def __init__(self, bar: "tqdm[Any]") -> None:
        self._bar = bar

    def advance(self, count: int = 1, **facts: float | str) -> None:
        _Interrupts.heed()
        self._bar.update(count)
        if facts:
            self._bar.set_postfix(facts, refresh=False)


class _Line:
    def __init__(self, description: str, unit: str, *, total: int | None, clock: Callable[[], float]) -> None:
        self._description, self._unit, self._total, self._clock = description, unit, total, clock
        self._count, self._told_count = 0, 0
        self._facts: dict[str, float | str] = {}
        self._start_s = self._told_s = clock()

    def advance(self, count: int = 1, **facts: float | str) -> None:
        _Interrupts.heed()
        self._count += count
        self._facts.update(facts)
        now_s = self._clock()
        if now_s - self._told_s >= HEARTBEAT_S and _mode() == "lines":
            self._beat(now_s)

    def _beat(self, now_s: float) -> None:
        # The rate since the last line: a stage that stands still says 0.
        rate = (self._count - self._told_count) / (now_s - self._told_s)
        of_total = "" if self._total is None else f" of {self._total}"
        done = f"{self._count}{of_total} {self._unit}s after {now_s - self._start_s:.0f} s"
        _print(f"{self._description}: {done} ({rate:.1f}/s now){self._facts_text()}")
        self._told_count, self._told_s = self._count, now_s

    def close(self) -> None:
        seconds = self._clock() - self._start_s
        rate = self._count / max(seconds, 1e-9)
        _print(
            f"{self._description}: {self._count} {self._unit}s in {seconds:.1f} s ({rate:.1f}/s){self._facts_text()}"
        )

    def _facts_text(self) -> str:
        return "".join(f", {key}={_short(value)}" for key, value in self._facts.items())


@contextmanager
def stage(
    description: str | None, *, total: int | None = None, unit: str = "row", clock: Callable[[], float] = time.monotonic
) -> Iterator[Progress]:
    """A stage of ``total`` units; the bar shows its rate and the time left.

    Args:
        description: What is being done, a few words; None = nothing is said: it is a part of a stage that speaks.
        total: Number of units; None = not known.
        unit: Singular name of a unit.
        clock: Seconds from any start; decides when a line is due.
    """
    _Interrupts.heed()
    if description is None:
        yield _Silence()
        return
    if _mode() == "bar":
        bar: tqdm[Any]
        # disable=False: the environment may have switched off the bars of everybody else.
        with tqdm(
            desc=description, total=total, unit=unit, dynamic_ncols=True, file=sys.__stderr__, disable=False
        ) as bar:
            yield _Bar(bar)
        return
    line = _Line(description, unit, total=total, clock=clock)
    yield line
    if _mode() == "lines":
        line.close()


def track(items: Iterable[ItemT], description: str, *, total: int | None = None, unit: str = "row") -> Iterator[ItemT]:
    """``items``, reporting progress as they are taken."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    with stage(description, total=total, unit=unit) as progress:
        for item in items:
            yield item
            progress.advance()


def report(text: str) -> None:
    """Say one line, unless quiet."""
    if _mode() != "off":
        _print(text)


def hush_engines() -> None:
    """Let loggers speak from warnings on, whatever level they set, and Python's own warnings only if ``-W`` asks.

    Nor do engines that are imported later draw bars over files of this machine, or into what is no terminal.
    """
    logging.disable(logging.INFO)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    if _mode() != "bar":
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    if not sys.warnoptions:
        warnings.simplefilter("ignore")


def _mode() -> str:
    wanted = os.environ.get("PROXYKD_PROGRESS", "auto")
    if wanted in ("bar", "lines", "off"):
        return wanted
    return "bar" if sys.__stderr__ is not None and sys.__stderr__.isatty() else "lines"


def _print(text: str) -> None:
    # The real stream: orchestrators replace sys.stderr to capture step logs.
    print(text, file=sys.__stderr__, flush=True)


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)

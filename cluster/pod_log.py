"""The logs of pods, copied to this process's standard error while they grow."""

import sys
import threading
import time
from collections.abc import Iterator
from typing import BinaryIO

from cluster.api import ClusterApi
from proxykd.exceptions import ClusterError

_AGAIN_S = 2.0
_MAX_LINE = 1 << 20


class LogCopies:
    """One thread a pod, which ends with its container; a stream that breaks is taken up where it broke.

    Args:
        api: Whose namespace the pods are in.
        container: The one of each pod that is copied.
        sink: Where lines go; None = standard error.
    """

    def __init__(self, api: ClusterApi, *, container: str, sink: BinaryIO | None = None) -> None:
        self._api, self._container = api, container
        self._sink = sink or sys.stderr.buffer
        self._lock, self._ended, self._one_ended = threading.Lock(), threading.Event(), threading.Event()
        self._threads: dict[str, threading.Thread] = {}

    def follow(self, pod: str, *, prefix: str = "") -> None:
        """Copy a pod's log from its beginning, unless that is done already.

        Args:
            pod: Its name.
            prefix: Written before each line.
        """
        if pod not in self._threads:
            thread = threading.Thread(target=self._copy, args=(pod, prefix.encode()), daemon=True)
            self._threads[pod] = thread
            thread.start()

    def wait_for_end(self, seconds: float) -> bool:
        """Wait until another pod's log ends, so many seconds at most; whether one did."""
        found = self._one_ended.wait(seconds)
        self._one_ended.clear()
        return found

    def finish(self, *, wait_s: float) -> None:
        """Let the copies catch up for so many seconds at most, and stop."""
        deadline = time.monotonic() + wait_s
        for thread in self._threads.values():
            thread.join(max(0.0, deadline - time.monotonic()))
        self._ended.set()

    def _copy(self, pod: str, prefix: bytes) -> None:
        last = ""
        while not self._ended.is_set():
            try:
                for stamp, line in self._lines(pod, last):
                    last = stamp
                    with self._lock:
                        self._sink.write(prefix + line + b"\n")
                        self._sink.flush()
                self._one_ended.set()
                return
            except ClusterError:
                # The pod may be gone, or the server away for a while; the follower sees which.
                if self._ended.wait(_AGAIN_S):
                    return

    def _lines(self, pod: str, last: str) -> Iterator[tuple[str, bytes]]:
        """Time and text of each line after the time ``last``."""
        rest = b""
        for piece in self._api.log(pod, container=self._container, is_followed=True, since=last or None):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[-_MAX_LINE:]
            yield from (one for one in map(_timed, lines) if one[0] > last)
        if rest:
            yield _timed(rest)


def _timed(line: bytes) -> tuple[str, bytes]:
    stamp, _, text = line.partition(b" ")
    return stamp.decode(errors="replace"), text


def last_lines(api: ClusterApi, pod: str, *, container: str, count: int) -> str:
    """The end of a pod's log, without times; "" = it cannot be read."""
    try:
        raw = b"".join(api.log(pod, container=container, tail=count))
    except ClusterError:
        return ""
    return b"\n".join(_timed(line)[1] for line in raw.splitlines()).decode(errors="replace")

"""The logs of pods, copied to this process's standard error while they grow."""

import re
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from cluster.api import ClusterApi
from proxykd.exceptions import ClusterError, ClusterMissingError

_AGAIN_S = 2.0
_MAX_LINE = 1 << 20
_TIME = re.compile(rb"\d{4}-\d\d-\d\dT[\d:.]+(Z|[+-]\d\d:\d\d)")


@dataclass(slots=True)
class _Copy:
    """How far the copy of one pod's log has come.

    Attributes:
        pod: Its name.
        prefix: Written before each line.
        thread: Who goes on with it.
        last: The time of the last line; "" = there is none.
        rest: The beginning of a line at which the stream ended.
        untimed: The last line without a time, which is not the container's: its node cannot read the log.
    """

    pod: str
    prefix: bytes
    thread: threading.Thread | None = None
    last: str = ""
    rest: bytes = b""
    untimed: bytes = b""


class LogCopies:
    """One thread a pod, which ends with the stream; one that breaks is taken up where it broke.

    Args:
        api: Whose namespace the pods are in.
        container: The one of each pod that is copied.
        sink: Where lines go; None = standard error.
    """

    def __init__(self, api: ClusterApi, *, container: str, sink: BinaryIO | None = None) -> None:
        self._api, self._container = api, container
        self._sink = sink or sys.stderr.buffer
        self._lock, self._ended, self._one_ended = threading.Lock(), threading.Event(), threading.Event()
        self._copies: dict[str, _Copy] = {}

    def follow(self, pod: str, *, prefix: str = "", is_running: bool = False) -> None:
        """Copy a pod's log from its beginning, unless that is done or under way.

        Args:
            pod: Its name.
            prefix: Written before each line.
            is_running: Whether the container runs: a stream that ended all the same is taken up where it ended.
        """
        copy = self._copies.setdefault(pod, _Copy(pod, prefix.encode()))
        if copy.thread is None or (is_running and not copy.thread.is_alive()):
            copy.thread = threading.Thread(target=self._copy, args=(copy,), daemon=True)
            copy.thread.start()

    def wait_for_end(self, seconds: float) -> bool:
        """Wait until another pod's log ends, so many seconds at most; whether one did."""
        found = self._one_ended.wait(seconds)
        self._one_ended.clear()
        return found

    def finish(self, *, wait_s: float) -> None:
        """Let the copies catch up for so many seconds at most, and stop."""
        deadline = time.monotonic() + wait_s
        for copy in self._copies.values():
            if copy.thread is not None:
                copy.thread.join(max(0.0, deadline - time.monotonic()))
        self._ended.set()
        for copy in self._copies.values():
            stamp, line = _timed(copy.rest)
            if stamp > copy.last and copy.thread is not None and not copy.thread.is_alive():
                self._write(copy, line)

    def _copy(self, copy: _Copy) -> None:
        before = copy.last
        while not self._ended.is_set():
            try:
                for line in self._lines(copy):
                    self._write(copy, line)
            except ClusterMissingError:
                pass  # the pod is gone, and its log with it
            except ClusterError:
                # The server may be away for a while; the follower bears that.
                self._ended.wait(_AGAIN_S)
                continue
            if copy.last > before or not before:
                self._one_ended.set()
            return

    def _write(self, copy: _Copy, line: bytes) -> None:
        with self._lock:
            self._sink.write(copy.prefix + line + b"\n")
            self._sink.flush()

    def _lines(self, copy: _Copy) -> Iterator[bytes]:
        """Each line that was not copied before."""
        for stamp, line in self._stream(copy):
            if stamp > copy.last:
                copy.last = stamp
                yield line
            elif not stamp and line != copy.untimed:
                copy.untimed = line
                yield line

    def _stream(self, copy: _Copy) -> Iterator[tuple[str, bytes]]:
        """Time and text of each whole line, from the second of the last one on."""
        copy.rest = b""
        for piece in self._api.log(copy.pod, container=self._container, is_followed=True, since=copy.last or None):
            *lines, rest = (copy.rest + piece).split(b"\n")
            copy.rest = rest[-_MAX_LINE:]
            yield from map(_timed, lines)


def _timed(line: bytes) -> tuple[str, bytes]:
    """Time and text of a line; "" = it has no time."""
    stamp, _, text = line.partition(b" ")
    return (stamp.decode(), text) if _TIME.fullmatch(stamp) else ("", line)


def last_lines(api: ClusterApi, pod: str, *, container: str, count: int) -> str:
    """The end of a pod's log, without times; "" = it cannot be read."""
    try:
        raw = b"".join(api.log(pod, container=container, tail=count))
    except ClusterError:
        return ""
    return b"\n".join(_timed(line)[1] for line in raw.splitlines()).decode(errors="replace")

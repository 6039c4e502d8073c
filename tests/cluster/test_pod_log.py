"""A pod's log is copied whole and once, however often its stream breaks, or ends before the container does."""

import io
from collections.abc import Iterator
from itertools import pairwise
from typing import NamedTuple, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import pod_log
from cluster.api import ClusterApi
from cluster.pod_log import LogCopies
from proxykd.exceptions import ClusterMissingError, ClusterUnreachableError

TEXTS = [b"one", b"", b"three \xff", b"four", b"five"]
LINES = [b"2026-01-01T00:00:%02d.%d00000000Z %b\n" % (n // 2, 3 + n % 2, text) for n, text in enumerate(TEXTS)]
COPIED = b"".join(b"a | " + text + b"\n" for text in TEXTS)


class Stream(NamedTuple):
    """After so many bytes a stream breaks, or only ends; what the node says instead of the log comes before."""

    size: int
    is_broken: bool
    strange: bytes = b""


class Log:
    """A log as the API server gives it, from a second on, piece by piece."""

    def __init__(self, streams: list[Stream], piece: int, *, is_unfinished: bool = False) -> None:
        self.streams, self.piece, self.num_asked = streams, piece, 0
        self.lines = [*LINES[:-1], LINES[-1].rstrip(b"\n")] if is_unfinished else LINES

    def log(self, pod: str, *, container: str, is_followed: bool, since: str | None) -> Iterator[bytes]:
        assert (pod, container, is_followed) == ("a", "node", True)
        self.num_asked += 1
        whole = b"".join(line for line in self.lines if since is None or line[:19].decode() >= since[:19])
        stream = self.streams.pop(0) if self.streams else Stream(len(whole), is_broken=False)
        whole, end = stream.strange + whole, len(stream.strange) + stream.size
        cuts = [*range(0, end, self.piece), end]
        yield from (whole[start:stop] for start, stop in pairwise(cuts))
        if stream.is_broken:
            raise ClusterUnreachableError("broke off")


def copied(log: Log, *, is_running: bool = True) -> bytes:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pod_log, "_AGAIN_S", 0.0)
        sink = io.BytesIO()
        copies = LogCopies(cast(ClusterApi, log), container="node", sink=sink)
        for _ in range(2 + len(log.streams)):
            copies.follow("a", prefix="a | ", is_running=is_running)
            copies.wait_for_end(0.01)
            copies._copies["a"].thread.join(10.0)  # type: ignore[union-attr]
        copies.finish(wait_s=10.0)
    return sink.getvalue()


@given(
    st.lists(st.builds(Stream, st.integers(0, 200), st.booleans(), st.just(b"")), max_size=6),
    st.integers(1, 50),
    st.booleans(),
)
def test_each_line_is_copied_once_wherever_streams_end(streams: list[Stream], piece: int, is_unfinished: bool) -> None:
    assert copied(Log(streams, piece, is_unfinished=is_unfinished)) == COPIED


def test_what_the_node_says_in_place_of_the_log_is_told_once_and_hides_nothing() -> None:
    strange = b"failed to create fsnotify watcher: too many open files\n"
    log = Log([Stream(0, is_broken=False, strange=strange) for _ in range(3)], 1000)
    assert copied(log) == b"a | " + strange + COPIED


def test_the_log_of_a_container_that_ended_is_read_once() -> None:
    log = Log([], 1000)
    assert copied(log, is_running=False) == COPIED
    assert log.num_asked == 1


def test_the_log_of_a_pod_that_is_gone_is_asked_for_no_more() -> None:
    class Gone(Log):
        def log(self, *arguments: object, **options: object) -> Iterator[bytes]:
            self.num_asked += 1
            raise ClusterMissingError("no such pod")

    log = Gone([], 1000)
    assert copied(log, is_running=False) == b""
    assert log.num_asked == 1

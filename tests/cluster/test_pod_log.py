"""A pod's log is copied whole and once, however often its stream breaks."""

import io
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import pod_log
from cluster.api import ClusterApi
from cluster.pod_log import LogCopies
from proxykd.exceptions import ClusterUnreachableError

TEXTS = [b"one", b"", b"three \xff", b"four", b"five"]
LINES = [b"2026-01-01T00:00:%02d.%d00000000Z %b\n" % (n // 2, 3 + n % 2, text) for n, text in enumerate(TEXTS)]


class BreakingLog:
    """A log as the API server gives it, from a second on, whose streams break after so many bytes of theirs."""

    def __init__(self, breaks: list[int], size: int) -> None:
        self.breaks, self.size = breaks, size

    def log(self, pod: str, *, container: str, is_followed: bool, since: str | None) -> Iterator[bytes]:
        assert (pod, container, is_followed) == ("a", "node", True)
        whole = b"".join(line for line in LINES if since is None or line[:19].decode() >= since[:19])
        end = self.breaks.pop(0) if self.breaks else len(whole)
        cuts = [*range(0, end, self.size), end]
        yield from (whole[start:stop] for start, stop in pairwise(cuts))
        if end < len(whole):
            raise ClusterUnreachableError("broke off")


@given(st.lists(st.integers(0, 200), max_size=6), st.integers(1, 50))
def test_each_line_is_copied_once_wherever_streams_break(breaks: list[int], size: int) -> None:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(pod_log, "_AGAIN_S", 0.0)
        sink = io.BytesIO()
        copies = LogCopies(cast(ClusterApi, BreakingLog(breaks, size)), container="node", sink=sink)
        copies.follow("a", prefix="a | ")
        copies.follow("a")
        copies.finish(wait_s=10.0)
    assert sink.getvalue() == b"".join(b"a | " + text + b"\n" for text in TEXTS)
    assert copies.wait_for_end(0.0)

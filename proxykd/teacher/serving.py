"""Starts the embedded teacher's server in a process of its own and stops it again."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from proxykd.exceptions import TeacherUnreachableError

MAX_LIFE_S = 3600.0
_STOP_S = 5.0


@contextmanager
def embedded_teacher(*, seed: int, max_seconds: float = MAX_LIFE_S, latency_ms: float = 0.0) -> Iterator[str]:
    """The base URL (up to and including ``/v1``) of an embedded teacher that lives as long as the context.

    Should this process be killed, the server sees its standard input close and ends by itself.

    Args:
        seed: Seed of the teacher.
        max_seconds: Longest life, in seconds.
        latency_ms: Milliseconds that every answer is held back.

    Raises:
        TeacherUnreachableError: if the server does not start.
    """
    command = [sys.executable, "-m", "proxykd.teacher.server", "--port", "0", "--seed", str(seed)]
    command += ["--max-seconds", str(max_seconds), "--latency-ms", str(latency_ms)]
    # A session of its own: Ctrl-C on the terminal reaches the asker alone, which then stops the server in order.
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as server:
        assert server.stdout is not None
        try:
            yield f"http://127.0.0.1:{_read_port(server.stdout.readline())}/v1"
        finally:
            _stop(server)


def _read_port(line: str) -> int:
    try:
        return int(json.loads(line)["port"])
    except (ValueError, KeyError):
        raise TeacherUnreachableError(
            f"expected the embedded teacher to print its port, got {line!r}; "
            "run `python -m proxykd.teacher.server` to see why it does not start"
        ) from None


def _stop(server: "subprocess.Popen[str]") -> None:
    assert server.stdin is not None
    server.stdin.close()
    try:
        server.wait(timeout=_STOP_S)
    except subprocess.TimeoutExpired:
        server.kill()

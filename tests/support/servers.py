"""Servers on loopback, as programs or as threads: where they listen, how long they are waited for, how they end."""

import os
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from socketserver import BaseServer
from typing import Any
from urllib.request import urlopen

START_S = 300.0


def own_address() -> str:
    """An address of loopback that is hardly another's, with all its ports."""
    first, second, third = os.urandom(3)
    return f"127.{first or 1}.{second}.{third % 254 + 1}"


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def served(
    command: Sequence[str], environment: Mapping[str, str], log: Path, is_up: Callable[[], bool], **options: Any
) -> Iterator[None]:
    """A program that serves, once it answers; it and what it started are ended on leaving.

    Args:
        command: The program and its arguments.
        environment: All of its variables.
        log: File for what it prints.
        is_up: Whether it answers yet.
        options: Of ``subprocess.Popen``: whose process it is, say.

    Raises:
        RuntimeError: with the end of the log, if it ends before it answers, or takes longer than ``START_S``.
    """
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True, **options)
    try:
        _await(process, is_up, log)
        yield
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(30)


def answers(address: str) -> bool:
    """Whether a page is there."""
    try:
        with urlopen(address, timeout=5):
            return True
    except OSError:
        return False


@contextmanager
def listening(server: BaseServer) -> Iterator[str]:
    """A server of this process, in a thread of its own; gives its address, without a path."""
    with server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.005}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


def _await(process: "subprocess.Popen[bytes]", is_up: Callable[[], bool], log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and process.poll() is None:
        if is_up():
            return
        time.sleep(0.1)
    raise RuntimeError(f"no answer of {process.args!r}: {log.read_text(errors='replace')[-4000:]}")

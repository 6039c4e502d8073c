"""Runs Python programs that a model wrote, each in a process that can reach nothing.

No network, no files but an empty folder and the interpreter's own, no environment, no other process; bounded time,
memory, files and output. The kernel holds the program in (``proxykd.data.sandbox_guest``: Landlock, a seccomp filter,
rlimits), which needs no root, no namespace and no installed tool, so it works in ordinary containers too. Where the
kernel does not offer it, ``SandboxError`` says so and nothing is run: there is no weaker fallback.

What it does not promise stands in docs/strategies.md.
"""

import contextlib
import json
import os
import queue
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from proxykd.config.verifiers import SandboxSpec
from proxykd.data import sandbox_guest
from proxykd.exceptions import SandboxError

_VALUE_CHARS = 16_384
_STDERR_CHARS = 2_000
_GRACE_S = 30.0
# What a program must not be able to do; what it could is named in the error.
_PROBE = """
import os, socket
attempts = {
    "open a socket": lambda: socket.socket(),
    "start a process": lambda: os.fork(),
    "execute a file": lambda: os.execv("/bin/true", ["true"]),
    "signal another process": lambda: os.kill(os.getppid(), 0),
    "read another file": lambda: open("/proc/self/environ").read(),
    "list another folder": lambda: os.listdir("/"),
}
done = []
for what, attempt in attempts.items():
    try:
        attempt()
        done.append(what)
    except OSError:
        pass
"""


class RunEnd(StrEnum):
    """How a program ended."""

    DONE = "done"
    ERROR = "error"
    TIMEOUT = "timeout"
    KILLED = "killed"
    FILES = "files"


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """What became of a program.

    Attributes:
        end: done = program and check ran to their ends; error = an exception or a status other than 0; timeout = out
            of CPU or wall time; killed = a signal ended it; files = it filled its folder.
        value: What the check called ``result``, as text; "" unless done.
        stdout: The program's standard output, cut at the limit.
        stderr: The end of its standard error: the traceback, if there was one.
        wall_s: Seconds from start to end.
    """

    end: RunEnd
    value: str
    stdout: str
    stderr: str
    wall_s: float


class Sandbox:
    """Runs programs; may be shared by threads, whose programs then run side by side. Not to be used after a fork.

    Args:
        limits: What a program may use.

    Raises:
        SandboxError: if this machine cannot hold a program in.
    """

    def __init__(self, limits: SandboxSpec | None = None) -> None:
        self.limits = limits or SandboxSpec()
        self._idle: queue.LifoQueue[_Server] = queue.LifoQueue()
        self._finalizer = weakref.finalize(self, _close_all, self._idle)
        probe = self.run(_PROBE, "result = ', '.join(done)")
        if probe.end is not RunEnd.DONE or probe.value:
            self.close()
            found = f"a program could {probe.value}" if probe.value else f"{probe.end}: {probe.stderr.strip()[-500:]}"
            raise SandboxError(f"expected the kernel to hold programs in, found: {found}; {_NEEDS}")

    def close(self) -> None:
        """End the idle processes; happens by itself when the sandbox is no longer used."""
        self._finalizer()

    def run(self, program: str, check: str = "") -> ProgramRun:
        """Run a program and then, among its names, a check.

        Args:
            program: Python source; runs as ``__main__``.
            check: Python source that runs after it in a copy of its names; the text of its variable ``result`` is the
                run's value. "" = nothing is checked.

        Raises:
            SandboxError: if the process could not be locked in; the program did not run then.
        """
        nonce, started = secrets.token_hex(16), time.monotonic()
        job = json.dumps({"limits": self._guest_limits(), "nonce": nonce, "program": program, "check": check})
        with _memory_files(3) as files:
            _write(files[0], job.encode())
            status, stopped = self._serve(files)
            result, stdout, stderr = (_read(file, self._file_bytes) for file in files)
        marker = sandbox_guest.LOCKED_IN.decode()
        if status == sandbox_guest.SETUP_FAILED and not result.startswith(marker):
            raise SandboxError(f"a program was not run, because it was not held in: {stderr.strip()[-500:]}; {_NEEDS}")
        is_done = status == 0 and result.startswith(marker + nonce)
        end = RunEnd(stopped) if stopped else RunEnd.DONE if is_done else _end_of(status)
        value = result.removeprefix(marker + nonce) if end is RunEnd.DONE else ""
        return ProgramRun(end, value, stdout, stderr[-_STDERR_CHARS:], time.monotonic() - started)

    def _serve(self, files: list[int]) -> tuple[int, str]:
        """Have an idle server, or a new one, run the job; a server that broke is not used again."""
        try:
            server = self._idle.get_nowait()
        except queue.Empty:
            server = _Server()
        try:
            answer = server.run(files, json.dumps(self._guest_limits()).encode(), self.limits.wall_s + _GRACE_S)
        except BaseException as error:
            server.close()
            if not isinstance(error, OSError):
                raise
            return -signal.SIGKILL, RunEnd.KILLED
        self._idle.put(server)
        return answer

    @property
    def _file_bytes(self) -> int:
        return self.limits.file_kib * 1024

    def _guest_limits(self) -> dict[str, float]:
        return {
            "wall_s": self.limits.wall_s,
            "cpu_s": self.limits.cpu_s,
            "memory_bytes": self.limits.memory_mib * 2**20,
            "file_bytes": self._file_bytes,
            "folder_bytes": self.limits.folder_mib * 2**20,
            "value_chars": _VALUE_CHARS,
        }


class _Server:
    """A process of ``sandbox_guest`` that runs one job at a time in a folder of its own."""

    def __init__(self) -> None:
        self._folder = tempfile.mkdtemp(prefix="proxykd-sandbox-")
        self._socket, theirs = socket.socketpair()
        guest = [str(Path(sandbox_guest.__file__)), str(theirs.fileno())]
        with theirs, _memory_files(1) as (stderr,):
            self._process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-s", "-S", "-P", "-B", "-X", "utf8", *guest],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stderr,
                cwd=self._folder,
                # A fixed order of sets: the same program has the same verdict in the next run.
                env={"PYTHONHASHSEED": "0"},
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
            theirs.close()
            try:
                self._answer(_GRACE_S)
            except OSError:
                self.close()
                reason = _read(stderr, _STDERR_CHARS).strip() or "no answer"
                raise SandboxError(f"programs cannot be held in on this machine: {reason}; {_NEEDS}") from None

    def run(self, files: list[int], limits: bytes, patience_s: float) -> tuple[int, str]:
        """Exit status of the job and why it was stopped; OSError if the process broke."""
        socket.send_fds(self._socket, [limits], files)
        status, _, stopped = self._answer(patience_s).partition(" ")
        for entry in os.scandir(self._folder):
            os.unlink(entry.path)
        return int(status), stopped

    def close(self) -> None:
        """End the process, which ends its program."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _answer(self, patience_s: float) -> str:
        self._socket.settimeout(patience_s)
        line = b""
        while not line.endswith(b"\n"):
            if not (part := self._socket.recv(64)):
                raise ConnectionResetError("the sandbox's process ended")
            line += part
        return line.decode().strip("\n")


_NEEDS = (
    "nothing is run without it; needed are Linux >= 5.13 with Landlock on x86-64 or ARM64, and limits that leave the "
    "interpreter room"
)


def _close_all(servers: "queue.LifoQueue[_Server]") -> None:
    with contextlib.suppress(queue.Empty):
        while True:
            servers.get_nowait().close()


@contextlib.contextmanager
def _memory_files(count: int) -> Iterator[list[int]]:
    files: list[int] = []
    try:
        files.extend(os.memfd_create("sandbox") for _ in range(count))
        yield files
    finally:
        for file in files:
            os.close(file)


def _write(file: int, content: bytes) -> None:
    with open(file, "wb", closefd=False) as writer:
        writer.write(content)


def _read(file: int, most_bytes: int) -> str:
    return os.pread(file, most_bytes, 0).decode("utf-8", "replace")


def _end_of(status: int) -> RunEnd:
    if status >= 0:
        return RunEnd.ERROR
    return RunEnd.TIMEOUT if status == -signal.SIGXCPU else RunEnd.KILLED

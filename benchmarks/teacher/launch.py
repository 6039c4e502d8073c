"""Starts the stub and the askers, each in a process of its own, and measures them from outside.

Standard library only, so that the measured processes inherit no large parent: on Linux the peak memory of a new process
begins with that of the one that started it.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

HERE = Path(__file__).resolve().parent


class Contender(NamedTuple):
    """Somebody who asks.

    Attributes:
        name: In tables.
        script: Beside this file.
        environment: Name of the peer whose virtual environment runs it; "" = this interpreter's.
        extra: More arguments.
    """

    name: str
    script: str
    environment: str = ""
    extra: tuple[str, ...] = ()


FLOOR = Contender("aiohttp", "ask_floor.py")
OURS = Contender("proxykd", "ask_ours.py")
CURATOR = Contender("curator", "ask_curator.py", "curator")
DISTILABEL_64 = Contender("distilabel-64", "ask_distilabel.py", "distilabel", ("--batch-size", "64"))
DISTILABEL_500 = Contender("distilabel-500", "ask_distilabel.py", "distilabel", ("--batch-size", "500"))


class Stub(NamedTuple):
    """A running stub.

    Attributes:
        root: Its URL.
    """

    root: str

    def base_url(self, run: str) -> str:
        """What the run ``run`` asks."""
        return f"{self.root}/{run}/v1"

    def counts(self, run: str) -> dict[str, Any]:
        """What the stub counted of it so far."""
        with urllib.request.urlopen(f"{self.root}/{run}/stats", timeout=10) as response:
            counts: dict[str, Any] = json.load(response)
        return counts


@contextmanager
def serving(*, latency_s: float, fault_rate: float, rate_limit_headers: bool = False) -> Iterator[Stub]:
    """A stub in a process of its own."""
    command = [sys.executable, str(HERE / "stub.py"), "--latency-s", str(latency_s), "--fault-rate", str(fault_rate)]
    command += ["--rate-limit-headers"] if rate_limit_headers else []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        try:
            yield Stub(f"http://127.0.0.1:{int(server.stdout.readline())}")
        finally:
            server.kill()


def command_of(
    contender: Contender, python: Path, *, base_url: str, count: int, concurrency: int, folder: Path
) -> list[str]:
    """The command line of an asker."""
    task = ["--base-url", base_url, "--count", str(count), "--concurrency", str(concurrency), "--folder", str(folder)]
    return [str(python), str(HERE / contender.script), *task, *contender.extra]


@contextmanager
def started(command: Sequence[str], folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process whose output goes to ``folder/log.txt``, in a group of its own, which is gone afterwards."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "PROXYKD_PROGRESS": "off"}
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=environment, start_new_session=True
        )
        try:
            yield process
        finally:
            kill_group(process)


def kill_group(process: "subprocess.Popen[bytes]") -> None:
    """SIGKILL for a process and all that it started."""
    try:
        os.killpg(process.pid, 9)
    except ProcessLookupError:
        return
    process.wait()


class Finished(NamedTuple):
    """A process that ended by itself.

    Attributes:
        wall_s: From its start to its end.
        cpu_s: CPU seconds of it and of the children that it waited for.
        peak_rss_mb: Of the largest of these processes.
        report: What it wrote about itself.
    """

    wall_s: float
    cpu_s: float
    peak_rss_mb: float
    report: dict[str, Any]


def run_to_end(command: Sequence[str], folder: Path, *, limit_s: float = 1800.0) -> Finished | None:
    """Run an asker; None = it was stopped after ``limit_s`` seconds.

    Raises:
        RuntimeError: if it fails, with the end of what it printed.
    """
    start_s = time.monotonic()
    with started(command, folder) as process:
        pid = 0
        while not pid and time.monotonic() - start_s < limit_s:
            time.sleep(0.01)
            pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        wall_s = time.monotonic() - start_s
        if not pid:
            return None
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        printed = (folder / "log.txt").read_text(encoding="utf-8", errors="replace")[-3000:]
        raise RuntimeError(f"expected status 0 from {command}, got {process.returncode}; it printed\n{printed}")
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    return Finished(wall_s, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024, report)


def measure(
    contender: Contender, python: Path, stub: Stub, *, run: str, count: int, concurrency: int
) -> dict[str, Any]:
    """One run of one contender against the stub.

    Args:
        contender: Who asks.
        python: Its interpreter.
        stub: Who answers.
        run: Name of the run.
        count: Number of questions.
        concurrency: Most calls in flight.

    Returns:
        The row of the results; times in seconds, memory in MiB.
    """
    with tempfile.TemporaryDirectory(prefix="teacher-") as name:
        folder = Path(name)
        base_url = stub.base_url(run)
        command = command_of(contender, python, base_url=base_url, count=count, concurrency=concurrency, folder=folder)
        finished = run_to_end(command, folder)
    if finished is None:
        raise RuntimeError(f"{contender.name} did not end")
    counts, report = stub.counts(run), finished.report
    asking_s = counts["last_answer_s"] - counts["first_call_s"]
    asking_cpu_s = finished.cpu_s - report["start_up_cpu_s"]
    return {
        "name": contender.name,
        "run": run,
        "delivered": report["delivered"],
        "requests_per_s": round(count / asking_s, 1),
        "asking_s": round(asking_s, 3),
        "process_s": round(finished.wall_s, 3),
        "cpu_s_per_1000": round(1000 * asking_cpu_s / count, 3),
        "server_cpu_s_per_1000": round(1000 * counts["cpu_s"] / count, 3),
        "peak_rss_mib": round(finished.peak_rss_mb),
        "extra_calls": counts["calls"] - count,
        "paid_twice": counts["paid_twice"],
        "peak_in_flight": counts["peak_in_flight"],
        "load": [round(load, 1) for load in os.getloadavg()],
        "versions": report["versions"],
        "settings": report["settings"],
    }

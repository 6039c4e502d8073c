"""What pods of the stand-in cluster take while they run, seen from outside: of the clock, the processor and memory."""

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TICKS = os.sysconf("SC_CLK_TCK")


@dataclass
class Taken:
    """By a pod, of whose containers the first is looked at.

    Attributes:
        labels: The pod's.
        seconds: From its start until it was last seen running.
        processor_s: Of its first process, which is not what trains where that is torchrun.
        peak_mib: Of the same.
    """

    labels: Mapping[str, str]
    seconds: float = 0.0
    processor_s: float = 0.0
    peak_mib: float = 0.0


@contextmanager
def watched(kubelet: Any, every_s: float) -> Iterator[dict[str, Taken]]:
    """What each pod takes that runs while the context lasts, by its uid.

    Args:
        kubelet: The stand-in's, whose pods are processes of this machine.
        every_s: How often it is looked at.
    """
    taken: dict[str, Taken] = {}
    is_over = threading.Event()

    def watch() -> None:
        while not is_over.wait(every_s):
            for uid, running in list(kubelet._running.items()):
                first = next(iter(running.processes.values()))
                if first.poll() is None:
                    one = taken.setdefault(uid, Taken(running.pod["metadata"].get("labels") or {}))
                    one.seconds = time.monotonic() - running.began
                    one.processor_s = max(one.processor_s, processor_s(first.process.pid))
                    one.peak_mib = max(one.peak_mib, peak_mib(first.process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield taken
    finally:
        is_over.set()
        thread.join()


def peak_mib(pid: int | str = "self") -> float:
    """Peak resident memory of a process, 0 if it has ended; getrusage's begins with that of the one that started it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    return next((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), 0.0)


def processor_s(pid: int | str = "self") -> float:
    """Seconds of processor time of a process so far, all threads together; 0 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    # The second field is a name in parentheses, which may have blanks; user and system time are the 14th and 15th.
    user, system = stat.rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / TICKS

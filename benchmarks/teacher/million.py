"""A million prompts: ``python benchmarks/teacher/million.py``.

Three questions, each answered in processes of their own. How soon does a rerun know that the journal has an answer to
everything, and how much memory does that take? How long does it take to write the completions from the journal? Does
the memory of asking grow with the number of prompts? The journal of the first two is filled directly, without a server.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from asker import Task
from launch import HERE, OURS, measure, serving

NOBODY = "http://127.0.0.1:9/v1"
"""Nobody answers there, and nobody has to."""


def fill(task: Task) -> dict[str, Any]:
    """Write the prompts, and a journal with an answer to each."""
    from ask_ours import specification, write_prompts

    from proxykd.artifacts import batched
    from proxykd.teacher.entries import Entry
    from proxykd.teacher.journal import Journal
    from proxykd.teacher.live import LiveTeacher
    from proxykd.teacher.replies import Reply

    run = specification(task)
    teacher = LiveTeacher.of(run, run.teacher)
    reply = Reply("An answer of some length. " * 8, "", "stop", prompt_tokens=20, completion_tokens=60, model="stub")
    prompts = write_prompts(task)
    with Journal(task.folder / "journal.sqlite") as journal:
        for batch in batched(teacher.requests(prompts), 10_000):
            journal.commit(Entry(request.key, reply, True, request.asked) for _, _, request in batch)
    return {"journal_mib": round((task.folder / "journal.sqlite").stat().st_size / 2**20)}


def plan(task: Task) -> dict[str, Any]:
    """Count what is known, as the plan of a run does."""
    from ask_ours import specification

    from proxykd.artifacts import PromptSet
    from proxykd.teacher.query import look_ahead_all

    start_s = time.perf_counter()
    *_, outlook = look_ahead_all(
        PromptSet(task.folder / "prompts"), specification(task), journal_path=task.folder / "journal.sqlite"
    )
    assert outlook.first_unknown is None, f"expected nothing left to ask, got {outlook}"
    return {"known": outlook.num_known, "seconds": round(time.perf_counter() - start_s, 2)}


def start(task: Task) -> dict[str, Any]:
    """Ask what is missing, which is nothing."""
    from ask_ours import specification

    from proxykd.artifacts import PromptSet
    from proxykd.teacher.asking import ask_all
    from proxykd.teacher.journal import Journal
    from proxykd.teacher.live import LiveTeacher

    run = specification(task)
    start_s = time.perf_counter()
    with Journal(task.folder / "journal.sqlite") as journal:
        ask_all(LiveTeacher.of(run, run.teacher), PromptSet(task.folder / "prompts"), journal)
    return {"seconds": round(time.perf_counter() - start_s, 2)}


def write(task: Task) -> dict[str, Any]:
    """The whole stage on the full journal: ask nothing, write the completions, seal them."""
    from ask_ours import ask_all

    from proxykd.artifacts import PromptSet

    start_s = time.perf_counter()
    delivered = ask_all(task, PromptSet(task.folder / "prompts"))
    return {"seconds": round(time.perf_counter() - start_s, 2), "delivered": delivered}


PHASES = {"fill": fill, "plan": plan, "start": start, "write": write}


def run_phase(phase: str, count: int, folder: Path) -> dict[str, Any]:
    """Run one phase in a process of its own; what it says, and its CPU seconds and peak memory."""
    command = [sys.executable, __file__, "--phase", phase, "--count", str(count), "--folder", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1]), "PROXYKD_PROGRESS": "off"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        said = json.loads(process.stdout.read())
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    cpu_s, peak_rss_mib = round(usage.ru_utime + usage.ru_stime, 2), round(usage.ru_maxrss / 1024)
    return {"phase": phase, "count": count, **said, "cpu_s": cpu_s, "peak_rss_mib": peak_rss_mib}


def measure_memory(counts: list[int], concurrency: int) -> None:
    """Peak memory while so many prompts are asked, each count in a process of its own."""
    with serving(latency_s=0.02, fault_rate=0.0) as stub:
        for count in counts:
            row = measure(OURS, Path(sys.executable), stub, run=f"asked-{count}", count=count, concurrency=concurrency)
            print(json.dumps({"phase": "ask", "count": count, **row}), flush=True)


def main() -> None:
    """Measure and print one JSON object a line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1_000_000, help="prompts in the journal; 0 = no such run")
    parser.add_argument(
        "--asked", type=int, nargs="*", default=[50_000, 200_000], help="prompts asked through a server"
    )
    parser.add_argument("--concurrency", type=int, default=64, help="most calls in flight")
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.phase:
        task = Task(NOBODY, given.count, given.concurrency, given.folder, batch_size=1)
        print(json.dumps(PHASES[given.phase](task)))
        return
    if given.count:
        with tempfile.TemporaryDirectory(prefix="teacher-") as folder:
            for phase in PHASES:
                print(json.dumps(run_phase(phase, given.count, Path(folder))), flush=True)
    measure_memory(given.asked, given.concurrency)


if __name__ == "__main__":
    main()

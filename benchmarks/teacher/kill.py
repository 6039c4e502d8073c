"""Calls paid for after SIGKILL: ``python benchmarks/teacher/kill.py``.

600 questions, 32 in flight, 150 ms each, no faults. The asker is killed at a random moment, together with all that it
started, and started again to the end, ten times over; the stub counts every call. A call that leaves is paid for, so
600 would be ideal and 600 + 32 is what no asker can avoid. The same for the peers beside it, with fewer kills, because
what counts is the largest.
"""

import argparse
import json
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from environments import python_of
from launch import CURATOR, DISTILABEL_64, OURS, Contender, Stub, command_of, run_to_end, serving, started

CONTENDERS = (OURS, CURATOR, DISTILABEL_64)


def kill_and_repeat(
    contender: Contender, python: Path, stub: Stub, *, run: str, given: argparse.Namespace, kill_at: int
) -> dict[str, Any]:
    """Kill an asker once ``kill_at`` calls have come, start it again, and tell what the stub counted."""
    with tempfile.TemporaryDirectory(prefix="teacher-") as name:
        folder = Path(name)
        command = command_of(
            contender,
            python,
            base_url=stub.base_url(run),
            count=given.count,
            concurrency=given.concurrency,
            folder=folder,
        )
        with started(command, folder) as process:
            while stub.counts(run)["calls"] < kill_at and process.poll() is None:
                time.sleep(0.005)
            assert process.poll() is None, f"expected {contender.name} to ask on, it ended; see {folder}/log.txt"
        time.sleep(2 * given.latency_s)  # what was in flight reaches the stub's count of answers, or never will
        at_kill = stub.counts(run)
        finished = run_to_end(command, folder, limit_s=given.limit_s)
    counts = stub.counts(run)
    return {
        "name": contender.name,
        "run": run,
        "calls_at_kill": at_kill["calls"],
        "calls_in_all": counts["calls"],
        "paid_twice": counts["paid_twice"],
        "delivered": finished.report["delivered"] if finished else None,
        "note": "" if finished else f"did not end within {given.limit_s:g} s of its second start",
    }


def main() -> None:
    """Kill, count and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=600, help="questions a run")
    parser.add_argument("--concurrency", type=int, default=32, help="most calls in flight")
    parser.add_argument("--latency-s", type=float, default=0.15, help="of every call")
    parser.add_argument("--kills", type=int, default=10, help="kills of ours")
    parser.add_argument("--peer-kills", type=int, default=3, help="kills of each peer")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--limit-s", type=float, default=120.0, help="seconds that a second start may take")
    names = [contender.name for contender in CONTENDERS]
    parser.add_argument("--only", nargs="+", choices=names, default=names, help="who is killed")
    parser.add_argument("--environments", type=Path, default=Path(".venv-peers"), help="folder of the peers' own")
    given = parser.parse_args()
    rng = random.Random(given.seed)
    moments = [rng.randrange(given.concurrency, given.count - given.concurrency) for _ in range(given.kills)]
    with serving(latency_s=given.latency_s, fault_rate=0.0) as stub:
        for contender in (contender for contender in CONTENDERS if contender.name in given.only):
            python, rows = python_of(contender.environment, given.environments), []
            for trial, kill_at in enumerate(moments if contender is OURS else moments[: given.peer_kills]):
                run = f"{contender.name}.{trial}"
                row = kill_and_repeat(contender, python, stub, run=run, given=given, kill_at=kill_at)
                rows.append(row)
                print(json.dumps({**row, "kill_at": kill_at}), flush=True)
            totals = [row["calls_in_all"] for row in rows if row["delivered"] == given.count]
            text = f"at most {max(totals)} calls, of {totals}" if totals else "no run was completed"
            print(
                f"{contender.name}: {text}, for {given.count} answers; {len(rows) - len(totals)} not completed",
                flush=True,
            )


if __name__ == "__main__":
    main()

"""What faults cost: ``python benchmarks/reliability/table.py`` prints the table of docs/reliability.md.

Each line is one fault, on 1,000 questions of which eight are answered badly whatever happens. The asker is a process of
its own that calls ``proxykd.querying.query``, as a user would; where it ends with an error it is mended as its message
says and started again, until it ends well. The endpoint writes every completion that goes out into a ledger: a question
that occurs there twice was paid for twice.
"""

import argparse
import json
import os
import random
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from server import SPECIAL

HERE = Path(__file__).parent
COUNT = 1000
PRICE = {"input_usd_per_million": 1000.0, "output_usd_per_million": 2000.0}
USD_A_CALL = (20 * 1000 + 60 * 2000) / 1e6
FATES = ("ok", "refused", "truncated", "filtered", "failed")


@dataclass
class Lab:
    """One fault under test.

    Attributes:
        folder: Everything of it.
        port: Of the endpoint.
        runs: How often the asker was started.
        notes: What was seen on the way.
    """

    folder: Path
    port: int
    runs: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def journal(self) -> Path:
        """The journal of the asker."""
        return self.folder / "journal.sqlite"

    @contextmanager
    def endpoint(self, *arguments: object) -> Iterator["subprocess.Popen[bytes]"]:
        """An endpoint that runs while the context lasts."""
        command = [sys.executable, HERE / "server.py", self.port, self.folder / "ledger", *arguments]
        with subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            try:
                yield server
            finally:
                server.kill()

    def start(self, name: str = "answers", *, setting: str = "", **teacher: Any) -> "subprocess.Popen[str]":
        """Start an asker; its answers go to ``NAME.jsonl``."""
        self.runs += 1
        section = {"kind": "openai", "base_url": f"http://127.0.0.1:{self.port}/v1", "model": "stub", "price": PRICE}
        section |= {"concurrency": 32, "sampling": {"max_tokens": 60}, "max_attempts": 12, "timeout_s": 30.0, **teacher}
        task = {"teacher": section, "folder": str(self.folder), "name": name, "setting": setting}
        command = [sys.executable, str(HERE / "table.py"), "--ask", json.dumps(task)]
        environment = {**os.environ, "PROXYKD_PROGRESS": "off", "XDG_RUNTIME_DIR": str(self.folder)}
        return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)

    def ask(self, **how: Any) -> str:
        """Run an asker to its end; the message with which it failed, "" = it did not."""
        _, errors = self.start(**how).communicate(timeout=300)
        return errors.strip().splitlines()[-1] if errors.strip() else ""

    def ask_until_done(self, *, most: int = 6, **how: Any) -> None:
        """Start the asker again while it fails."""
        for _ in range(most):
            if not (message := self.ask(**how)):
                return
            self.notes.append(message)
        raise RuntimeError(f"expected an end within {most} runs, got {self.notes}")


def ask(task: dict[str, Any]) -> None:
    """Be the asker."""
    import proxykd.teacher.query as stage
    from proxykd.exceptions import ProxykdError
    from proxykd.querying import query
    from proxykd.teacher.journal import Journal
    from proxykd.teacher.journal_sql import connect

    folder = Path(task["folder"])
    if task["setting"] == "full disk":

        def small(path: Path) -> sqlite3.Connection:
            connection = connect(path)
            connection.execute("PRAGMA max_page_count=60")
            return connection

        stage.Journal = lambda path: Journal(path, small)  # type: ignore[assignment, misc]
    if task["setting"] == "jumping clock":
        rng, true_time = random.Random(0), time.time
        time.time = lambda: true_time() + rng.choice((-86400.0, 0.0, 86400.0))
    try:
        query(folder / "questions.jsonl", task["teacher"], output=folder / f"{task['name']}.jsonl",
              journal=folder / "journal.sqlite")  # fmt: skip
    except ProxykdError as error:
        sys.exit(f"{type(error).__name__}: {error}")


def faults(rate: float) -> Callable[[Lab], float]:
    """So many calls get 429, 500, 503 or a broken connection, in equal parts."""

    def run(lab: Lab) -> float:
        with lab.endpoint("--fault-rate", rate):
            lab.ask_until_done()
        return 0.0

    return run


def storm(lab: Lab) -> float:
    """The endpoint allows 100 calls a second and answers all others with 429."""
    with lab.endpoint("--per-second", 100):
        lab.ask_until_done()
    return 0.0


def hung(lab: Lab) -> float:
    """Two calls in a hundred never get an answer."""
    with lab.endpoint("--hang-rate", 0.02):
        lab.ask_until_done(timeout_s=1.0)
    return 0.0


def death(lab: Lab) -> float:
    """The endpoint dies in the middle and is back three seconds later."""
    with lab.endpoint() as server:
        asker = lab.start()
        wait_for(lambda: len(ledger_of(lab)) > COUNT // 2)
        server.kill()
        server.wait()
    time.sleep(3.0)
    with lab.endpoint():
        _, errors = asker.communicate(timeout=300)
        if errors:
            lab.notes.append(errors.strip().splitlines()[-1])
            lab.ask_until_done()
    return 0.0


def full_disk(lab: Lab) -> float:
    """The journal may not grow beyond 60 pages, then it may."""
    with lab.endpoint():
        lab.notes.append(lab.ask(setting="full disk"))
        lab.ask_until_done()
    return 0.0


def corruption(lab: Lab) -> float:
    """Three answers in the journal are damaged after the run."""
    with lab.endpoint():
        lab.ask_until_done()
        with sqlite3.connect(lab.journal) as journal:
            journal.execute("UPDATE answers SET reply = replace(reply, 'An', 'No') WHERE seq IN (7, 77, 777)")
        journal.close()
        lab.notes.append(lab.ask())
        command = [sys.executable, "-c", "from proxykd.cli import main; main()", "journal", "verify", "--drop-damaged"]
        subprocess.run([*command, "--journal", str(lab.journal)], check=True, stdout=subprocess.DEVNULL)
        lab.ask_until_done()
    return 0.0


def two_runs(lab: Lab) -> float:
    """Two processes ask the same at once."""
    with lab.endpoint():
        askers = [lab.start(name) for name in ("answers", "answers-too")]
        for asker in askers:
            _, errors = asker.communicate(timeout=300)
            assert not errors, errors
    texts = [(lab.folder / f"{name}.jsonl").read_text() for name in ("answers", "answers-too")]
    assert texts[0] == texts[1], "expected the same answers from both"
    return 0.0


def clock(lab: Lab) -> float:
    """The wall clock jumps by a day at every look; 429 with Retry-After as a date."""
    with lab.endpoint("--per-second", 200):
        lab.ask_until_done(setting="jumping clock")
    return 0.0


def cap(lab: Lab) -> float:
    """The cap allows half of the calls, 20 % of calls fail, and it is raised at the end."""
    half = USD_A_CALL * COUNT / 2
    with lab.endpoint("--fault-rate", 0.2):
        lab.notes.append(lab.ask(budget={"usd": half}))
        over = max(0.0, USD_A_CALL * len(ledger_of(lab)) - half)
        lab.ask_until_done(budget={"usd": 10 * half})
    return over


SCENARIOS: dict[str, Callable[[Lab], float]] = {
    "none": faults(0.0),
    "5 % of calls fail": faults(0.05),
    "20 % of calls fail": faults(0.2),
    "50 % of calls fail": faults(0.5),
    "a storm of 429": storm,
    "hung calls": hung,
    "a server that dies and comes back": death,
    "a full disk": full_disk,
    "a corrupted journal (3 answers destroyed)": corruption,
    "two runs on one journal": two_runs,
    "a clock that jumps": clock,
    "a cap hit in mid-run, then raised": cap,
}


def ledger_of(lab: Lab) -> list[str]:
    """Questions whose completions went out."""
    path = lab.folder / "ledger"
    return path.read_text().splitlines() if path.exists() else []


def wait_for(is_true: Callable[[], bool], *, limit_s: float = 60.0) -> None:
    """Wait until something holds."""
    deadline_s = time.monotonic() + limit_s
    while not is_true():
        if time.monotonic() > deadline_s:
            raise TimeoutError("waited too long")
        time.sleep(0.01)


def free_port() -> int:
    """A port of loopback that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def measure(name: str, folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Go through one fault; its line of the table, and what was seen."""
    lab = Lab(folder, free_port())
    questions = [*SPECIAL, *(f"question {number}" for number in range(COUNT - len(SPECIAL)))]
    random.Random(0).shuffle(questions)
    (folder / "questions.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in questions))
    started_s = time.monotonic()
    over_cap = SCENARIOS[name](lab)
    rows = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    fates, ledger = Counter(row["outcome"] for row in rows), ledger_of(lab)
    lost = len(questions) - len({row["messages"][-1]["content"] for row in rows})
    line = {
        "fault": name,
        "rows in": len(questions),
        **{fate: fates[fate] for fate in FATES},
        "calls paid": len(ledger),
        "paid twice": len(ledger) - len(set(ledger)),
        "USD over the cap": round(over_cap, 4),
        "rows lost": lost,
        "runs": lab.runs,
        "seconds": round(time.monotonic() - started_s, 1),
    }
    return line, lab.notes


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="faults whose name contains this")
    parser.add_argument("--ask", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.ask:
        ask(json.loads(given.ask))
        return
    header = [
        "fault",
        "rows in",
        *FATES,
        "calls paid",
        "paid twice",
        "USD over the cap",
        "rows lost",
        "runs",
        "seconds",
    ]
    print(f"| {' | '.join(header)} |\n|{'---|' * len(header)}", flush=True)
    seen: dict[str, list[str]] = {}
    for name in SCENARIOS:
        if given.only in name:
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="reliability-")))
                line, seen[name] = measure(name, folder)
            print(f"| {' | '.join(str(line[column]) for column in header)} |", flush=True)
    for name, notes in seen.items():
        for note in notes:
            print(f"\n{name}: {note}")


if __name__ == "__main__":
    main()

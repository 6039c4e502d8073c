"""What crashes and races cost: ``python benchmarks/evaluation/registry_faults.py`` prints docs/registry.md's table.

Real stores: MLflow on a SQLite file, and an MLflow server on PostgreSQL. Each actor is a process of its own that calls
what a run or the command line calls. A crash is a SIGKILL right before the actor's k-th write, or after its last one;
then the same call is made again by a new process. In a race two processes wait for the same moment and promote two
versions, both expecting the same champion.

    lost      a promotion that was reported as done, or begun and made again, and is not in effect
    double    a promotion that took effect twice; in a race, two that took effect, or nobody was told of the other
    wedged    an actor that does not get on because of one who died
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from proxykd.evaluation.decision import Decision
from proxykd.exceptions import PromotionError
from tests.support.mlflow_servers import mlflow_server, postgresql

NAME, PATIENCE_S, WEDGED_S = "student", 0.3, 60.0
WRITES = (
    "create_registered_model",
    "create_logged_model",
    "log_model_artifacts",
    "finalize_logged_model",
    "create_model_version",
    "set_model_version_tag",
    "delete_model_version_tag",
    "delete_model_version",
    "set_registered_model_alias",
    "delete_registered_model_alias",
)


@dataclass
class Row:
    """A line of the table.

    Attributes:
        store: Where.
        what: Which actor.
        where: Where it is hit.
        trials: How often.
        seen: Faults that were found.
    """

    store: str
    what: str
    where: str
    trials: int = 0
    seen: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """As a row of Markdown."""
        faults = " | ".join(str(self.seen[name]) for name in ("lost", "double", "wedged"))
        return f"| {self.store} | {self.what} | {self.where} | {self.trials} | {faults} |"


def start(act: Callable[[], Any], kill_at: int | None = None, gate: int | None = None) -> tuple[int, int]:
    """Do something in a process of its own; its pid and a pipe from which its result can be read as JSON.

    Args:
        act: What.
        kill_at: The write before which it is killed.
        gate: A pipe whose end is waited for first.
    """
    reading, writing = os.pipe()
    if pid := os.fork():
        os.close(writing)
        return pid, reading
    status = 1
    try:
        _leave_connections()
        if kill_at is not None:
            _arm(kill_at)
        if gate is not None:
            os.read(gate, 1)
        try:
            result = act()
        except PromotionError as error:
            result = {"refused": str(error)}
        os.write(writing, json.dumps(result).encode())
        if kill_at is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        status = 0
    finally:
        os._exit(status)


def _leave_connections() -> None:
    """Leave open connections to the process that opened them."""
    from steps.adapters.mlflow_tracking import connect

    client = connect()
    for store in (client._tracking_client.store, client._get_registry_client().store):
        if (engine := getattr(store, "engine", None)) is not None:
            engine.dispose(close=False)


def _arm(kill_at: int) -> None:
    """Kill this process right before its ``kill_at``-th write; a seam at the client, so that every store has it."""
    from mlflow import MlflowClient

    left = [kill_at]

    def counted(write: Callable[..., Any], *given: Any, **named: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(*given, **named)

    for name in WRITES:
        write = getattr(MlflowClient, name)
        setattr(MlflowClient, name, lambda *given, _write=write, **named: counted(_write, *given, **named))


def finish(started: tuple[int, int]) -> Any:
    """The result of a process; None = it was killed, "wedged" = it did not end in time."""
    pid, reading = started
    text, deadline = b"", time.monotonic() + WEDGED_S
    while not (ended := os.waitpid(pid, os.WNOHANG))[0] and time.monotonic() < deadline:
        time.sleep(0.005)
    if not ended[0]:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        return "wedged"
    with os.fdopen(reading, "rb") as pipe:
        text = pipe.read()
    if ended[1] == 256:
        raise RuntimeError("an actor failed; its traceback is above")
    return json.loads(text) if text else None


def done(act: Callable[[], Any]) -> Any:
    """What an undisturbed process makes of it."""
    return finish(start(act))


def promote(version: str, expected: str) -> Any:
    """By hand."""
    from steps.adapters import mlflow_promotion

    found = mlflow_promotion.promote(NAME, version, expected=expected, patience_s=PATIENCE_S)
    return {"champion": found.standing.champion, "is_new": found.is_new}


def rollback() -> Any:
    """By hand."""
    from steps.adapters import mlflow_promotion

    return {"champion": mlflow_promotion.rollback(NAME, patience_s=PATIENCE_S).standing.champion}


def run(folder: Path, student: str) -> Any:
    """What a run does at its end: decide, register, promote."""
    from steps.adapters import mlflow_registry

    registered = mlflow_registry.find_student(NAME, student)
    if registered is None or mlflow_registry.applied_decision(registered, patience_s=PATIENCE_S) is None:
        champion = mlflow_registry.find_champion(NAME, patience_s=PATIENCE_S)
        decision = Decision("promote", ("it is better",), (), champion.version if champion else None)
        registered = registered or mlflow_registry.register_student(
            folder, model_name=NAME, student_hash=student, experiment="faults", model_card="# Student"
        )
        mlflow_registry.apply_decision(registered, decision, patience_s=PATIENCE_S)
    return {"version": registered.version, "aliases": mlflow_registry.aliases_of(registered)}


def state() -> Any:
    """What the registry says."""
    from steps.adapters import mlflow_promotion
    from steps.adapters.mlflow_tracking import connect

    client, found = connect(), mlflow_promotion.history(NAME, limit=30)
    aliases = {name: str(version) for name, version in client.get_registered_model(NAME).aliases.items()}
    newest = client.search_model_versions(f"name = '{NAME}'", 1, order_by=["version_number DESC"])
    return {
        "champion": found.champion,
        "by_log": found.standing.champion,
        "previous": aliases.get("previous-champion"),
        "line": list(found.standing.line),
        "number": found.standing.number,
        "in_effect": sorted(found.in_effect),
        "is_settled": found.is_settled,
        "newest": int(newest[0].version),
    }


def is_once(before: Any, now: Any) -> bool:
    """Whether exactly one entry took effect since."""
    return sum(number > before["number"] for number in now["in_effect"]) == 1


def is_whole(now: Any) -> bool:
    """Whether aliases and log agree."""
    previous = now["line"][-1] if now["line"] else None
    return now["is_settled"] and now["champion"] == now["by_log"] and now["previous"] == previous


def crashes_by_hand(store: str, trials: int) -> Iterator[Row]:
    """Promotion and rollback."""
    for what in ("promote", "rollback"):
        for point in range(1, 6):
            row = Row(store, what, "after the last write" if point == 5 else f"before write {point}")
            for _ in range(trials):
                row.trials += 1
                before = _with_former_champions()
                others = [version for version in ("1", "2", "3") if version != before["champion"]]
                target = others[0] if what == "promote" else before["line"][-1]
                act = partial(promote, target, "any") if what == "promote" else rollback
                crashed = finish(start(act, kill_at=point))
                # Whoever was interrupted looks whether it is begun: then any call completes it, else it is made again.
                is_begun = state()["by_log"] == target
                again = done(partial(promote, target, "any") if is_begun else act)
                now = state()
                row.seen["wedged"] += "wedged" in (crashed, again)
                row.seen["lost"] += now["champion"] != target or not is_whole(now)
                row.seen["double"] += not is_once(before, now)
            yield row


def _with_former_champions() -> Any:
    now = state()
    while len(now["line"]) < 2:
        for version in ("1", "2", "3"):
            done(partial(promote, version, "any"))
        now = state()
    return now


def crashes_of_runs(store: str, trials: int, folder: Path) -> Iterator[Row]:
    """Registration, decision and promotion, as a run does them."""
    point, is_past_the_end = 0, False
    while not is_past_the_end:
        point += 1
        row = Row(store, "run", f"before write {point}")
        for trial in range(trials):
            row.trials += 1
            student, before = f"{store}-{point}-{trial}".encode().hex(), state()
            crashed = finish(start(partial(run, folder, student), kill_at=point))
            is_past_the_end = crashed is not None and crashed != "wedged"
            again = done(partial(run, folder, student))
            now = state()
            row.seen["wedged"] += "wedged" in (crashed, again)
            row.seen["lost"] += now["champion"] != again["version"] or not is_whole(now)
            row.seen["double"] += not is_once(before, now)
            row.seen["double"] += now["newest"] != before["newest"] + 1
        if is_past_the_end:
            row.where = "after the last write"
        yield row


def races(store: str, pairs: int) -> Iterator[Row]:
    """Two promoters at once, both expecting the same champion."""
    row = Row(store, "two promoters at once", "-")
    for _ in range(pairs):
        row.trials += 1
        before = state()
        rivals = [version for version in ("1", "2", "3") if version != before["champion"]][:2]
        reading, writing = os.pipe()
        acts = [partial(promote, version, before["champion"]) for version in rivals]
        both = [start(act, gate=reading) for act in acts]
        time.sleep(0.02)
        os.close(reading)
        os.write(writing, b"ab")
        os.close(writing)
        told = [finish(one) for one in both]
        now = state()
        winners = [
            version for version, said in zip(rivals, told, strict=True) if said != "wedged" and "champion" in said
        ]
        row.seen["wedged"] += told.count("wedged")
        row.seen["lost"] += now["champion"] not in winners or not is_whole(now)
        row.seen["double"] += len(winners) != 1 or not is_once(before, now)
    yield row


@contextmanager
def sqlite(folder: Path) -> Iterator[str]:
    """MLflow on a file."""
    yield f"sqlite:///{folder / 'mlflow.db'}"


@contextmanager
def server_on_postgresql(folder: Path) -> Iterator[str]:
    """An MLflow server on PostgreSQL."""
    with postgresql() as database, mlflow_server(folder, database) as address:
        yield address


STORES = {"SQLite": sqlite, "PostgreSQL": server_on_postgresql}


def _small_model(folder: Path) -> Path:
    folder.mkdir()
    for name in ("config.json", "tokenizer_config.json", "model.safetensors"):
        (folder / name).write_text("{}", encoding="utf-8")
    return folder


def _prepare() -> None:
    """Three versions by hand, the first of which is champion."""
    from steps.adapters.mlflow_tracking import connect

    client = connect()
    client.create_registered_model(NAME)
    for number in "123":
        logged = client.create_logged_model(
            client.get_experiment_by_name("Default").experiment_id, name="student", tags={"number": number}
        )
        client.create_model_version(NAME, source=f"models:/{logged.model_id}", model_id=logged.model_id)
    promote("1", "none")


def main() -> None:
    """Print the table; exit status 1 if anything was lost, double or wedged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--crashes", type=int, default=50, help="crashes at every write point")
    parser.add_argument("--pairs", type=int, default=100, help="pairs of concurrent promoters")
    parser.add_argument("--stores", nargs="+", choices=STORES, default=list(STORES))
    given, seen = parser.parse_args(), Counter[str]()
    os.environ |= {"MLFLOW_DISABLE_TELEMETRY": "true", "PROXYKD_PROGRESS": "off", "MLFLOW_LOGGING_LEVEL": "ERROR"}
    import mlflow.pyfunc
    import mlflow.transformers  # noqa: F401  before the processes part, so that each starts at once

    import steps.adapters.mlflow_registry  # noqa: F401

    print("| store | actor | killed | trials | lost | double | wedged |\n|---|---|---|---:|---:|---:|---:|", flush=True)
    for store in given.stores:
        with tempfile.TemporaryDirectory(prefix="proxykd-faults-") as name, STORES[store](Path(name)) as address:
            folder = Path(name)
            os.environ |= {"MLFLOW_TRACKING_URI": address, "PROXYKD_HOME": str(folder / "home")}
            model = _small_model(folder / "model")
            _prepare()
            rows = (
                races(store, given.pairs),
                crashes_by_hand(store, given.crashes),
                crashes_of_runs(store, given.crashes, model),
            )
            for row in (row for some in rows for row in some):
                print(row, flush=True)
                seen += row.seen
    sys.exit(1 if sum(seen.values()) else 0)


if __name__ == "__main__":
    main()

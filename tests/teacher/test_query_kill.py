"""Runs that are killed or interrupted in processes of their own, and what the next run pays."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from proxykd.config.specification import RunSpec
from proxykd.records import Outcome
from proxykd.teacher.query import collect_prompts, query_teacher
from proxykd.teacher.server import MODEL
from proxykd.teacher.serving import embedded_teacher

pytestmark = pytest.mark.integration
_COUNT, _CONCURRENCY = 300, 8
_ASK = """
import signal
import sys
from pathlib import Path
from proxykd.config.specification import RunSpec
from proxykd.teacher.query import collect_prompts, query_teacher
# A parent that runs in the background may have SIGINT ignored, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
class Told(Exception):
    pass
def tell(*_):  # as a pipeline's step is told that its pod must go
    raise Told
signal.signal(signal.SIGTERM, tell)
folder, run = Path(sys.argv[1]), RunSpec.model_validate_json(sys.argv[2])
prompts = collect_prompts(run.prompts, seed=run.seed, output=folder / "killed-prompts")
query_teacher(prompts, run, journal_path=folder / "journal.sqlite", output=folder / "killed")
"""


@pytest.fixture
def server() -> Iterator[str]:
    with embedded_teacher(seed=0, max_seconds=60, latency_ms=20) as url:
        yield url


@pytest.fixture
def run(server: str, make_run: Callable[..., RunSpec], tmp_path: Path) -> RunSpec:
    source = make_run({"kind": "embedded"}, None, prompts={"kind": "embedded", "count": _COUNT})
    prompts = collect_prompts(source.prompts, seed=0, output=tmp_path / "source")
    rows = [{"prompt": prompt.messages[0].content} for prompt in prompts.rows()]
    teacher = {"kind": "openai", "base_url": server, "model": MODEL, "concurrency": _CONCURRENCY}
    return make_run(teacher, rows)


def _num_calls(server: str) -> int:
    with urllib.request.urlopen(server.removesuffix("/v1") + "/stats", timeout=10) as response:
        return int(json.load(response)["calls"])


def _stop_halfway(run: RunSpec, server: str, folder: Path, how: signal.Signals) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-c", _ASK, str(folder), run.model_dump_json()]
    with subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True) as asker:
        while asker.poll() is None and _num_calls(server) < _COUNT // 2:
            time.sleep(0.005)
        os.kill(asker.pid, how)
        _, errors = asker.communicate(timeout=60)
        return subprocess.CompletedProcess(command, asker.returncode, None, errors)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_goes_on_and_pays_for_nothing_twice(
    run: RunSpec, server: str, tmp_path: Path, how: signal.Signals
) -> None:
    stopped = _stop_halfway(run, server, tmp_path, how)
    assert stopped.returncode != 0
    last_words = {signal.SIGINT: b"KeyboardInterrupt", signal.SIGTERM: b"Told"}
    assert last_words.get(how, b"") in stopped.stderr
    with sqlite3.connect(tmp_path / "journal.sqlite") as journal:
        (num_known,) = journal.execute("SELECT count(*) FROM answers").fetchone()
    journal.close()
    assert _num_calls(server) - _CONCURRENCY <= num_known < _COUNT
    prompts = collect_prompts(run.prompts, seed=run.seed, output=tmp_path / "prompts")
    completions = query_teacher(prompts, run, journal_path=tmp_path / "journal.sqlite", output=tmp_path / "resumed")
    assert _num_calls(server) <= _COUNT + _CONCURRENCY
    assert {row.outcome for row in completions.rows()} == {Outcome.OK}
    fresh = query_teacher(prompts, run, journal_path=tmp_path / "other.sqlite", output=tmp_path / "fresh")
    assert fresh.hash == completions.hash


def test_the_embedded_teacher_is_started_asked_and_stopped(make_run: Callable[..., RunSpec], tmp_path: Path) -> None:
    run = make_run({"kind": "embedded"})
    prompts = collect_prompts(run.prompts, seed=run.seed, output=tmp_path / "prompts")
    completions = query_teacher(prompts, run, journal_path=tmp_path / "journal.sqlite", output=tmp_path / "one")
    rows = list(completions.rows())
    assert [row.prompt_id for row in rows] == [prompt.prompt_id for prompt in prompts.rows()]
    assert all(row.outcome is Outcome.OK and "\n#### " in row.text for row in rows)
    other = query_teacher(prompts, run, journal_path=tmp_path / "other.sqlite", output=tmp_path / "two")
    assert other.hash == completions.hash

"""A process that is killed after a batch was made, before it could write the batch's id down or while it waits."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from proxykd.config.specification import RunSpec
from proxykd.records import Outcome
from proxykd.teacher.query import collect_prompts, query_teacher
from tests.teacher.batches.conftest import BatchServer

pytestmark = pytest.mark.integration
_ASK = """
import sys
from pathlib import Path
from proxykd.config.specification import RunSpec
from proxykd.teacher.query import collect_prompts, query_teacher
folder, run = Path(sys.argv[1]), RunSpec.model_validate_json(sys.argv[2])
prompts = collect_prompts(run.prompts, seed=run.seed, output=folder / "killed-prompts")
query_teacher(prompts, run, journal_path=folder / "journal.sqlite", output=folder / "killed")
"""


def _batch_ids(folder: Path) -> list[str]:
    with closing(sqlite3.connect(folder / "journal.sqlite")) as connection:
        return [name for (name,) in connection.execute("SELECT batch_id FROM batches ORDER BY prepared_at")]


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("is_named", [False, True])
def test_a_kill_submits_nothing_twice(
    server: BatchServer, make_run: Callable[..., RunSpec], tmp_path: Path, kind: str, is_named: bool
) -> None:
    server.hold_s, server.works_s = (0.0, 3600.0) if is_named else (3600.0, 0.05)
    sizes = {"max_requests": 8, "poll_s": 0.05}
    teacher = {"kind": kind, "base_url": server.url, "model": "m", "batch": sizes, "budget": {"requests": 20}}
    run = make_run(teacher, [{"prompt": f"question {number}"} for number in range(20)])
    command = [sys.executable, "-c", _ASK, str(tmp_path), run.model_dump_json()]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, start_new_session=True) as asker:
        deadline = time.monotonic() + 60
        while len(server.batches) < (3 if is_named else 1) or (is_named and "" in _batch_ids(tmp_path)):
            assert asker.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        os.kill(asker.pid, signal.SIGKILL)
    assert _batch_ids(tmp_path) == (["batch_0", "batch_1", "batch_2"] if is_named else [""])
    server.hold_s, server.works_s = 0.0, 0.05
    prompts = collect_prompts(run.prompts, seed=run.seed, output=tmp_path / "prompts")
    found = query_teacher(prompts, run, journal_path=tmp_path / "journal.sqlite", output=tmp_path / "resumed")
    assert {row.outcome for row in found.rows()} == {Outcome.OK}
    assert (len(server.batches), set(server.asked.values())) == (3, {1})
    assert _batch_ids(tmp_path) == []

"""What a new user gets wrong is told in one message, and before an engine is loaded that would take seconds."""

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from proxykd.commands.disk import damage, refuse_damaged
from proxykd.exceptions import StorageError
from tests.support.program import CHECKOUT

ELSEWHERE = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "ZENML_CONFIG_PATH", "ZENML_STORE_URL")
JUNK = b"no database at all\n" * 40
PLACEMENT = "pools: {cpu: {}}\nsteps: {default: {pool: cpuu}}\n"


@pytest.fixture
def fresh(proxykd: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The command line in a workspace that is not there yet, with nothing kept elsewhere."""
    for name in ELSEWHERE:
        monkeypatch.delenv(name, raising=False)
    return proxykd


def expect(ended: Any, *words: str) -> None:
    assert ended.status == 2, ended
    assert ended.out == ""
    (message,) = [line for line in ended.err.splitlines() if line.startswith("proxykd: ")]
    assert all(word in ended.err for word in words), message
    assert "Traceback" not in ended.err


@pytest.mark.parametrize(
    "words",
    [["ask", "m", "How much?"], ["verify", "m"], ["promote", "m", "1"], ["rollback", "m"], ["history", "m"],
     ["serve", "m"], ["export", "m", "folder"]],
    ids=lambda words: words[0],
)  # fmt: skip
def test_a_workspace_without_a_registry_is_told_so_and_gets_none(fresh: Any, tmp_path: Path, words: list[str]) -> None:
    expect(fresh(*words), f"expected a registry in {tmp_path}/home/mlflow.db", "run a specification first")
    assert not (tmp_path / "home").exists()


def test_a_workspace_without_runs_lists_none_and_gets_no_records(fresh: Any, write: Any, tmp_path: Path) -> None:
    assert fresh("runs") == (0, "no runs yet: `proxykd run CONFIG` starts one\n", "")
    assert fresh("runs", "--stack", "far").out.startswith("no runs on the stack far: ")
    expect(fresh("quarantine", "list", write()), "expected a run called run with validated rows", "run it first")
    assert not (tmp_path / "home").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--anew", "trainn"], ["--anew, got 'trainn'", "choose among query_teacher, validate_data"]),
        (["--anew", "distill_student_stf"], ["did you mean 'distill_student_sft'?"]),
        (["--shards", "split=2"], ["got 'split'", "choose among query_teacher, estimate_distributions"]),
        (["--shards", "estimate_distributions=0"], ["expected 1 shard of estimate_distributions or more, got 0"]),
        (["--shards", "query_teacher=2"], ["found recorded texts"]),
    ],
)
def test_steps_that_a_run_has_not_are_told_before_anything_is_looked_at(
    fresh: Any, write: Any, tmp_path: Path, words: list[str], told: list[str]
) -> None:
    expect(fresh("run", write(), *words), *told)
    assert not (tmp_path / "home").exists()


def test_nothing_heavy_is_loaded_to_say_any_of_this(write: Any, tmp_path: Path) -> None:
    stack = (CHECKOUT / "k8s" / "stacks" / "local-cluster.yaml").read_text(encoding="utf-8")
    (tmp_path / "stack.yaml").write_text(stack.replace("../placements/cpu.yaml", "placement.yaml"))
    (tmp_path / "placement.yaml").write_text(PLACEMENT)
    config = write()
    commands = [["ask", "m", "q"], ["runs"], ["quarantine", "list", config], ["run", config, "--anew", "no"],
                ["stack", "doctor", "stack.yaml"], ["plan", config, "--stack", "stack.yaml"]]  # fmt: skip
    code = (
        "import sys\nfrom proxykd import cli\n"
        f"for words in {commands!r}:\n"
        "    sys.argv[1:] = words\n"
        "    try: cli.main()\n"
        "    except SystemExit as ended: print(words[0], ended.code)\n"
        "    assert not {'torch', 'zenml', 'mlflow', 'trl'} & set(sys.modules), words\n"
    )
    kept = {name: value for name, value in os.environ.items() if name not in ELSEWHERE}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={**kept, "PROXYKD_HOME": str(tmp_path / "home")},
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends = [line.split() for line in done.stdout.splitlines() if line.split()[-1] in ("None", "0", "2")]
    assert [end[-1] in ("None", "0") for end in ends] == [words == ["runs"] for words in commands]
    assert done.stderr.count("steps.default.pool: unknown pool 'cpuu'; there are cpu") == 2
    assert "the whole file" not in done.stderr


def test_a_database_that_is_none_is_named_before_anything_is_spent(fresh: Any, write: Any, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    path = tmp_path / "home" / "mlflow.db"
    path.write_bytes(JUNK)
    for words in (["ask", "m", "How much?"], ["run", write(), "--quiet"]):
        expect(fresh(*words), f"found {path} damaged", "restore a copy of it", "paid answers")
    assert path.read_bytes() == JUNK
    assert not (tmp_path / "home" / "zenml").exists()


def test_only_a_damaged_database_is_called_damaged(tmp_path: Path) -> None:
    whole, zenml = tmp_path / "mlflow.db", tmp_path / "zenml" / "local_stores" / "default_zen_store" / "zenml.db"
    refuse_damaged(whole)  # not there yet
    with closing(sqlite3.connect(whole)) as database:
        database.execute("CREATE TABLE t (x)")
    refuse_damaged(whole)
    zenml.parent.mkdir(parents=True)
    zenml.write_bytes(JUNK)
    with pytest.raises(StorageError, match=r"zenml\.db damaged"):
        refuse_damaged(zenml)

    wrapped = RuntimeError("some engine")
    wrapped.__cause__ = sqlite3.DatabaseError("file is not a database")
    assert f"{zenml} damaged" in str(damage(wrapped, tmp_path))
    assert damage(wrapped.with_traceback(None), tmp_path / "elsewhere") is None
    assert damage(RuntimeError("another"), tmp_path) is None
    assert damage(sqlite3.OperationalError("no such table: x"), tmp_path) is None


@pytest.mark.skipif(not Path("/proc").exists(), reason="/proc is Linux's")
@pytest.mark.parametrize("command", ["plan", "run"])
def test_a_folder_that_cannot_be_made_is_no_traceback(
    proxykd: Any, write: Any, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.setenv("PROXYKD_HOME", "/proc/nowhere")  # where nobody can, root neither
    ended = proxykd(command, write())
    assert ended.status == 2
    assert "expected to make the folder /proc/nowhere" in ended.err
    assert "set PROXYKD_HOME" in ended.err
    assert "Traceback" not in ended.err

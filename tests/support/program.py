"""``proxykd run`` on one tiny specification as a user runs it: as a program, in a workspace of its own."""

import json
import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

import proxykd
from proxykd.workspace import Workspace

CHECKOUT = Path(proxykd.__file__).parents[1]
PROXYKD = Path(sys.executable).with_name("proxykd")
NUM_PROMPTS = 120
LIMIT_S = 300

SPECIFICATION: dict[str, Any] = {
    "name": "tiny",
    "prompts": {"kind": "embedded", "count": NUM_PROMPTS},
    # One call at a time: slow enough to be caught in the middle.
    "teacher": {"kind": "embedded", "concurrency": 1},
    "split": {"mode": "shared", "heldout": 0.2},
    "proxy": {
        "model": {"source": "embedded:proxy", "num_layers": 1, "max_seq_tokens": 160},
        "warmup": {"epochs": 1, "optimizer": {"learning_rate": 2e-3, "batch_size": 16}},
        "preference": {"epochs": 0.2, "optimizer": {"learning_rate": 1e-4, "batch_size": 16}, "max_new_tokens": 16},
    },
    "student": {
        "model": {"source": "embedded:student", "num_layers": 1, "max_seq_tokens": 160},
        "optimizer": {"learning_rate": 3e-3, "batch_size": 16},
        "steps": 10,
    },
    "evaluation": {
        "exact_kl": True,
        "exact_kl_prompts": 4,
        "resamples": 100,
        "speed": None,  # of which a process of its own is asked: tests/evaluation/test_speed.py
        "tasks": [
            {"kind": "exact_match", "name": "sums", "answer_pattern": r"#### (-?\d+)", "max_new_tokens": 8, "limit": 4}
        ],
    },
    "registry": {"model_name": "tiny-student"},
}


def num_answers(journal: Path) -> int:
    """Final answers in a teacher's journal; 0 while there is none."""
    try:
        with sqlite3.connect(f"file:{journal}?mode=ro", uri=True) as database:
            return int(database.execute("SELECT count(*) FROM answers WHERE is_final").fetchone()[0])
    except sqlite3.OperationalError:
        return 0


@dataclass(frozen=True)
class Home:
    """A workspace of its own, its temporary folder, and the specification in it."""

    folder: Path

    @classmethod
    def create(cls, folder: Path) -> "Home":
        (folder / "tmp").mkdir(parents=True)
        (folder / "tiny.yaml").write_text(yaml.safe_dump(SPECIFICATION), encoding="utf-8")
        return cls(folder)

    @property
    def workspace(self) -> Workspace:
        return Workspace(self.folder / "state")

    def environment(self, **more: str) -> dict[str, str]:
        own = {**self.workspace.environment(), "TMPDIR": str(self.folder / "tmp"), "PROXYKD_PROGRESS": "lines"}
        return {**os.environ, **own, "OMP_NUM_THREADS": "1", **more}

    @contextmanager
    def start(self, *arguments: str, **more: str) -> Iterator["Started"]:
        """``proxykd run`` on the specification, in a process group of its own that does not outlive the context."""
        with (self.folder / "stdout.txt").open("w") as out, (self.folder / "stderr.txt").open("w") as err:
            process = subprocess.Popen(
                [PROXYKD, "run", "tiny.yaml", *arguments],
                cwd=self.folder,
                env=self.environment(**more),
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        try:
            yield Started(process, self.folder)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def run(self, *arguments: str, **more: str) -> "Finished":
        """The same, to its end."""
        with self.start(*arguments, **more) as started:
            return started.finish()

    def statuses(self) -> dict[str, str]:
        """Step -> status in the latest pipeline run."""
        with self._zenml() as database:
            rows = database.execute(
                "SELECT name, status FROM step_run WHERE pipeline_run_id = "
                "(SELECT id FROM pipeline_run ORDER BY created DESC LIMIT 1)"
            )
            return dict(rows.fetchall())

    def num_answers(self) -> int:
        """Of the teacher, so far."""
        return num_answers(self.workspace.journal)

    def servers(self) -> list[int]:
        """Processes of the embedded teacher that belong to this workspace (Linux only)."""
        mine, found = f"PROXYKD_HOME={self.workspace.root}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                is_server = b"proxykd.teacher.server" in (folder / "cmdline").read_bytes()
                if is_server and mine in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:  # it has ended, or is another user's
                continue
        return found

    def has_no_server_soon(self) -> bool:
        """Whether none is left after a few seconds."""
        deadline = time.monotonic() + 10
        while self.servers() and time.monotonic() < deadline:
            time.sleep(0.05)
        return not self.servers()

    def _zenml(self) -> sqlite3.Connection:
        return sqlite3.connect(self.workspace.root / "zenml" / "local_stores" / "default_zen_store" / "zenml.db")


@dataclass(frozen=True)
class Started:
    """A run under way."""

    process: "subprocess.Popen[bytes]"
    folder: Path

    @property
    def stderr(self) -> str:
        return (self.folder / "stderr.txt").read_text(encoding="utf-8")

    def signal(self, number: signal.Signals) -> None:
        """To the whole process group, as a terminal or a cluster does."""
        os.killpg(self.process.pid, number)

    def finish(self) -> "Finished":
        status = self.process.wait(timeout=LIMIT_S)
        return Finished(status, (self.folder / "stdout.txt").read_text(encoding="utf-8"), self.stderr)


@dataclass(frozen=True)
class Finished:
    """How a run ended and what it printed."""

    status: int
    stdout: str
    stderr: str

    @property
    def report(self) -> dict[str, Any]:
        found = re.search(r"mlflow\s+run (\w+) in sqlite:///(\S+)/mlflow\.db", self.stdout)
        assert found, self.stdout + self.stderr
        logged = Path(found[2]) / "mlartifacts" / SPECIFICATION["name"] / found[1] / "artifacts" / "report"
        report: dict[str, Any] = json.loads((logged / "report.json").read_text(encoding="utf-8"))
        return report

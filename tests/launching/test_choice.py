"""Which launcher does the work, and what it does with work that it cannot finish."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proxykd.config.launcher import LAUNCHER_VARIABLE, LauncherSpec
from proxykd.exceptions import CodeError, ConfigError, GateError, ModelError
from proxykd.launching.choice import choose_launcher
from proxykd.launching.torchrun import Torchrun
from proxykd.launching.work import ERROR, RESULT, InProcess, Launcher, Work, finish, require_job_code, write_job


def make_work(folder: Path, **changes: Any) -> Work[str]:
    options: dict[str, Any] = {
        "name": "work",
        "module": "a.module",
        "job": {"rate": 0.1, "corpus": "/somewhere/rows.arrow"},
        "inputs": ("corpus",),
        "identity": "run",
        "folder": folder,
        "advice": "a number",
        "here": lambda: "here",
        "collect": lambda output: (output / RESULT).read_text(),
    }
    return Work(**{**options, **changes})


@pytest.mark.parametrize(
    ("told", "processes", "expected"),
    [
        (None, 1, InProcess()),
        (None, 3, Torchrun(3)),
        ({"kind": "process"}, 3, InProcess()),
        ({"kind": "torchrun", "processes_per_node": 4}, 1, Torchrun(4)),
    ],
)
def test_the_environment_goes_before_the_specification(told: Any, processes: int, expected: Launcher) -> None:
    environ = {} if told is None else {LAUNCHER_VARIABLE: json.dumps(told)}
    assert choose_launcher(processes, environ=environ) == expected


def test_a_launcher_that_the_library_does_not_know_is_made_by_whoever_does() -> None:
    environ, seen = {LAUNCHER_VARIABLE: json.dumps({"kind": "trainjob", "nodes": 2, "memory": "64Gi"})}, list[Any]()

    def build(spec: LauncherSpec) -> Launcher:
        seen.append((spec.nodes, spec.memory))
        return InProcess()

    assert choose_launcher(1, others={"trainjob": build}, environ=environ) == InProcess()
    assert seen == [(2, "64Gi")]
    with pytest.raises(ConfigError, match="'trainjob'"):
        choose_launcher(1, environ=environ)


@pytest.mark.parametrize(
    "text", ["trainjob", '{"kind": "ssh"}', '{"kind": "torchrun", "node": 2}', '{"nodes": 0}', '{"memory": "much"}']
)
def test_a_launcher_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=rf"{LAUNCHER_VARIABLE}.*placement"):
        choose_launcher(1, environ={LAUNCHER_VARIABLE: text})


def test_work_here_writes_nothing_down(tmp_path: Path) -> None:
    assert InProcess().launch(make_work(tmp_path)) == "here"
    assert not list(tmp_path.iterdir())


def test_work_is_known_again_by_what_it_does_and_not_by_where_its_files_are(tmp_path: Path) -> None:
    make = partial(make_work, tmp_path)
    known = make().hashed()
    assert make(job={"rate": 0.1, "corpus": "/elsewhere/rows.arrow"}).hashed() == known
    others = [make(job={"rate": 0.2, "corpus": ""}), make(module="another"), make(identity="another run")]
    assert len({known, *(one.hashed() for one in others)}) == 4


def test_what_an_earlier_try_left_is_not_taken_for_the_result(tmp_path: Path) -> None:
    (tmp_path / RESULT).write_text("old")
    (tmp_path / ERROR).write_text("old")
    job = write_job(make_work(tmp_path), tmp_path)
    assert json.loads(job.read_text())["output"] == str(tmp_path)
    with pytest.raises(ModelError, match="expected work to end with a result, but it vanished; lower a number"):
        finish(make_work(tmp_path), tmp_path, "it vanished")
    (tmp_path / RESULT).write_text("new")
    assert finish(make_work(tmp_path), tmp_path, "it vanished") == "new"
    (tmp_path / ERROR).write_text(json.dumps({"kind": "GateError", "message": "closed"}))
    with pytest.raises(GateError, match="closed"):
        finish(make_work(tmp_path), tmp_path, "it vanished")


def test_a_job_of_other_code_is_refused_and_one_that_tells_none_too(tmp_path: Path) -> None:
    job = write_job(make_work(tmp_path), tmp_path)
    require_job_code(job)
    told = json.loads(job.read_text(encoding="utf-8"))
    for code in ({"code": [told["code"][0], "0"]}, {}):
        job.write_text(json.dumps({**{key: value for key, value in told.items() if key != "code"}, **code}))
        with pytest.raises(CodeError, match="the image holds other code"):
            require_job_code(job)

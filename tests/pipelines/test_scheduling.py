"""What makes a schedule's next application replace what is run; tests/pipelines/test_on_stack.py applies schedules."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines import scheduling
from pipelines.scheduling import Application
from proxykd.config import RunSpec
from proxykd.config.schedule import ScheduleSpec
from proxykd.config.stack import KubernetesStackSpec, load_stack
from proxykd.own_code import code_files
from tests.support.program import CHECKOUT

NIGHTLY = ScheduleSpec(cron="0 3 * * *")
MakeRun = Callable[..., RunSpec]


def application(run: RunSpec) -> Application:
    stack = load_stack("kubernetes")
    assert isinstance(stack, KubernetesStackSpec)
    return Application("nightly", run, stack, NIGHTLY, "inputs", {"student": "a"})


@pytest.mark.parametrize("section", ["evaluation", "validation"])
def test_another_file_of_a_section_under_the_same_name_is_another_run(
    make_run: MakeRun, tmp_path: Path, section: str
) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("one")
    task = {"kind": "exact_match", "name": "sums", "answer_pattern": r"(\d+)", "file": str(path)}
    values = {"evaluation": {"tasks": [task]}, "validation": {"evaluation_files": [str(path)]}}
    found = application(make_run(**{section: values[section]}))
    before = found.fingerprint
    assert found.fingerprint == before
    path.write_text("another")
    assert found.fingerprint != before


def test_other_trajectories_in_the_same_folder_are_another_run(
    make_run: MakeRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    identities = iter(("a", "a", "b"))
    monkeypatch.setattr("pipelines.running.trajectories_identity", lambda _: next(identities))
    found = application(make_run())
    before, after, changed = found.fingerprint, found.fingerprint, found.fingerprint
    assert before == after != changed


def test_parts_that_the_submission_divides_a_step_into_are_another_run(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = application(make_run()).fingerprint
    monkeypatch.setattr(scheduling, "shards_of", lambda *_: {"query_teacher": 2})
    assert application(make_run()).fingerprint != before


def test_another_baseline_leaves_the_schedule_as_it_is(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    before = application(make_run()).fingerprint
    monkeypatch.setattr("pipelines.running.read_baseline", lambda _: {"last": {"validated": "a"}})
    assert application(make_run()).fingerprint == before


def test_a_change_of_the_code_that_submits_is_another_run(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[str]()
    before = application(make_run()).fingerprint
    monkeypatch.setattr(scheduling, "code_hash", lambda module: asked.append(module) or "another")
    assert application(make_run()).fingerprint != before
    (module,) = asked
    files = {file.relative_to(CHECKOUT).as_posix() for file in code_files(module)}
    submitting = {"pipelines/placement.py", "pipelines/submitting.py", "cluster/orchestrator.py"}
    assert files >= {*submitting, "pipelines/distill.py", "steps/split.py", "proxykd/student/training.py"}

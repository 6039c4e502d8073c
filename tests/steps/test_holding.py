"""Whose run may write where another was last; ZenML's records are a seam here."""

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import pytest

from cluster.schedule_names import new_record_name, schedule_of_record
from proxykd.exceptions import BusyError
from steps import holding


@dataclass
class Runs:
    """Runs that ZenML knows, all of them under way; ``own`` is the one whose step looks."""

    runs: dict[str, Any]
    own: str = ""

    def add(self, schedule: str | None) -> str:
        """A run that is under way; of a schedule's record, or of none."""
        record = None if schedule is None else SimpleNamespace(id=uuid4(), name=schedule)
        name, status = f"run-{len(self.runs)}", SimpleNamespace(is_finished=False)
        self.runs[name] = SimpleNamespace(id=name, name=name, schedule=record, status=status)
        return name

    def hold(self, run: str) -> None:
        """Let a step of a run hold the workspace."""
        self.own = run
        holding.hold_workspace()


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch) -> Runs:
    found = Runs({})
    context = SimpleNamespace(get=lambda: SimpleNamespace(pipeline_run=found.runs[found.own]))
    client = SimpleNamespace(get_pipeline_run=lambda run_id, **_: found.runs[run_id])
    monkeypatch.setattr(holding, "StepContext", context)
    monkeypatch.setattr(holding, "Client", lambda: client)
    monkeypatch.setattr(holding, "_is_on_this_machine", lambda: False)
    return found


def archived(record: str) -> str:
    """What ZenML makes of a record's name when it is removed softly."""
    return f"{record}_{uuid4()}"


@pytest.fixture(autouse=True)
def _workspace(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path))


def test_a_run_is_let_in_that_replaced_one_of_its_schedules_former_application(runs: Runs) -> None:
    runs.hold(runs.add(archived(new_record_name("nightly"))))
    runs.hold(runs.add(new_record_name("nightly")))


@pytest.mark.parametrize("other", [None, "weekly", "nightly-2"])
def test_a_run_of_another_schedule_or_of_none_is_refused(runs: Runs, other: str | None) -> None:
    runs.hold(first := runs.add(new_record_name("nightly")))
    with pytest.raises(BusyError, match=f"{first} is under way there"):
        runs.hold(runs.add(None if other is None else new_record_name(other)))


def test_two_runs_that_no_schedule_started_meet(runs: Runs) -> None:
    runs.hold(first := runs.add(None))
    with pytest.raises(BusyError, match=f"{first} is under way there"):
        runs.hold(runs.add(None))


@pytest.mark.parametrize("name", ["nightly", "a", "nightly-0a1b2c3d", "x" * 44])
def test_a_record_says_its_schedule_even_once_it_is_archived(name: str) -> None:
    assert new_record_name(name) != new_record_name(name)
    assert schedule_of_record(new_record_name(name)) == name
    assert schedule_of_record(archived(new_record_name(name))) == name


def test_a_record_of_somebody_else_is_a_schedule_of_its_own() -> None:
    assert schedule_of_record("somebody-elses") == "somebody-elses"

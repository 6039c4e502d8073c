"""Runs of which nothing runs: given up by their orchestrator's pod, or found by gc; ZenML's records are a seam here."""

import threading
from datetime import datetime, timedelta
from typing import Any

import pytest

from cluster import run_entry, runs, starving
from cluster.garbage import RUN_ANNOTATION, Ages
from cluster.kinds import JOBS
from proxykd.exceptions import ClusterError
from tests.cluster.conftest import Connect, manifest
from tests.cluster.test_waiting import NOW, POD, ago, job, place, scheduled
from tests.cluster.test_waiting import pod as pod_of
from tests.k8s.api_server import ApiServer
from tests.k8s.controller import ownership
from tests.k8s.kinds import CORE

LIMIT_S = 7200.0
ORCHESTRATOR_POD = "orchestrator-1"
WAITS = {"split": (NOW - timedelta(hours=1), "for room"), "distill_student": (NOW - timedelta(hours=3), "for a GPU")}


@pytest.mark.parametrize(
    ("limit_s", "why"),
    [
        (None, ""),
        (3 * 3600.0, ""),
        (3 * 3600.0 - 1.0, "for 10799 s nothing of it ran, as distill_student waited for a GPU"),
        (3599.0, "for 3599 s nothing of it ran, as split waited for room"),
    ],
)
def test_a_run_is_given_up_by_the_first_step_that_waited_for_too_long(limit_s: float | None, why: str) -> None:
    assert starving.why_starved(WAITS, limit_s, NOW) == why
    assert not starving.why_starved({}, limit_s, NOW)


class Records:
    """What ZenML was told; ``away`` = it does not answer."""

    def __init__(self) -> None:
        self.away, self.told = False, list[tuple[str, str, bool]]()

    def close(self, run_id: str, reason: str, *, is_stopped: bool = False) -> bool:
        if self.away:
            raise ConnectionError("refused")
        self.told.append((run_id, reason, is_stopped))
        return True


@pytest.fixture
def records(monkeypatch: pytest.MonkeyPatch) -> Records:
    found = Records()
    monkeypatch.setattr(runs, "close", found.close)
    return found


def orchestrator(server: ApiServer, *, is_noted: bool = True) -> None:
    """The Job and the pod of a run's orchestrator, as they are once it has begun."""
    walker = job("walker")
    walker["metadata"]["annotations"] = {RUN_ANNOTATION: "r"} if is_noted else {}
    place(server, walker, made=9.0)
    own = manifest("v1", "Pod", ORCHESTRATOR_POD, labels={"run_id": "r", "job-name": "walker"}, spec=POD)
    own["metadata"]["ownerReferences"] = ownership(server.store.get(CORE["Job"], "proxykd", "walker"))
    place(server, own, made=9.0, status={"phase": "Running"})


@pytest.fixture
def guard(connect: Connect, monkeypatch: pytest.MonkeyPatch) -> starving.Guard:
    monkeypatch.setenv("POD_NAME", ORCHESTRATOR_POD)
    return starving.Guard(connect(), LIMIT_S, NOW - timedelta(hours=9))


def jobs(connect: Connect) -> set[str]:
    return {one["metadata"]["name"] for one in connect().list(JOBS)}


def test_the_orchestrators_pod_ends_its_run_once_nothing_ran_for_too_long(
    server: ApiServer, connect: Connect, guard: starving.Guard, records: Records
) -> None:
    orchestrator(server)
    place(server, job("split"), made=1.0)
    another = job("another")
    another["metadata"]["labels"] |= {"run_id": "s"}
    place(server, another, made=9.0)
    guard.look(NOW)
    assert not records.told
    assert not guard.has_given_up
    guard.look(NOW + timedelta(hours=1, seconds=1))
    why = "for 7200 s nothing of it ran, as split waited for its pod to be made"
    assert records.told == [("r", why, True)]
    assert jobs(connect) == {"walker", "another"}
    place(server, job("evaluate"), made=0.0)  # begun before the orchestrator saw that the run was stopped
    guard.look(NOW + timedelta(hours=1, seconds=2))
    assert jobs(connect) == {"walker", "another"}
    assert len(records.told) == 1


def test_a_run_with_a_step_that_runs_is_left_alone(
    server: ApiServer, connect: Connect, guard: starving.Guard, records: Records
) -> None:
    orchestrator(server)
    place(server, job("query_teacher_0"), made=9.0)
    place(server, pod_of("query_teacher_0"), made=9.0, status={"phase": "Running"})
    place(server, job("query_teacher_1"), made=9.0)
    guard.look(NOW + timedelta(hours=90))
    assert not records.told


def test_an_orchestrator_that_was_begun_again_counts_no_wait_from_before(
    server: ApiServer, connect: Connect, guard: starving.Guard, records: Records
) -> None:
    """The pod of a step that ran for long may have gone with it, and tells nobody that it did."""
    orchestrator(server)
    place(server, job("align_proxy"), made=9.0, status={"startTime": ago(9)})
    anew = starving.Guard(connect(), LIMIT_S, NOW)
    anew.look(NOW + timedelta(seconds=60))
    anew.look(NOW + timedelta(seconds=LIMIT_S))
    assert not records.told
    anew.look(NOW + timedelta(seconds=LIMIT_S + 1))
    assert records.told


def test_a_run_that_its_orchestrator_has_not_begun_is_not_judged(
    server: ApiServer, guard: starving.Guard, records: Records
) -> None:
    orchestrator(server, is_noted=False)
    place(server, job("split"), made=9.0)
    guard.look(NOW)
    assert not records.told


def test_nothing_is_removed_while_zenml_is_away(
    server: ApiServer, connect: Connect, guard: starving.Guard, records: Records
) -> None:
    orchestrator(server)
    place(server, job("split"), made=9.0)
    records.away = True
    with pytest.raises(ConnectionError):
        guard.look(NOW)
    assert jobs(connect) == {"walker", "split"}
    records.away = False
    guard.look(NOW)
    assert jobs(connect) == {"walker"}


def test_a_guard_bears_whatever_its_looks_raise_and_clears_up_when_the_run_has_ended(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    looked, looks, cleared = threading.Event(), list[datetime](), list[bool]()
    errors = [ClusterError("the API server is away"), ValueError("no JSON"), ConnectionError("refused")]

    def look(guard: starving.Guard, now: datetime) -> None:
        looks.append(now)
        if len(looks) > len(errors):
            guard.has_given_up = True
            looked.set()
            return
        raise errors[len(looks) - 1]

    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig("proxykd")))
    monkeypatch.setattr(starving.Guard, "look", look)
    monkeypatch.setattr(starving.Guard, "clear", lambda _: cleared.append(True))
    with run_entry.guarded(0.01):
        assert looked.wait(30.0)
        assert not cleared
    assert cleared == [True]
    told = capsys.readouterr().err
    assert all(f"could not look whether anything of the run runs: {error}" in told for error in errors)


def test_a_stack_without_a_limit_has_no_guard() -> None:
    before = threading.active_count()
    with run_entry.guarded(None):
        assert threading.active_count() == before


def test_gc_finds_a_run_whose_orchestrator_never_began(
    server: ApiServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    orchestrator(server)
    server.store.delete(CORE["Pod"], "proxykd", ORCHESTRATOR_POD)
    stopped = list[tuple[str, str]]()
    monkeypatch.setattr(starving, "stop_jobs", lambda api, run_id, reason: not stopped.append((run_id, reason)))

    def found(orchestrator_id: str = "ours", hours: float = 9.0, limit_s: float | None = LIMIT_S) -> list[Any]:
        made = NOW - timedelta(hours=hours)
        run = runs.Run("r", "tiny-1", "running", False, "production", "kubernetes", orchestrator_id, made, None, "")
        return list(starving.find_starved(connect(), [run], "ours", Ages(NOW), limit_s))

    (waste,) = found()
    why = "for 7200 s nothing of it ran, as the orchestrator waited for its pod to be made"
    assert (waste.kind, waste.name, waste.reason) == ("Run", "tiny-1", why)
    assert not stopped
    assert waste.remove()
    assert stopped == [("r", f"closed by proxykd gc: {why}")]
    assert not found("theirs")
    assert not found(hours=0.1)
    assert not found(limit_s=None)
    place(server, job("split"), made=9.0)
    again = manifest("v1", "Pod", ORCHESTRATOR_POD, labels={"run_id": "r", "job-name": "walker"}, spec=POD)
    place(server, again, made=8.0, status={"phase": "Running"})
    assert not found()  # its own pod judges its steps


def test_gc_finds_a_scheduled_run_whose_orchestrator_lost_its_pod(server: ApiServer, connect: Connect) -> None:
    walker, own = scheduled("r", "walker")
    place(server, walker, made=9.0, status={"startTime": ago(9)})
    made = NOW - timedelta(hours=9)
    run = runs.Run("r", "tiny-1", "running", False, "production", "kubernetes", "ours", made, None, "")
    (waste,) = starving.find_starved(connect(), [run], "ours", Ages(NOW), LIMIT_S)
    assert waste.reason == "for 7200 s nothing of it ran, as the orchestrator waited for its pod to be made"
    place(server, own, made=1.0, status={"phase": "Running"})
    assert not list(starving.find_starved(connect(), [run], "ours", Ages(NOW), LIMIT_S))


def test_gc_says_where_it_may_not_look(server: ApiServer, connect: Connect) -> None:
    server.access.is_enforced = True
    made, told = NOW - timedelta(hours=9), list[str]()
    run = runs.Run("r", "tiny-1", "running", False, "production", "kubernetes", "ours", made, None, "")
    nobody = connect("default")
    assert not list(starving.find_starved(nobody, [run], "ours", Ages(NOW), LIMIT_S, tell=told.append))
    assert told == ["what runs wait for is not looked at: this identity may not list pods"]

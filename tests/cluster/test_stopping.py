"""Which runs a request can stop; tests/pipelines stop those of clusters."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cluster import runs
from cluster.kinds import JOBS
from cluster.runs import Run
from cluster.stopping import stop, stop_jobs
from proxykd.exceptions import InputError
from tests.cluster.conftest import Connect
from tests.cluster.test_waiting import job, scheduled
from tests.k8s.api_server import ApiServer

HERE = Run("id", "tiny-1", "running", False, "default", "local", "id", datetime(2026, 1, 1, tzinfo=UTC), None, "")


def test_a_run_of_this_machine_is_left_to_whoever_started_it() -> None:
    with pytest.raises(InputError, match=r"tiny-1 is one of .*Ctrl-C where it was started; .*proxykd gc --yes"):
        stop(HERE, "wanted")


def test_a_run_whose_stack_is_gone_is_closed_and_what_it_left_removed_otherwise() -> None:
    with pytest.raises(InputError, match=r"proxykd runs tiny-1 --close.*proxykd gc --stack STACK --yes"):
        stop(replace(HERE, stack="", orchestrator=""), "wanted")


@pytest.mark.parametrize("orchestrator", ["local", "proxykd-kubernetes", "proxykd-kubeflow"])
def test_a_run_that_has_ended_is_left_alone(orchestrator: str) -> None:
    assert not stop(replace(HERE, orchestrator=orchestrator, is_finished=True), "wanted")


def test_a_run_that_a_schedule_started_is_stopped_with_its_orchestrators_job_first(
    server: ApiServer, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = list[set[str]]()

    def close(run_id: str, reason: str, *, is_stopped: bool) -> bool:
        left.append({one["metadata"]["name"] for one in connect().list(JOBS)})
        return is_stopped

    monkeypatch.setattr(runs, "close", close)
    monkeypatch.setattr(runs, "token_of", lambda _: "")
    server.apply(scheduled("r", "walker")[0], scheduled("s", "another")[0], job("split"))
    assert stop_jobs(connect(), "r", "wanted")
    assert left == [{"another", "split"}]
    assert [one["metadata"]["name"] for one in connect().list(JOBS)] == ["another"]

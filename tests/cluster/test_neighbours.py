"""Trainings whose runs have ended are removed, and no others."""

from typing import Any

import pytest

from cluster.kinds import JOBS, TRAIN_JOBS
from cluster.neighbours import remove_trainings
from tests.cluster.conftest import Connect
from tests.cluster.test_garbage import job, ours, train_job
from tests.k8s.api_server import ApiServer
from tests.k8s.kinds import CORE

FAILED, ALIVE = "failed-run", "living-run"
TRAIN_JOB = CORE["TrainJob"]


@pytest.fixture
def training(server: ApiServer, connect: Connect) -> ApiServer:
    """A step's Job of either run with its training, one that has done, one of nobody's, and a foreign one."""
    server.apply(job("failed", ours(FAILED)), job("alive", ours(ALIVE)))
    api = connect()
    part_of = {"app.kubernetes.io/part-of": "proxykd"}

    def owner(name: str) -> list[dict[str, Any]]:
        uid = api.get(JOBS, name)["metadata"]["uid"]
        return [{"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}]

    server.apply(
        train_job("of-failed", part_of, ownerReferences=owner("failed")),
        train_job("done", part_of, ownerReferences=owner("failed")),
        train_job("of-alive", part_of, ownerReferences=owner("alive")),
        train_job("of-nobody", part_of),
        train_job("foreign", {}, ownerReferences=owner("failed")),
    )
    end = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    server.store.change(TRAIN_JOB, "proxykd", "done", lambda one: one.update(status=end))
    return server


def removed(server: ApiServer) -> set[str]:
    there = {found["metadata"]["name"] for found in server.store.list(TRAIN_JOB, "proxykd")}
    return {"of-failed", "done", "of-alive", "of-nobody", "foreign"} - there


def test_a_training_goes_when_its_run_has_ended(training: ApiServer, connect: Connect) -> None:
    told: list[str] = []
    remove_trainings(connect(), lambda run_id: run_id == FAILED, told.append)
    assert removed(training) == {"of-failed"}
    assert told == ["TrainJob of-failed is removed: it trained on although its run has ended"]
    remove_trainings(connect(), lambda run_id: run_id == FAILED, told.append)
    assert len(told) == 1


def test_whoever_may_not_remove_trainings_is_told_so_and_goes_on(training: ApiServer, connect: Connect) -> None:
    training.access.is_enforced = True
    told: list[str] = []
    remove_trainings(connect("nobody"), lambda _: True, told.append)
    assert not removed(training)
    assert len(told) == 1
    assert "`proxykd gc`" in told[0]


def test_a_cluster_without_trainings(server: ApiServer, connect: Connect) -> None:
    told: list[str] = []
    remove_trainings(connect(), lambda _: True, told.append)
    assert not told
    assert not list(connect().list(TRAIN_JOBS))

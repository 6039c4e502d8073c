"""What is waste and what is not, and its removal in the face of races and refusals."""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cluster import garbage
from cluster.api import ClusterApi
from cluster.garbage import Ages, Records, Waste
from cluster.kinds import CLAIMS, CRON_JOBS, JOBS, SECRETS, TRAIN_JOBS
from cluster.runs import Run
from cluster.schedules import NEVER
from proxykd.exceptions import ClusterForbiddenError, ClusterUnreachableError
from tests.cluster.conftest import Connect, manifest
from tests.k8s.api_server import ApiServer
from tests.k8s.kinds import CORE

PROJECT = "11111111-0000-0000-0000-000000000000"
ENDED, ALIVE, GONE = (f"{digit * 8}-0000-0000-0000-000000000000" for digit in "234")
LIVES: Mapping[str, Any] = {ENDED: "ended", ALIVE: "under way"}
RECORDS = Records(PROJECT, lambda run: LIVES.get(run, "unknown"), lambda one: LIVES.get(one, "unknown"))
LATER = Ages(datetime.now(UTC) + timedelta(days=30))
POD = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "image"}]}


def ours(run: str, **more: str) -> dict[str, str]:
    return {"app.kubernetes.io/part-of": "proxykd", "run_id": run, "project_id": PROJECT, **more}


def job(name: str, labels: dict[str, str], **metadata: Any) -> dict[str, Any]:
    return manifest("batch/v1", "Job", name, labels=labels, spec={"template": {"spec": POD}}, metadata=metadata)


def train_job(name: str, labels: dict[str, str], **metadata: Any) -> dict[str, Any]:
    spec = {"runtimeRef": {"name": "torch"}}
    group = "trainer.kubeflow.org/v1alpha1"
    return manifest(group, "TrainJob", name, labels=labels, spec=spec, metadata=metadata)


def cron_job(name: str, schedule: str, labels: dict[str, str], token: str = "") -> dict[str, Any]:
    env = [{"name": "T", "valueFrom": {"secretKeyRef": {"name": token, "key": "zenml_api_token"}}}] if token else []
    pod = {**POD, "containers": [{**POD["containers"][0], "env": env}]}  # type: ignore[dict-item]
    spec = {"schedule": schedule, "jobTemplate": {"spec": {"template": {"spec": pod}}}}
    return manifest("batch/v1", "CronJob", name, labels=labels, spec=spec)


def end_job(server: ApiServer, how: str, reason: str = "", at: str = "") -> None:
    """The Job "ended" comes to its end, by default now."""
    end = {"type": how, "status": "True", "lastTransitionTime": at or f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
    status = {"conditions": [{**end, **({"reason": reason} if reason else {})}]}
    server.store.change(CORE["Job"], "proxykd", "ended", lambda one: one.update(status=status))


def found(api: ClusterApi, ages: Ages = LATER) -> list[Waste]:
    return list(garbage.find_objects(api, RECORDS, ages))


def names(waste: list[Waste]) -> set[str]:
    return {f"{one.kind}/{one.name}" for one in waste}


@pytest.fixture
def littered(server: ApiServer) -> ApiServer:
    """Two of each: of a run that has ended, and of all that must stay."""
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "alive", "uid": "1"}
    server.apply(
        job("ended", ours(ENDED)),
        job("alive", ours(ALIVE)),
        job("vanished", ours(GONE)),
        job("vanished-elsewhere", ours(GONE, project_id="another")),
        job("foreign", {"run_id": ENDED}),
        job("of-no-run", {"app.kubernetes.io/part-of": "proxykd"}),
        job("owned", ours(ENDED), ownerReferences=[owner]),
        manifest("v1", "PersistentVolumeClaim", "scratch", labels=ours(ENDED), spec=claim),
        manifest("v1", "PersistentVolumeClaim", "models", labels={"app.kubernetes.io/part-of": "proxykd"}, spec=claim),
        manifest("v1", "Secret", f"zenml-token-{ENDED}", data={}),
        manifest("v1", "Secret", f"zenml-token-{ALIVE}", data={}),
        manifest("v1", "Secret", f"zenml-token-{GONE}", data={}),
        manifest("v1", "Secret", "proxykd-teacher", labels={"app.kubernetes.io/part-of": "proxykd"}, data={}),
        train_job("train", ours(ENDED)),
        cron_job("half-made", NEVER, {"project_id": PROJECT}),
        cron_job("other-half-made", NEVER, {}),
        cron_job("proxykd-weekly", "0 3 * * 1", {"project_id": PROJECT}),
    )  # fmt: skip
    return server


WASTE = {
    "Job/ended", "Job/vanished", "TrainJob/train", "PersistentVolumeClaim/scratch", f"Secret/zenml-token-{ENDED}",
    "CronJob/half-made",
}  # fmt: skip


def test_only_what_is_ours_and_of_no_living_run_is_waste(littered: ApiServer, connect: Connect) -> None:
    assert names(found(connect())) == WASTE


def test_a_training_whose_run_has_ended_is_waste_though_its_step_is_kept(server: ApiServer, connect: Connect) -> None:
    server.apply(job("ended", ours(ENDED)), job("alive", ours(ALIVE)))
    api = connect()
    for name in ("ended", "alive"):
        uid = api.get(JOBS, name)["metadata"]["uid"]
        owner = {"apiVersion": "batch/v1", "kind": "Job", "name": name, "uid": uid}
        server.apply(train_job(f"train-{name}", {"app.kubernetes.io/part-of": "proxykd"}, ownerReferences=[owner]))
    assert "TrainJob/train-ended" in names(found(api))
    assert "TrainJob/train-alive" not in names(found(api))


def test_what_is_young_or_ended_lately_is_left_alone(littered: ApiServer, connect: Connect) -> None:
    api = connect()
    assert not found(api, Ages(datetime.now(UTC)))
    an_hour_later = Ages(datetime.now(UTC) + timedelta(hours=1))
    assert names(found(api, an_hour_later)) == WASTE
    end_job(littered, "Complete")
    assert "Job/ended" not in names(found(api, an_hour_later))
    assert "Job/ended" in names(found(api))


def test_removal_is_complete_and_can_be_repeated(littered: ApiServer, connect: Connect) -> None:
    api, kinds = connect(), (JOBS, TRAIN_JOBS, CLAIMS, SECRETS, CRON_JOBS)
    before = {f"{kind.name}/{one['metadata']['name']}" for kind in kinds for one in api.list(kind)}
    waste = found(api)
    assert all(one.remove() for one in waste)
    after = {f"{kind.name}/{one['metadata']['name']}" for kind in kinds for one in api.list(kind)}
    assert after == before - WASTE
    assert not found(api)
    assert not any(one.remove() for one in waste)  # somebody else was faster


def test_another_object_of_the_same_name_is_not_removed(littered: ApiServer, connect: Connect) -> None:
    api = connect()
    (waste,) = (one for one in found(api) if one.name == "scratch")
    claim = api.get(CLAIMS, "scratch")
    api.delete(CLAIMS, "scratch")
    api.create(CLAIMS, {"metadata": {"name": "scratch", "namespace": "proxykd"}, "spec": {
        "accessModes": claim["spec"]["accessModes"], "resources": claim["spec"]["resources"]}})  # fmt: skip
    assert not waste.remove()
    assert api.find(CLAIMS, "scratch")


def test_what_may_not_be_listed_is_told_and_the_rest_is_found(littered: ApiServer, connect: Connect) -> None:
    littered.access.is_enforced = True
    rules = [{"apiGroups": ["batch"], "resources": ["jobs", "cronjobs"], "verbs": ["list", "delete"]}]
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "own"}
    subject = {"kind": "ServiceAccount", "name": "default", "namespace": "proxykd"}
    group = "rbac.authorization.k8s.io/v1"
    littered.apply(
        manifest(group, "Role", "own", rules=rules),
        manifest(group, "RoleBinding", "own", roleRef=reference, subjects=[subject]),
    )
    told: list[str] = []
    waste = list(garbage.find_objects(connect("default"), RECORDS, LATER, tell=told.append))
    assert names(waste) == {"Job/ended", "Job/vanished", "CronJob/half-made"}
    assert [line.split()[0] for line in told] == ["trainjobs", "persistentvolumeclaims", "pods", "secrets"]
    assert all(one.remove() for one in waste)


def test_a_token_that_a_schedule_uses_stays(littered: ApiServer, connect: Connect) -> None:
    littered.apply(cron_job("proxykd-daily", "@daily", {}, token=f"zenml-token-{ENDED}"))
    assert names(found(connect())) == WASTE - {f"Secret/zenml-token-{ENDED}"}


def test_passing_trouble_is_waited_out_and_refusals_are_told(littered: ApiServer, connect: Connect) -> None:
    api = connect()
    littered.trouble.add(429, verb="list", resource="jobs", retry_after_s=0.01)
    littered.trouble.add(503, verb="delete", num_times=2)
    assert all(one.remove() for one in found(api))
    littered.access.is_enforced = True
    with pytest.raises(ClusterForbiddenError, match="list jobs"):
        found(connect("default"))
    littered.close()
    with pytest.raises(ClusterUnreachableError, match=r"got none|got no answer"):
        found(api)


def a_run(run_id: str, *, age: timedelta = timedelta(hours=1), orchestrator: str = "ours") -> Run:
    made = datetime.now(UTC) - age
    return Run(run_id, f"run-{run_id[0]}", "running", False, "production", "kubernetes", orchestrator, made, None, "")


def test_runs_without_jobs_are_abandoned_and_others_are_not(server: ApiServer, connect: Connect) -> None:
    server.apply(job("alive", {"run_id": ALIVE}), job("ended", {}, annotations={"zenml.io/run-id": ENDED}))
    api, ages = connect(), Ages(datetime.now(UTC))
    end_job(server, "Failed", "BackoffLimitExceeded", "2020-01-01T00:00:00Z")
    unfinished = [a_run(one) for one in (ENDED, ALIVE, GONE)]
    unfinished += [a_run("5", age=timedelta(minutes=1)), a_run("6", orchestrator="another's of that name")]
    abandoned = dict(garbage.find_abandoned(api, unfinished, "ours", ages))
    assert {run: waste.reason for run, waste in abandoned.items()} == {
        ENDED: "its last Job ended (BackoffLimitExceeded) and started nothing more",
        GONE: "its Jobs are gone from the cluster",
    }


def test_a_run_whose_job_ended_just_now_may_still_note_it(server: ApiServer, connect: Connect) -> None:
    server.apply(job("ended", {"run_id": ENDED}))
    end_job(server, "Complete")
    stored = connect().get(JOBS, "ended")
    assert not garbage.why_abandoned([stored], Ages(datetime.now(UTC)))
    assert garbage.why_abandoned([stored], LATER)

"""What a run waits for, told from its Jobs and pods."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from cluster import waiting
from cluster.names import QUEUE_LABEL
from tests.cluster.conftest import Connect, manifest
from tests.k8s.api_server import ApiServer
from tests.k8s.kinds import CORE

POD = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "image"}]}
NOW = datetime.fromisoformat("2026-01-02T00:00:00+00:00")
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no GPU"}


def job(name: str, **spec: Any) -> dict[str, Any]:
    labels = {"run_id": "r", QUEUE_LABEL: "proxykd-gpu"}
    annotations = {waiting.STEP_ANNOTATION: name}
    spec = {"template": {"spec": POD}, **spec}
    return manifest("batch/v1", "Job", name, labels=labels, spec=spec, metadata={"annotations": annotations})


def pod(name: str, **status: Any) -> dict[str, Any]:
    labels = {"run_id": "r", "job-name": name}
    return manifest("v1", "Pod", f"{name}-pod", labels=labels, spec=POD, status=status)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        ({"phase": "Pending"}, "for its pod to start"),
        ({"phase": "Pending", "conditions": [UNSCHEDULABLE]}, "Unschedulable: 0/3 nodes: no GPU"),
        (
            {"phase": "Pending", "containerStatuses": [{"name": "main", "state": {"waiting": {
                "reason": "ImagePullBackOff", "message": "no such image"}}}]},
            "ImagePullBackOff: no such image",
        ),
        ({"phase": "Failed"}, "for its pod to be made"),
        ({"phase": "Running"}, None),
    ],
)  # fmt: skip
def test_why_a_step_waits(server: ApiServer, connect: Connect, status: dict[str, Any], reason: str | None) -> None:
    server.apply(job("distill_student"), pod("distill_student"))
    server.store.change(CORE["Pod"], "proxykd", "distill_student-pod", lambda one: one.update(status=status))
    found = waiting.waits(connect(), "r", NOW)
    assert {step: why for step, (_, why) in found.items()} == ({"distill_student": reason} if reason else {})


def test_a_queue_that_has_not_admitted_a_step(server: ApiServer, connect: Connect) -> None:
    server.apply(job("distill_student", suspend=True), job("split"))
    found = waiting.waits(connect(), "r", NOW)
    assert {step: why for step, (_, why) in found.items()} == {
        "distill_student": "to be admitted by the queue proxykd-gpu", "split": "for its pod to be made"
    }  # fmt: skip
    assert not waiting.waits(connect(), "another", NOW)


def test_what_has_ended_waits_for_nothing(server: ApiServer, connect: Connect) -> None:
    server.apply(job("split"))
    end = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    server.store.change(CORE["Job"], "proxykd", "split", lambda one: one.update(status=end))
    assert not waiting.waits(connect(), "r", NOW)


def ago(hours: float) -> str:
    return f"{NOW - timedelta(hours=hours):%Y-%m-%dT%H:%M:%SZ}"


def ended(hours: float) -> dict[str, Any]:
    terminated = {"exitCode": 137, "finishedAt": ago(hours)}
    return {"phase": "Failed", "containerStatuses": [{"name": "main", "state": {"terminated": terminated}}]}


def place(server: ApiServer, one: dict[str, Any], *, made: float, status: Any = None) -> None:
    """An object made so many hours ago."""
    server.apply(one)

    def change(found: dict[str, Any]) -> None:
        found["metadata"]["creationTimestamp"] = ago(made)
        found["status"] = status or {}

    server.store.change(CORE[one["kind"]], "proxykd", one["metadata"]["name"], change)


def hours_waited(connect: Connect, step: str) -> float:
    return (NOW - waiting.waits(connect(), "r", NOW)[step][0]) / timedelta(hours=1)


@pytest.mark.parametrize(
    ("status", "pods", "hours"),
    [
        ({}, {}, 9.0),
        ({"startTime": ago(8)}, {}, 8.0),
        ({"startTime": ago(8)}, {7.5: {"phase": "Pending"}}, 7.5),
        ({"startTime": ago(8)}, {7.5: ended(0.25)}, 0.25),
        ({"startTime": ago(8)}, {7.5: ended(0.25), 0.125: {"phase": "Pending"}}, 0.125),
        (
            {"startTime": ago(8)},
            {7.5: {"phase": "Failed", "conditions": [
                {"type": "DisruptionTarget", "status": "True", "lastTransitionTime": ago(0.5)}]}},
            0.5,
        ),
        ({"conditions": [{"type": "Suspended", "status": "True", "lastTransitionTime": ago(0.5)}]}, {}, 0.5),
    ],
)  # fmt: skip
def test_a_preempted_steps_wait_begins_with_its_preemption(
    server: ApiServer, connect: Connect, status: dict[str, Any], pods: dict[float, Any], hours: float
) -> None:
    place(server, job("align_proxy"), made=9.0, status=status)
    for number, (made, told) in enumerate(pods.items()):
        one = pod("align_proxy")
        one["metadata"]["name"] += str(number)
        place(server, one, made=made, status=told)
    assert hours_waited(connect, "align_proxy") == hours


def test_a_shard_behind_its_siblings_waits_from_their_end(server: ApiServer, connect: Connect) -> None:
    place(server, job("query_teacher_7"), made=9.0)
    place(server, job("query_teacher_0"), made=9.0, status={"startTime": ago(9)})
    place(server, pod("query_teacher_0"), made=9.0, status={"phase": "Running"})
    assert hours_waited(connect, "query_teacher_7") == 0.0
    end = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": ago(2)}]}
    place(server, job("query_teacher_0"), made=9.0, status=end)
    assert hours_waited(connect, "query_teacher_7") == 2.0


def test_the_orchestrators_own_pod_is_nothing_that_runs(server: ApiServer, connect: Connect) -> None:
    walker = job("orchestrator")
    walker["metadata"]["annotations"] = {}
    place(server, walker, made=9.0, status={"startTime": ago(9)})
    place(server, pod("orchestrator"), made=9.0, status={"phase": "Running"})
    place(server, job("split"), made=8.0)
    assert hours_waited(connect, "split") == 8.0


def scheduled(run_id: str, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The orchestrator's Job and pod of a run that a schedule started: the Job's annotation alone names the run."""
    annotations = {"zenml.io/run-id": run_id}
    walker = manifest("batch/v1", "Job", name, spec={"template": {"spec": POD}}, metadata={"annotations": annotations})
    return walker, manifest("v1", "Pod", f"{name}-pod", labels={"job-name": name}, spec=POD)


def test_the_orchestrators_job_of_a_scheduled_run_is_found_by_its_annotation(
    server: ApiServer, connect: Connect
) -> None:
    (walker, own), (another, others) = scheduled("r", "walker"), scheduled("s", "another")
    place(server, walker, made=9.0, status={"startTime": ago(9)})
    place(server, another, made=9.0)
    place(server, others, made=9.0, status={"phase": "Running"})
    place(server, job("split"), made=8.0)
    assert [one["metadata"]["name"] for one in waiting.jobs_of(connect(), "r")] == ["split", "walker"]
    assert {step: why for step, (_, why) in waiting.waits(connect(), "r", NOW).items()} == {
        "split": "for its pod to be made", waiting.ORCHESTRATOR: "for its pod to be made"
    }  # fmt: skip
    place(server, own, made=7.0, status={"phase": "Running"})
    assert set(waiting.waits(connect(), "r", NOW)) == {"split"}


def test_a_pod_that_vanished_between_two_looks_ran_until_the_first(server: ApiServer, connect: Connect) -> None:
    place(server, job("align_proxy"), made=9.0, status={"startTime": ago(9)})
    place(server, pod("align_proxy"), made=9.0, status={"phase": "Running"})
    found, soon, late = waiting.Waits("r"), NOW + timedelta(minutes=1), NOW + timedelta(hours=7)
    assert not found.look(connect(), NOW)
    server.store.delete(CORE["Pod"], "proxykd", "align_proxy-pod")
    for now in (soon, late):
        assert found.look(connect(), now) == {"align_proxy": (NOW, "for its pod to be made")}


def leave(server: ApiServer, hours: float) -> None:
    """The pod of align_proxy was to be gone so many hours ago, and its node says nothing."""

    def change(one: dict[str, Any]) -> None:
        one["metadata"]["deletionTimestamp"], one["spec"]["nodeName"] = ago(hours), "gpu-7"

    server.store.change(CORE["Pod"], "proxykd", "align_proxy-pod", change)


def test_a_pod_on_a_node_that_does_not_answer_runs_no_more(server: ApiServer, connect: Connect) -> None:
    place(server, job("align_proxy"), made=9.0, status={"startTime": ago(9)})
    place(server, pod("align_proxy"), made=9.0, status={"phase": "Running"})
    leave(server, hours=-0.001)
    assert not waiting.waits(connect(), "r", NOW)
    leave(server, hours=0.001)
    assert not waiting.waits(connect(), "r", NOW)
    leave(server, hours=2.0)
    assert hours_waited(connect, "align_proxy") == 2.0
    reason = waiting.waits(connect(), "r", NOW)["align_proxy"][1]
    assert "the node gpu-7 does not answer for the pod align_proxy-pod" in reason
    assert "delete the Node object" in reason

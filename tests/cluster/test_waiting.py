"""What a run waits for, told from its Jobs and pods."""

from typing import Any

import pytest

from cluster import waiting
from tests.cluster.conftest import Connect, manifest
from tests.k8s.api_server import ApiServer
from tests.k8s.kinds import CORE

POD = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "image"}]}
UNSCHEDULABLE = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes: no GPU"}


def job(name: str, **spec: Any) -> dict[str, Any]:
    labels = {"run_id": "r", waiting.QUEUE_LABEL: "proxykd-gpu"}
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
    found = waiting.waits(connect(), "r")
    assert {step: why for step, (_, why) in found.items()} == ({"distill_student": reason} if reason else {})


def test_a_queue_that_has_not_admitted_a_step(server: ApiServer, connect: Connect) -> None:
    server.apply(job("distill_student", suspend=True), job("split"))
    found = waiting.waits(connect(), "r")
    assert {step: why for step, (_, why) in found.items()} == {
        "distill_student": "to be admitted by the queue proxykd-gpu", "split": "for its pod to be made"
    }  # fmt: skip
    assert not waiting.waits(connect(), "another")


def test_what_has_ended_waits_for_nothing(server: ApiServer, connect: Connect) -> None:
    server.apply(job("split"))
    end = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
    server.store.change(CORE["Job"], "proxykd", "split", lambda one: one.update(status=end))
    assert not waiting.waits(connect(), "r")

"""Schedules as CronJobs: taken over from ZenML's, changed in place, never doubled, and never somebody else's."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import schedules
from cluster.api import ClusterApi
from cluster.kinds import CRON_JOBS, JOBS
from proxykd.config.schedule import ScheduleSpec
from proxykd.exceptions import ClusterForbiddenError, ConfigError
from tests.cluster.conftest import Connect, manifest
from tests.k8s.api_server import ApiServer

POD = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "image", "args": ["--snapshot_id", "1"]}]}
NIGHTLY = schedules.timing(ScheduleSpec(cron="0 3 * * *", time_zone="Europe/Berlin"))
NOTES = {schedules.FINGERPRINT: "1"}


def of_zenml(name: str, *arguments: str) -> dict[str, Any]:
    """A CronJob as ZenML makes it: random name, no time zone, ZenML's labels."""
    pod = {**POD, "containers": [{**POD["containers"][0], "args": list(arguments)}]}  # type: ignore[dict-item]
    labels, annotations = {"project_id": "p", "pipeline": "distill"}, {"zenml.io/orchestrator": "o"}
    template = {"metadata": {"name": name, "labels": labels, "annotations": annotations},
                "spec": {"backoffLimit": 3, "template": {"spec": pod}}}  # fmt: skip
    spec = {"schedule": schedules.NEVER, "jobTemplate": template}
    return manifest("batch/v1", "CronJob", name, labels=labels, spec=spec, metadata={"annotations": annotations})


def names(api: ClusterApi) -> list[str]:
    return [found["metadata"]["name"] for found in api.list(CRON_JOBS)]


def adopt(server: ApiServer, api: ClusterApi, made: str, wanted: Any = NIGHTLY, notes: Any = NOTES) -> dict[str, Any]:
    server.apply(of_zenml(made, made))
    schedules.adopt(api, made, "nightly", wanted, notes)
    return api.get(CRON_JOBS, "proxykd-nightly")


def test_what_zenml_makes_becomes_the_schedules_own(server: ApiServer, connect: Connect) -> None:
    api = connect()
    found = adopt(server, api, "1a2b-distill")
    assert names(api) == ["proxykd-nightly"]
    spec = found["spec"]
    assert (spec["schedule"], spec["timeZone"], spec["concurrencyPolicy"], spec["startingDeadlineSeconds"]) == (
        "0 3 * * *", "Europe/Berlin", "Forbid", 3600
    )  # fmt: skip
    template = spec["jobTemplate"]
    assert "name" not in template["metadata"]
    assert template["metadata"]["labels"] == {
        "project_id": "p", "pipeline": "distill", "app.kubernetes.io/part-of": "proxykd",
        "proxykd.dev/schedule": "nightly",
    }  # fmt: skip
    assert template["spec"]["template"]["spec"]["containers"][0]["args"] == ["1a2b-distill"]
    assert not schedules.differences(found, NIGHTLY)
    assert schedules.note(found, schedules.FINGERPRINT) == "1"


def test_a_second_application_replaces_what_is_run_and_leaves_no_twin(server: ApiServer, connect: Connect) -> None:
    api = connect()
    first = adopt(server, api, "1a2b-distill")
    second = adopt(server, api, "3c4d-distill", notes={schedules.FINGERPRINT: "2"})
    assert names(api) == ["proxykd-nightly"]
    assert second["metadata"]["uid"] == first["metadata"]["uid"]
    assert second["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"] == ["3c4d-distill"]
    assert schedules.note(second, schedules.FINGERPRINT) == "2"


def test_times_are_changed_in_place_and_only_where_they_differ(server: ApiServer, connect: Connect) -> None:
    api = connect()
    found = adopt(server, api, "1a2b-distill")
    wanted = schedules.timing(ScheduleSpec(cron="@daily", time_zone="Europe/Berlin", starting_deadline_s=None))
    assert schedules.differences(found, wanted) == {
        "schedule": ("0 3 * * *", "@daily"), "startingDeadlineSeconds": (3600, None)
    }  # fmt: skip
    schedules.retime(api, "nightly", wanted)
    assert not schedules.differences(api.get(CRON_JOBS, "proxykd-nightly"), wanted)


def test_a_conflict_with_whoever_else_changes_it_is_tried_again(server: ApiServer, connect: Connect) -> None:
    api = connect()
    adopt(server, api, "1a2b-distill")
    server.trouble.add(409, verb="patch", resource="cronjobs", num_times=3)
    found = adopt(server, api, "3c4d-distill")
    assert found["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"] == ["3c4d-distill"]
    assert names(api) == ["proxykd-nightly"]


def test_a_lost_answer_and_an_overloaded_server_make_no_twin(server: ApiServer, connect: Connect) -> None:
    api = connect()
    server.trouble.add(503, verb="create", resource="cronjobs", is_after=True)
    server.trouble.add(429, verb="delete", resource="cronjobs", retry_after_s=0.01)
    adopt(server, api, "1a2b-distill")
    assert names(api) == ["proxykd-nightly"]


def test_a_cron_job_of_somebody_else_is_left_alone(server: ApiServer, connect: Connect) -> None:
    foreign = of_zenml("proxykd-nightly", "theirs")
    server.apply(foreign)
    api = connect()
    with pytest.raises(ConfigError, match="not a schedule of proxykd"):
        schedules.find(api, "nightly")
    with pytest.raises(ConfigError, match="not a schedule of proxykd"):
        adopt(server, api, "1a2b-distill")
    assert not list(schedules.listed(api))


def applied(target: Any, patch: Any) -> Any:
    """RFC 7386, section 2."""
    if not isinstance(patch, dict):
        return patch
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = applied(result.get(key), value)
    return result


JSON = st.recursive(
    st.integers(0, 2) | st.booleans(),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.sampled_from("abc"), JSON, max_size=3)


@given(OBJECTS, OBJECTS)
def test_a_merge_patch_leads_from_one_object_to_the_other(old: dict[str, Any], new: dict[str, Any]) -> None:
    patch = schedules.merge_patch(old, new)
    assert applied(old, patch) == new
    assert not schedules.merge_patch(new, new)


def test_listing_and_removing(server: ApiServer, connect: Connect) -> None:
    api = connect()
    adopt(server, api, "1a2b-distill")
    (standing,) = schedules.listed(api)
    assert (standing.name, standing.cron, standing.time_zone, standing.is_suspended, standing.active) == (
        "nightly", "0 3 * * *", "Europe/Berlin", False, 0
    )  # fmt: skip
    found = schedules.required(api, "nightly")
    assert schedules.remove(api, found)
    assert not schedules.remove(api, found)
    with pytest.raises(ConfigError, match="schedule list"):
        schedules.required(api, "nightly")


def test_runs_that_are_under_way_outlive_their_schedule(server: ApiServer, connect: Connect) -> None:
    api = connect()
    found = adopt(server, api, "1a2b-distill")
    reference = {"apiVersion": "batch/v1", "kind": "CronJob", "controller": True}
    owner = {**reference, "name": found["metadata"]["name"], "uid": found["metadata"]["uid"]}
    fired = {"metadata": {"ownerReferences": [owner]}, "spec": {"template": {"spec": POD}}}
    server.apply(manifest("batch/v1", "Job", "proxykd-nightly-1", **fired))
    assert schedules.remove(api, found)
    (job,) = api.list(JOBS)
    assert not job["metadata"].get("ownerReferences")


def test_a_forbidden_verb_is_told(server: ApiServer, connect: Connect) -> None:
    adopt(server, connect(), "1a2b-distill")
    server.access.is_enforced = True
    with pytest.raises(ClusterForbiddenError, match="patch cronjobs"):
        schedules.retime(connect("default"), "nightly", NIGHTLY)

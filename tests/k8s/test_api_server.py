"""The API server double through the official client: what clients rely on, and each fault it makes on demand."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client, config, watch
from urllib3.exceptions import MaxRetryError

from tests.k8s.access import service_account
from tests.k8s.api_server import ApiServer, api_server


def job(name: str = "work", **spec: Any) -> dict[str, Any]:
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "image"}]}
    meta = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": meta, "spec": {"template": {"spec": pod}, **spec}}


def train_job(**trainer: Any) -> dict[str, Any]:
    spec = {"runtimeRef": {"name": "torch"}, "trainer": {"numNodes": 2, **trainer}}
    return {
        "apiVersion": "trainer.kubeflow.org/v1alpha1",
        "kind": "TrainJob",
        "metadata": {"name": "train"},
        "spec": spec,
    }


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiServer]:
    with api_server(tmp_path / "api") as server:
        server.create_namespace("proxykd")
        yield server


def clients(api: ApiServer, account: str = "") -> client.ApiClient:
    return config.new_client_from_config(str(api.kubeconfig("proxykd", account=account)))


def refused(code: int, call: Any, *arguments: Any, **options: Any) -> str:
    with pytest.raises(client.ApiException) as caught:
        call(*arguments, **options)
    assert caught.value.status == code, caught.value.body
    return str(caught.value.body)


def test_jobs_are_stored_found_changed_and_deleted(api: ApiServer) -> None:
    batch = client.BatchV1Api(clients(api))
    policy = {"rules": [{"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget"}]}]}

    made = batch.create_namespaced_job("proxykd", job(podFailurePolicy=policy))
    other = job("other")
    other["metadata"] = {"generateName": "other-"}
    assert batch.create_namespaced_job("proxykd", other).metadata.name.startswith("other-")

    assert made.spec.pod_failure_policy.rules[0].on_pod_conditions[0].status == "True"
    assert made.spec.template.metadata.labels["job-name"] == "work"
    assert refused(409, batch.create_namespaced_job, "proxykd", job())
    found = batch.list_namespaced_job("proxykd", label_selector="app in (work),!gone")
    assert [one.metadata.name for one in found.items] == ["work"]
    batch.patch_namespaced_job("work", "proxykd", {"metadata": {"annotations": {"run": "7"}}})
    assert batch.read_namespaced_job("work", "proxykd").metadata.annotations == {"run": "7"}
    assert "modified" in refused(409, batch.replace_namespaced_job, "work", "proxykd", made)
    batch.delete_namespaced_job("work", "proxykd")
    assert refused(404, batch.read_namespaced_job, "work", "proxykd")


def test_what_an_owner_owns_goes_with_it(api: ApiServer) -> None:
    batch = client.BatchV1Api(clients(api))
    owner = batch.create_namespaced_job("proxykd", job("owner"))
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": "owner", "uid": owner.metadata.uid}
    for name in ("first", "second"):
        owned = job(name)
        owned["metadata"]["ownerReferences"] = [reference]
        batch.create_namespaced_job("proxykd", owned)

    batch.delete_namespaced_job("owner", "proxykd", propagation_policy="Background")

    assert not batch.list_namespaced_job("proxykd").items


def test_orphans_stay(api: ApiServer) -> None:
    batch = client.BatchV1Api(clients(api))
    owner = batch.create_namespaced_job("proxykd", job("owner"))
    owned = job("owned")
    owned["metadata"]["ownerReferences"] = [
        {"apiVersion": "batch/v1", "kind": "Job", "name": "owner", "uid": owner.metadata.uid}
    ]
    batch.create_namespaced_job("proxykd", owned)

    batch.delete_namespaced_job("owner", "proxykd", propagation_policy="Orphan")

    assert [one.metadata.name for one in batch.list_namespaced_job("proxykd").items] == ["owned"]


@pytest.mark.parametrize(
    ("found", "word"),
    [(job(backoffLimt=1), "backoffLimt"), (train_job(numNode=1), "numNode"), (job(backoffLimit="two"), "backoffLimit")],
)
def test_an_object_that_breaks_its_schema_is_refused(api: ApiServer, found: dict[str, Any], word: str) -> None:
    objects = client.CustomObjectsApi(clients(api))
    group, version = found["apiVersion"].split("/")
    plural = f"{found['kind'].lower()}s"

    assert word in refused(422, objects.create_namespaced_custom_object, group, version, "proxykd", plural, found)


def test_a_custom_object_lives_as_any_other(api: ApiServer) -> None:
    objects = client.CustomObjectsApi(clients(api))
    where = ("trainer.kubeflow.org", "v1alpha1", "proxykd", "trainjobs")

    objects.create_namespaced_custom_object(*where, train_job())
    objects.patch_namespaced_custom_object(*where, "train", {"spec": {"suspend": True}})
    done = {"type": "Complete", "status": "True", "reason": "Done", "message": ""}
    status = {"status": {"conditions": [{**done, "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}
    objects.patch_namespaced_custom_object_status(*where, "train", status)

    found = objects.get_namespaced_custom_object(*where, "train")
    assert found["spec"]["suspend"] is True
    assert found["status"]["conditions"][0]["type"] == "Complete"


def test_a_watch_tells_each_change_once(api: ApiServer) -> None:
    batch = client.BatchV1Api(clients(api))
    batch.create_namespaced_job("proxykd", job("before"))
    since = batch.list_namespaced_job("proxykd").metadata.resource_version
    batch.create_namespaced_job("proxykd", job("after"))
    batch.delete_namespaced_job("before", "proxykd")

    seen = watch.Watch().stream(
        batch.list_namespaced_job, "proxykd", resource_version=since, timeout_seconds=1, label_selector="app"
    )

    told = [(event["type"], event["object"].metadata.name) for event in seen]
    assert told == [("ADDED", "after"), ("DELETED", "before")]


def test_a_service_account_may_do_what_its_role_says(api: ApiServer) -> None:
    api.access.is_enforced = True
    rules = [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get", "list"]}]
    meta = {"name": "reader", "namespace": "proxykd"}
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "reader"}
    subject = {"kind": "ServiceAccount", "name": "step", "namespace": "proxykd"}
    group = "rbac.authorization.k8s.io/v1"
    api.apply(
        {"apiVersion": group, "kind": "Role", "metadata": meta, "rules": rules},
        {"apiVersion": group, "kind": "RoleBinding", "metadata": meta, "roleRef": reference, "subjects": [subject]},
    )
    batch = client.BatchV1Api(clients(api, "step"))

    assert batch.list_namespaced_job("proxykd").items == []
    assert "cannot create" in refused(403, batch.create_namespaced_job, "proxykd", job())
    review = client.AuthorizationV1Api(clients(api, "step")).create_self_subject_access_review
    asked = {"group": "batch", "resource": "jobs", "namespace": "proxykd"}
    for verb, is_allowed in (("list", True), ("delete", False)):
        found = review({"spec": {"resourceAttributes": {**asked, "verb": verb}}})
        assert found.status.allowed is is_allowed
    assert api.access.used(service_account("proxykd", "step")) >= {("batch", "jobs", "list")}


def test_faults_on_demand(api: ApiServer) -> None:
    batch = client.BatchV1Api(clients(api))

    api.trouble.add(409, verb="create", resource="jobs")
    refused(409, batch.create_namespaced_job, "proxykd", job())
    api.trouble.add(503, verb="create", is_after=True)
    refused(503, batch.create_namespaced_job, "proxykd", job())
    assert batch.read_namespaced_job("work", "proxykd")
    api.trouble.add(429, verb="list", retry_after_s=0.0)
    assert batch.list_namespaced_job("proxykd").items, "the client itself repeats what carries Retry-After"
    api.access.expire("kubernetes-admin")
    refused(401, batch.list_namespaced_job, "proxykd")
    assert client.BatchV1Api(clients(api)).list_namespaced_job("proxykd").items


def test_the_server_goes_away_and_comes_back_with_what_it_had(api: ApiServer) -> None:
    batch = client.BatchV1Api(clients(api))
    batch.create_namespaced_job("proxykd", job())

    api.go_away(0.3)
    with pytest.raises(MaxRetryError):
        batch.list_namespaced_job("proxykd")

    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            assert [one.metadata.name for one in batch.list_namespaced_job("proxykd").items] == ["work"]
            return
        except MaxRetryError:
            time.sleep(0.05)
    pytest.fail("it did not come back")


def test_a_dry_run_is_checked_like_the_real_thing_and_stores_nothing(api: ApiServer) -> None:
    core = client.CoreV1Api(clients(api))
    secret = {"metadata": {"name": "teacher"}}
    assert core.create_namespaced_secret("proxykd", secret, dry_run="All").metadata.name == "teacher"
    assert not core.list_namespaced_secret("proxykd").items
    core.create_namespaced_secret("proxykd", secret)
    assert "AlreadyExists" in refused(409, core.create_namespaced_secret, "proxykd", secret, dry_run="All")
    assert "NotFound" in refused(404, core.create_namespaced_secret, "elsewhere", secret, dry_run="All")

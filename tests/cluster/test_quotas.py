"""The namespace's quota and limit range: what they refuse, what comes of it, and that production's runs fit."""

import copy
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest
import yaml

from cluster import waiting
from cluster.kinds import CLAIMS, JOBS, PODS
from cluster.manifest import train_job
from cluster.refusals import refusals
from pipelines.placement import step_options
from proxykd.config.placement import PlacementSpec, amount, load_placement
from proxykd.config.stack import KubernetesStackSpec, load_stack
from proxykd.config.steps import DIVISIBLE, step_names
from proxykd.exceptions import ClusterError
from tests.cluster.conftest import CHECKOUT, Connect, manifest, runtime
from tests.k8s.api_server import ApiServer
from tests.k8s.jobs import Jobs
from tests.k8s.kinds import CORE
from tests.k8s.quotas import total, usage
from tests.k8s.train_jobs import child_job

K8S = CHECKOUT / "k8s"
PLACEMENTS = ("cpu", "gpu", "large", "pools")


def read(path: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((K8S / path).read_text(encoding="utf-8"))
    return found


def quota(**hard: str) -> dict[str, Any]:
    names = {key.replace("__", "/").replace("_", "."): value for key, value in hard.items()}
    return manifest("v1", "ResourceQuota", "small", spec={"hard": names})


def pod(name: str, **resources: Any) -> dict[str, Any]:
    container = {"name": "main", "image": "image", "resources": resources}
    return manifest("v1", "Pod", name, spec={"containers": [container], "restartPolicy": "Never"})


def test_a_pod_beyond_the_quota_is_refused_in_kubernetes_words(server: ApiServer, connect: Connect) -> None:
    server.apply(quota(pods="2", requests_cpu="5"))
    api = connect()
    api.create(PODS, pod("a", requests={"cpu": "3"}))
    told = r"exceeded quota: small, requested: requests\.cpu=3, used: requests\.cpu=3, limited: requests\.cpu=5"
    with pytest.raises(ClusterError, match=rf"a rule of the namespace refuses it .*{told}"):
        api.create(PODS, pod("b", requests={"cpu": "3"}))
    with pytest.raises(ClusterError, match=r"failed quota: small: must specify requests\.cpu"):
        api.create(PODS, pod("b"))
    server.store.change(CORE["Pod"], "proxykd", "a", lambda one: one["status"].update(phase="Succeeded"))
    api.create(PODS, pod("b", requests={"cpu": "3"}))  # what has ended takes nothing


@pytest.mark.parametrize("name", ["requests.nvidia.com/gpu", "limits.memory", "count/jobs.batch", "requests.storage"])
def test_each_amount_is_kept(server: ApiServer, connect: Connect, name: str) -> None:
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "3"}}}
    both = {"memory": "3", "nvidia.com/gpu": "3"}
    whole = pod("a", requests=both, limits=both)
    job = manifest("batch/v1", "Job", "j", spec={"template": {"spec": whole["spec"]}})
    kind, body = {
        "requests.storage": (CLAIMS, manifest("v1", "PersistentVolumeClaim", "c", spec=spec)),
        "count/jobs.batch": (JOBS, job),
    }.get(name, (PODS, whole))
    server.apply(manifest("v1", "ResourceQuota", "small", spec={"hard": {name: "0"}}))
    with pytest.raises(ClusterError, match=f"exceeded quota: small, requested: {name}="):
        connect().create(kind, body)
    server.apply(manifest("v1", "ResourceQuota", "small", spec={"hard": {name: "3"}}))
    connect().create(kind, body)


def test_a_container_that_says_nothing_gets_what_the_range_says(server: ApiServer, connect: Connect) -> None:
    server.apply(read("base/runtime/limits.yaml"), namespace="proxykd")
    connect().create(PODS, pod("a"))
    (container,) = connect().get(PODS, "a")["spec"]["containers"]
    assert container["resources"]["requests"] == {"cpu": "250m", "memory": "512Mi", "ephemeral-storage": "1Gi"}
    assert container["resources"]["limits"] == {"memory": "2Gi", "ephemeral-storage": "20Gi"}  # none on processors
    with pytest.raises(ClusterError, match="maximum memory usage per Container"):
        connect().create(PODS, pod("b", limits={"memory": "100Ti"}))


def test_a_job_whose_pod_is_refused_waits_says_why_and_runs_when_there_is_room(
    server: ApiServer,
    connect: Connect,
) -> None:
    server.apply(quota(pods="1"), pod("other"))
    jobs = Jobs(server.store)
    jobs.start()
    try:
        api, labels = connect(), {"run_id": "r"}
        template = {"metadata": {"labels": labels}, "spec": pod("a")["spec"]}
        api.create(JOBS, manifest("batch/v1", "Job", "step", labels=labels, spec={"template": template}))
        now = datetime.now(UTC)
        why = _awaited(lambda: [text for _, text in waiting.waits(api, "r", now).values() if "quota" in text])
        assert why[0].startswith("for its pod to be made: Error creating: pods ")
        assert "exceeded quota: small, requested: pods=1, used: pods=1, limited: pods=1" in why[0]
        api.delete(PODS, "other")
        assert _awaited(lambda: list(api.list(PODS, labels="run_id=r")))
    finally:
        jobs.stop()


def test_who_may_not_read_events_is_told_less(server: ApiServer, connect: Connect) -> None:
    server.access.is_enforced = True
    assert refusals(connect("default")) == {}


def _awaited(look: Any, seconds: float = 10.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


@pytest.fixture(params=PLACEMENTS)
def placement(request: Any) -> PlacementSpec:
    return load_placement(K8S / "placements" / f"{request.param}.yaml")


def step_pods(placement: PlacementSpec, step: str) -> Iterator[dict[str, Any]]:
    """Those of a step at its widest: its portions, and the pods of its TrainJob."""
    stack = load_stack("kubernetes")
    assert isinstance(stack, KubernetesStackSpec)
    shards = placement.shards.get(step, 1) if step in DIVISIBLE else 1
    settings = step_options(stack, placement, step)["settings"]["orchestrator"]
    for number in range(shards):
        yield pod(f"{step}-{number}", **settings.pod_settings.resources)
    launcher = placement.launcher(step)
    if launcher.kind == "trainjob":
        name = step.replace("_", "-")
        body = train_job(name, launcher, arguments=["m", "j"], image="image", work="w", owner={}, environ={})
        child = child_job(body, runtime(), name)
        for number in range(child["spec"]["completions"]):
            template = copy.deepcopy(child["spec"]["template"])
            yield manifest("v1", "Pod", f"{name}-node-{number}", spec=template["spec"])


def resident(placement: PlacementSpec) -> Iterator[dict[str, Any]]:
    """What is there during every run: MLflow twice and while it migrates, and the pod that walks the pipeline."""
    for number, path in enumerate(("deployment", "deployment", "migration")):
        (found,) = (
            one
            for one in yaml.load_all(
                (K8S / f"base/mlflow/{path}.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader
            )
            if one["kind"] in ("Deployment", "Job")
        )
        yield manifest("v1", "Pod", f"mlflow-{number}", spec=found["spec"]["template"]["spec"])
    own = placement.orchestrator
    resources = {"requests": {"cpu": own.cpu, "memory": own.memory}, "limits": {"memory": own.memory}}
    yield pod("orchestrator", **resources)


AT_ONCE = [
    ("query_teacher",),
    ("align_proxy", "distill_student_sft"),
    ("estimate_distributions", "distill_student_sft"),
    ("distill_student_sft", "distill_student_proxy_kd"),
    ("evaluate_student", "distill_student_proxy_kd"),
]
"""Steps that may run side by side, as the pipeline's arrows let them."""


@pytest.mark.parametrize("steps", AT_ONCE, ids="+".join)
def test_the_pods_of_a_run_fit_into_the_bases_quota(
    server: ApiServer,
    placement: PlacementSpec,
    steps: tuple[str, ...],
) -> None:
    server.apply(read("base/runtime/limits.yaml"), read("base/runtime/quota.yaml"), namespace="proxykd")
    made = [*resident(placement), *(one for step in steps for one in step_pods(placement, step))]
    for one in made:
        server.store.create(CORE["Pod"], "proxykd", one)  # a refusal names the quota
    taken = total(usage(CORE["Pod"], one) for one in server.store.list(CORE["Pod"], "proxykd"))
    assert taken["pods"] == len(made)


def test_what_a_pool_may_be_asked_for_is_what_the_range_allows(placement: PlacementSpec) -> None:
    (most,) = (one["max"] for one in read("base/runtime/limits.yaml")["spec"]["limits"] if one["type"] == "Container")
    assert set(most) == {"memory"}  # a bound on processors would be every step's limit
    for name, pool in placement.pools.items():
        assert amount(pool.memory_max or "0") <= amount(most["memory"]), name


def test_the_jobs_of_a_dozen_runs_fit_that_are_kept_for_a_day(placement: PlacementSpec) -> None:
    hard = read("base/runtime/quota.yaml")["spec"]["hard"]
    assert placement.orchestrator.keep_s == 86_400
    shards = {step: placement.shards.get(step, 1) for step in DIVISIBLE}
    assert Decimal(hard["count/jobs.batch"]) >= 12 * (1 + len(step_names(shards)))

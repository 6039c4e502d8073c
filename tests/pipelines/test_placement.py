"""Placements as ZenML's settings: the Jobs that ZenML makes of them are strictly valid and pass the policy."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.client import ApiClient, V1EnvVar
from zenml.integrations.kubernetes.flavors import KubernetesOrchestratorSettings
from zenml.integrations.kubernetes.manifest_utils import (
    build_job_manifest,
    build_pod_manifest,
    pod_template_manifest_from_pod,
)

from cluster.orchestrator import unset
from pipelines.placement import checked, failure_policy, run_options
from proxykd.config.launcher import LAUNCHER_VARIABLE, LauncherSpec
from proxykd.config.placement import OrchestratorPodSpec, PlacementSpec, load_placement
from proxykd.config.stack import ClusterStackSpec, load_stack
from proxykd.config.steps import STEPS, TRAINING
from proxykd.exceptions import ConfigError
from tests.k8s.defaults import without_nulls
from tests.k8s.jobs import verdict
from tests.k8s.policy import check
from tests.k8s.schemas import faults
from tests.support.kubectl import render
from tests.support.program import CHECKOUT

pytestmark = pytest.mark.integration

PLACEMENTS = sorted((CHECKOUT / "k8s" / "placements").glob("*.yaml"))


def stack() -> ClusterStackSpec:
    found = load_stack("kubernetes")
    assert isinstance(found, ClusterStackSpec)
    return found


def job(name: str, settings: Any, pod_settings: Any, retries: int) -> dict[str, Any]:
    """The Job that ZenML would make, as the API server stores it."""
    pod = build_pod_manifest(
        pod_name=None,
        image_name=stack().image,
        command=["python"],
        args=[],
        privileged=False,
        pod_settings=pod_settings,
        service_account_name=settings.step_pod_service_account_name or settings.service_account_name,
        labels=(labels := {"project_id": "1"}),  # ZenML adds to these in place
        termination_grace_period_seconds=settings.pod_stop_grace_period,
    )
    made = build_job_manifest(
        job_name=name.replace("_", "-"),
        pod_template=pod_template_manifest_from_pod(pod),
        backoff_limit=retries,
        labels=labels,
        pod_failure_policy=settings.pod_failure_policy,
    )
    plain: dict[str, Any] = without_nulls(ApiClient().sanitize_for_serialization(made))
    plain["metadata"]["namespace"] = "proxykd"
    return {"apiVersion": "batch/v1", "kind": "Job", **plain}


def jobs(placement: PlacementSpec) -> list[dict[str, Any]]:
    options = run_options(stack(), placement)
    run = options["settings"]["orchestrator"]
    found = [job("orchestrator", run.model_copy(update={"step_pod_service_account_name": None}),
                 run.orchestrator_pod_settings, 3)]  # fmt: skip
    for name, own in options["step_configurations"].items():
        settings = own["settings"]["orchestrator"]
        found.append(job(name, settings, settings.pod_settings, own["retry"].max_retries))
    return found


def test_zenmls_address_for_pods_reaches_the_orchestrator_once_and_instead_of_the_submitters() -> None:
    told = stack().model_copy(update={"zenml_url": "http://zenml.zenml"})
    options = run_options(told, load_placement(PLACEMENTS[0]))["settings"]["orchestrator"]
    pod = options.orchestrator_pod_settings.env
    assert [one["value"] for one in pod if one["name"] == "ZENML_STORE_URL"] == ["http://zenml.zenml"]
    handed_on = {"ZENML_STORE_URL": "http://127.0.0.1:8080", "ZENML_USER_ID": "7"}
    assert unset(handed_on, pod) == {"ZENML_USER_ID": "7"}
    assert unset(handed_on, [V1EnvVar(name="ZENML_STORE_URL")]) == {"ZENML_USER_ID": "7"}


@pytest.mark.parametrize(("parallel", "starters"), [(1, "1"), (32, "32"), (256, "32")])
def test_no_more_jobs_are_made_at_once_than_run_at_once(parallel: int, starters: str) -> None:
    from zenml.orchestrators import dag_runner

    orchestrator = OrchestratorPodSpec(parallel_steps=parallel)
    placement = load_placement(PLACEMENTS[0]).model_copy(update={"orchestrator": orchestrator})
    pod = run_options(stack(), placement)["settings"]["orchestrator"].orchestrator_pod_settings
    told = {one["name"]: one["value"] for one in pod.env if "value" in one}
    assert told[dag_runner.ENV_ZENML_DAG_RUNNER_WORKER_COUNT] == starters


@pytest.mark.parametrize("path", PLACEMENTS, ids=lambda path: path.stem)
def test_every_pod_is_strictly_valid_and_passes_the_policy(path: Path) -> None:
    overlay = render(CHECKOUT / "k8s" / "overlays" / "production")

    made = jobs(load_placement(path))

    assert len(made) == len(STEPS) + 1
    assert not [told for found in made for told in faults(found)]
    assert check([*overlay, *made]) == check(overlay)


def test_gpus_queue_and_launcher_are_where_kubernetes_looks_for_them() -> None:
    made = {found["metadata"]["name"]: found for found in jobs(load_placement(CHECKOUT / "k8s/placements/gpu.yaml"))}

    align, distill = made["align-proxy"], made["distill-student-sft"]
    pod = align["spec"]["template"]["spec"]
    assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
    evaluate = made["evaluate-student"]["spec"]["template"]["spec"]["containers"][0]["resources"]
    assert evaluate["limits"]["ephemeral-storage"] == evaluate["requests"]["ephemeral-storage"] == "160Gi"
    for labels in (align["metadata"]["labels"], align["spec"]["template"]["metadata"]["labels"]):
        assert labels["kueue.x-k8s.io/queue-name"] == "proxykd-h100"
    assert "nodeSelector" not in pod
    own = distill["spec"]["template"]["spec"]
    assert (own["serviceAccountName"], own["automountServiceAccountToken"]) == ("proxykd-trainer", True)
    (told,) = [one["value"] for one in own["containers"][0]["env"] if one["name"] == LAUNCHER_VARIABLE]
    launcher = LauncherSpec.model_validate_json(told)
    assert (launcher.kind, launcher.nodes, launcher.gpus, launcher.queue) == ("trainjob", 2, 8, "proxykd-h100-spot")
    orchestrator = made["orchestrator"]
    assert "kueue.x-k8s.io/queue-name" not in orchestrator["metadata"]["labels"]


def test_a_launcher_that_holds_for_all_gives_the_trainers_rights_to_steps_that_train_alone(tmp_path: Path) -> None:
    path = tmp_path / "placement.yaml"
    default = {"pool": "cpu", "launcher": {"kind": "trainjob"}}
    steps = {"default": default, "query_teacher": {"role": "teacher-query"}}
    path.write_text(yaml.safe_dump({"pools": {"cpu": {}}, "steps": steps}), encoding="utf-8")

    rights = {}
    for name, own in run_options(stack(), load_placement(path))["step_configurations"].items():
        settings = own["settings"]["orchestrator"]
        pod = settings.pod_settings
        has_token = pod.additional_pod_spec_args["automount_service_account_token"]
        rights[name] = settings.step_pod_service_account_name, has_token, pod.labels["proxykd.dev/role"]
    ordinary = dict.fromkeys(STEPS, ("proxykd-step", False, "step"))
    trains = dict.fromkeys(TRAINING, ("proxykd-trainer", True, "launcher"))
    assert rights == {**ordinary, **trains, "query_teacher": ("proxykd-step", False, "teacher-query")}


@pytest.mark.parametrize(
    ("retries", "code", "is_lost", "action"),
    [
        (0, 137, True, "Ignore"),
        (0, 143, True, "Ignore"),
        (0, 1, False, "FailJob"),
        (0, 137, False, "FailJob"),
        (2, 1, True, "Ignore"),
        (2, 1, False, "FailJob"),
        (2, 137, False, "Count"),
    ],
)
def test_what_the_end_of_a_pod_means(retries: int, code: int, is_lost: bool, action: str) -> None:
    ended = {"name": "main", "state": {"terminated": {"exitCode": code}}}
    lost = [{"type": "DisruptionTarget", "status": "True"}] if is_lost else []

    assert verdict(failure_policy(retries), {"status": {"containerStatuses": [ended], "conditions": lost}}) == action


def test_a_setting_that_zenml_does_not_know_is_told() -> None:
    with pytest.raises(ConfigError, match="pod_setings"):
        checked({"pod_setings": {}}, KubernetesOrchestratorSettings)


def test_steps_without_a_way_to_the_hub_do_not_ask_it() -> None:
    made = {found["metadata"]["name"]: found for found in jobs(load_placement(CHECKOUT / "k8s/placements/gpu.yaml"))}

    for name, found in made.items():
        template = found["spec"]["template"]
        told = {one["name"]: one.get("value") for one in template["spec"]["containers"][0]["env"]}
        is_outside = template["metadata"]["labels"]["proxykd.dev/role"] == "teacher-query"
        assert told.get("HF_HUB_OFFLINE") == (None if is_outside else "1"), name


@pytest.mark.parametrize("path", PLACEMENTS, ids=lambda path: path.stem)
def test_weights_are_read_only_and_what_is_written_beside_them_lies_elsewhere(path: Path) -> None:
    for found in jobs(load_placement(path)):
        pod = found["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
        closed = [mount["mountPath"] for mount in container["volumeMounts"] if mount.get("readOnly")]
        assert closed == ([] if found["metadata"]["name"].endswith("orchestrator") else ["/models"])
        variables = {one["name"]: one["value"] for one in container["env"] if "value" in one}
        caches = {name: value for name, value in variables.items() if name.startswith("HF_") and "CACHE" in name}
        assert caches.pop("HF_DATASETS_CACHE") == "/home/proxykd/datasets"
        # Data sets of the hub bring a card, which is fetched where no weights are looked for.
        asks = found["metadata"]["name"].startswith("query-teacher")
        assert caches == ({"HF_HUB_CACHE": "/home/proxykd/hub"} if asks else {})

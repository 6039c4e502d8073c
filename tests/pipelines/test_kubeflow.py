"""What Kubeflow Pipelines is sent for the main job: the committed file, pods as placed, and nothing secret in it."""

import os
import re
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

from cluster.kubeflow_task import is_credential
from proxykd.config.placement import load_placement
from proxykd.config.stack import KubeflowStackSpec, load_stack
from proxykd.config.steps import STEPS
from proxykd.exceptions import ConfigError
from proxykd.workspace import Workspace
from tests.k8s.kubeflow_pipelines import Run
from tests.k8s.schemas import faults
from tests.support.command import Ended
from tests.support.program import CHECKOUT, PROXYKD
from tests.support.secrets import KEY, leaks

GOLDEN = CHECKOUT / "tests" / "pipelines" / "golden" / "distill.yaml"
COMMAND = "compile configs/quickstart.yaml --stack kubeflow --output tests/pipelines/golden/distill.yaml"
"""Renews the file."""
SECRETS = {"OPENAI_API_KEY": KEY, "AWS_SECRET_ACCESS_KEY": KEY, "MLFLOW_TRACKING_PASSWORD": KEY}


class Compiled(NamedTuple):
    """The two documents of a compiled pipeline."""

    spec: dict[str, Any]
    platform: dict[str, Any]

    def container(self, step: str) -> dict[str, Any]:
        found: dict[str, Any] = self.spec["deploymentSpec"]["executors"][f"exec-{step.replace('_', '-')}"]["container"]
        return found

    def pod(self, step: str) -> dict[str, Any]:
        executors = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        found: dict[str, Any] = executors[f"exec-{step.replace('_', '-')}"]
        return found

    def environment(self, step: str) -> dict[str, str]:
        return {one["name"]: one["value"] for one in self.container(step)["env"]}


@pytest.fixture(scope="module")
def golden() -> Compiled:
    return Compiled(*yaml.safe_load_all(GOLDEN.read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def stack() -> KubeflowStackSpec:
    found = load_stack("kubeflow")
    assert isinstance(found, KubeflowStackSpec)
    return found


def run(folder: Path, *arguments: str, **variables: str) -> Ended:
    """The command in a workspace of its own."""
    environment = {**os.environ, **Workspace(folder / "state").environment(), **variables}
    done = subprocess.run(
        [PROXYKD, *arguments], cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300
    )
    return Ended(done.returncode, done.stdout, done.stderr)


def test_kfp_reads_the_committed_pipeline() -> None:
    from kfp import components
    from kfp.pipeline_spec import pipeline_spec_pb2

    component = components.load_component_from_file(str(GOLDEN))
    assert isinstance(component.pipeline_spec, pipeline_spec_pb2.PipelineSpec)
    assert component.pipeline_spec.pipeline_info.name == "distill"
    assert set(component.platform_spec.platforms) == {"kubernetes"}


def test_every_step_waits_for_those_that_it_reads(golden: Compiled) -> None:
    tasks = golden.spec["root"]["dag"]["tasks"]
    assert {task["taskInfo"]["name"] for task in tasks.values()} == set(STEPS)
    assert "dependentTasks" not in tasks["query-teacher"]
    assert set(tasks["distill-student-sft"]["dependentTasks"]) >= {"align-proxy", "estimate-distributions", "split"}
    reached, waiting = set(), dict(tasks)
    while waiting:
        ready = {name for name, task in waiting.items() if reached >= set(task.get("dependentTasks", ()))}
        assert ready, f"a circle among {sorted(waiting)}"
        reached |= ready
        waiting = {name: task for name, task in waiting.items() if name not in ready}


@pytest.mark.parametrize("step", STEPS)
def test_a_pod_gets_what_the_placement_says(step: str, golden: Compiled, stack: KubeflowStackSpec) -> None:
    placement = load_placement(stack.placement)
    wanted, container, pod = placement.step(step), golden.container(step), golden.pod(step)
    pool, resources = placement.pools[wanted.pool], container["resources"]

    assert container["image"] == stack.image
    assert (resources["resourceCpuRequest"], resources.get("resourceCpuLimit")) == (wanted.cpu, None)
    assert {resources["resourceMemoryRequest"], resources["resourceMemoryLimit"]} == {wanted.memory}
    accelerator = resources.get("accelerator", {"resourceCount": "0", "resourceType": "nvidia.com/gpu"})
    assert (accelerator["resourceType"], int(accelerator["resourceCount"])) == ("nvidia.com/gpu", wanted.gpus)
    assert pod.get("nodeSelector", {}).get("labels", {}) == pool.node_selectors
    assert pod.get("tolerations", []) == [dict(one) for one in pool.tolerations]
    assert pod["podMetadata"]["labels"]["proxykd.dev/role"] == wanted.role
    assert pod["securityContext"] == {"runAsGroup": "10001", "runAsNonRoot": True, "runAsUser": "10001"}
    assert {one["constant"]: one["mountPath"] for one in pod["pvcMount"]} == dict(wanted.volumes)
    memory = {one["mountPath"]: one["sizeLimit"] for one in pod["emptyDirMounts"] if one.get("medium") == "Memory"}
    assert memory == {"/dev/shm": wanted.shm}
    own = golden.environment(step)
    assert own["PROXYKD_LAUNCHER"] == placement.launcher(step).model_dump_json()
    assert own["MLFLOW_TRACKING_URI"] == str(stack.tracking_uri)
    task = golden.spec["root"]["dag"]["tasks"][step.replace("_", "-")]
    assert task.get("retryPolicy", {"maxRetryCount": 0})["maxRetryCount"] == wanted.retries


@pytest.mark.parametrize("step", STEPS)
def test_the_pod_is_one_to_kubernetes(step: str, golden: Compiled) -> None:
    pod = Run("distill", golden.spec, golden.platform).pod(step.replace("_", "-"))
    assert not faults(pod)
    environment = {one["name"] for one in pod["spec"]["containers"][0]["env"]}
    assert {"ZENML_STORE_URL", "ZENML_STORE_API_KEY", "AWS_ACCESS_KEY_ID"} <= environment


@pytest.mark.parametrize("step", STEPS)
def test_a_pod_gets_secrets_by_name_alone(step: str, golden: Compiled, stack: KubeflowStackSpec) -> None:
    assert not [name for name in golden.environment(step) if is_credential(name)]
    given = {
        one["secretName"]: {pair["secretKey"] for pair in one["keyToEnv"]} for one in golden.pod(step)["secretAsEnv"]
    }
    # Key by key, so a Secret comes up once for each of its keys.
    assert set(given) == {"proxykd-s3", "proxykd-zenml", *load_placement(stack.placement).step(step).secrets}
    assert ("proxykd-teacher" in given) == (step == "query_teacher")
    assert {one["optional"] for one in golden.pod(step)["secretAsEnv"]} == {False}


@pytest.mark.integration
def test_the_command_writes_the_committed_file_and_no_credential(tmp_path: Path) -> None:
    _, config, *options, _, _ = COMMAND.split()
    output = tmp_path / "new" / "distill.yaml"
    done = run(tmp_path, "compile", config, *options, "--output", str(output), PYTHONHASHSEED="7", **SECRETS)

    assert done.status == 0, done.err
    text = output.read_text(encoding="utf-8")
    assert text == GOLDEN.read_text(encoding="utf-8"), f"if the change is meant: proxykd {COMMAND}"
    assert not leaks(text)
    assert not leaks(done.out + done.err)


@pytest.mark.integration
def test_a_step_that_is_not_there_is_not_compiled(tmp_path: Path) -> None:
    done = run(tmp_path, "compile", "configs/quickstart.yaml", "--set", "student.alpha=0")
    assert done.status == 0, done.err
    spec, _ = yaml.safe_load_all(done.out)
    tasks = {task["taskInfo"]["name"] for task in spec["root"]["dag"]["tasks"].values()}
    assert tasks == set(STEPS) - {"estimate_distributions"}


@pytest.mark.integration
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"placement": CHECKOUT / "k8s" / "placements" / "gpu.yaml"}, "launcher: {kind: torchrun}"),
        ({"secrets": {"proxykd-teacher": ("OPENAI_API_KEY",), "proxykd-s3": ("AWS_ACCESS_KEY_ID",)}}, "proxykd-zenml"),
        ({"secrets": {"proxykd-zenml": ("ZENML_STORE_URL",), "proxykd-s3": ("AWS_ACCESS_KEY_ID",)}}, "proxykd-teacher"),
    ],
)
def test_what_it_cannot_give_is_refused(changes: dict[str, Any], message: str, stack: KubeflowStackSpec) -> None:
    from pipelines.kubeflow_placement import task_placements

    changed = stack.model_copy(update=changes)
    with pytest.raises(ConfigError, match=re.escape(message)):
        task_placements(changed, load_placement(changed.placement), STEPS)


@pytest.mark.integration
def test_another_kind_of_stack_is_refused(tmp_path: Path) -> None:
    done = run(tmp_path, "compile", "configs/quickstart.yaml", "--stack", "local")
    assert done.status == 2
    assert "expected a stack of kind kubeflow, got local" in done.err

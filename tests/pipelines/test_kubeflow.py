"""What Kubeflow Pipelines is sent for each graph of steps: the committed file, pods as placed, nothing secret in it."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import yaml

from proxykd.config.loading import load_specification
from proxykd.config.placement import load_placement
from proxykd.config.stack import KubeflowStackSpec, load_stack
from proxykd.config.steps import DIVISIBLE, STEPS, portion_name
from proxykd.config.variables import is_credential
from proxykd.exceptions import ConfigError
from proxykd.workspace import Workspace
from tests.k8s.kubeflow_pipelines import Run
from tests.k8s.schemas import faults
from tests.support.golden import FOLDER, SHARDS, STEPS_OF
from tests.support.program import CHECKOUT
from tests.support.secrets import KEY, leaks

RENEWAL = "python -m tests.support.golden"
"""Renews the files."""
PODS = [(graph, step) for graph, steps in STEPS_OF.items() for step in steps]
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


@cache
def golden(graph: str) -> Compiled:
    return Compiled(*yaml.load_all((FOLDER / f"{graph}.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader))


@pytest.fixture(scope="module")
def stack() -> KubeflowStackSpec:
    found = load_stack("kubeflow")
    assert isinstance(found, KubeflowStackSpec)
    return found


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """What the command writes in a workspace of its own, where secrets are at hand, and what it prints."""
    folder = tmp_path_factory.mktemp("compiled")
    environment = {**os.environ, **Workspace(folder / "state").environment(), **SECRETS, "PYTHONHASHSEED": "7"}
    command = [sys.executable, "-m", "tests.support.golden", str(folder / "new")]
    done = subprocess.run(command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "new", done.stdout + done.stderr


@pytest.mark.parametrize("graph", STEPS_OF)
def test_kfp_reads_the_committed_pipeline(graph: str) -> None:
    from kfp import components
    from kfp.pipeline_spec import pipeline_spec_pb2

    component = components.load_component_from_file(str(FOLDER / f"{graph}.yaml"))
    assert isinstance(component.pipeline_spec, pipeline_spec_pb2.PipelineSpec)
    assert component.pipeline_spec.pipeline_info.name == "distill"
    assert set(component.platform_spec.platforms) == {"kubernetes"}


def test_no_other_pipeline_is_committed() -> None:
    assert {path.stem for path in FOLDER.iterdir()} == set(STEPS_OF)


@pytest.mark.parametrize("graph", STEPS_OF)
def test_every_step_waits_for_those_that_it_reads(graph: str) -> None:
    tasks = golden(graph).spec["root"]["dag"]["tasks"]
    assert {task["taskInfo"]["name"] for task in tasks.values()} == set(STEPS_OF[graph])
    assert set(tasks["distill-student-sft"]["dependentTasks"]) >= {"align-proxy", "split"}
    reached, waiting = set(), dict(tasks)
    while waiting:
        ready = {name for name, task in waiting.items() if reached >= set(task.get("dependentTasks", ()))}
        assert ready, f"a circle among {sorted(waiting)}"
        reached |= ready
        waiting = {name: task for name, task in waiting.items() if name not in ready}


def test_portions_wait_for_what_the_step_reads_and_the_step_for_all_of_them() -> None:
    whole, tasks = (golden(graph).spec["root"]["dag"]["tasks"] for graph in ("distill", "distill-in-shards"))
    for step in DIVISIBLE:
        name = step.replace("_", "-")
        before = set(whole[name].get("dependentTasks", ()))
        portions = {portion_name(step, number, SHARDS[step]).replace("_", "-") for number in range(SHARDS[step])}
        assert set(tasks[name]["dependentTasks"]) == before | portions
        assert all(set(tasks[portion].get("dependentTasks", ())) == before for portion in portions)
        assert len(portions) == 2


@pytest.mark.parametrize(("graph", "step"), PODS)
def test_a_pod_gets_what_the_placement_says(graph: str, step: str, stack: KubeflowStackSpec) -> None:
    placement = load_placement(stack.placement)
    wanted, container, pod = placement.step(step), golden(graph).container(step), golden(graph).pod(step)
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
    disk = {one["mountPath"]: one["sizeLimit"] for one in pod["emptyDirMounts"] if one.get("medium") != "Memory"}
    assert disk == {"/tmp": wanted.scratch, "/home/proxykd": wanted.scratch}
    own = golden(graph).environment(step)
    assert own["PROXYKD_LAUNCHER"] == placement.launcher(step).model_dump_json()
    assert own["MLFLOW_TRACKING_URI"] == str(stack.tracking_uri)
    task = golden(graph).spec["root"]["dag"]["tasks"][step.replace("_", "-")]
    assert task.get("retryPolicy", {"maxRetryCount": 0})["maxRetryCount"] == wanted.retries


@pytest.mark.parametrize(("graph", "step"), PODS)
def test_the_pod_is_one_to_kubernetes(graph: str, step: str) -> None:
    pod = Run(graph, golden(graph).spec, golden(graph).platform).pod(step.replace("_", "-"))
    assert not faults(pod)
    environment = {one["name"] for one in pod["spec"]["containers"][0]["env"]}
    assert {"ZENML_STORE_URL", "ZENML_STORE_API_KEY", "AWS_ACCESS_KEY_ID"} <= environment


@pytest.mark.parametrize(("graph", "step"), PODS)
def test_a_pod_gets_secrets_by_name_alone(graph: str, step: str, stack: KubeflowStackSpec) -> None:
    assert not [name for name in golden(graph).environment(step) if is_credential(name)]
    given = {
        one["secretName"]: {pair["secretKey"] for pair in one["keyToEnv"]}
        for one in golden(graph).pod(step)["secretAsEnv"]
    }
    # Key by key, so a Secret comes up once for each of its keys.
    assert set(given) == {"proxykd-s3", "proxykd-zenml", *load_placement(stack.placement).step(step).secrets}
    assert ("proxykd-teacher" in given) == step.startswith("query_teacher")
    assert {one["optional"] for one in golden(graph).pod(step)["secretAsEnv"]} == {False}


@pytest.mark.integration
@pytest.mark.parametrize("graph", STEPS_OF)
def test_the_command_writes_the_committed_file_and_no_credential(graph: str, compiled: tuple[Path, str]) -> None:
    folder, printed = compiled
    text = (folder / f"{graph}.yaml").read_text(encoding="utf-8")
    assert text == (FOLDER / f"{graph}.yaml").read_text(encoding="utf-8"), f"if the change is meant: {RENEWAL}"
    assert not leaks(text)
    assert not leaks(printed)


@pytest.mark.integration
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"placement": CHECKOUT / "k8s" / "placements" / "gpu.yaml"}, "expected `pipelines_service_account`"),
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
@pytest.mark.filterwarnings("default")
def test_a_step_may_start_a_train_job_with_the_account_of_the_run(stack: KubeflowStackSpec, tmp_path: Path) -> None:
    from pipelines.kubeflow_placement import kubeflow_options, task_placements

    gpu = load_placement(CHECKOUT / "k8s" / "placements" / "gpu.yaml")
    named = stack.model_copy(update={"pipelines_service_account": "mine"})
    tasks = task_placements(named, gpu, STEPS)
    assert tasks["distill_student_sft"].labels["proxykd.dev/role"] == "launcher"
    assert tasks["distill_student_sft"].environment["PROXYKD_LAUNCHER"] == (
        gpu.launcher("distill_student_sft").model_dump_json()
    )
    accounts = [kubeflow_options(one, gpu if one is named else load_placement(one.placement), STEPS)["settings"]
                for one in (named, stack)]  # fmt: skip
    assert [one["orchestrator"].service_account for one in accounts] == ["mine", None]
    mine, another = (
        gpu.model_copy(update={"steps": {**gpu.steps, "split": {"service_account": name}}})
        for name in ("mine", "another")
    )
    assert set(task_placements(named, mine, STEPS)) == set(STEPS)
    with pytest.raises(ConfigError, match=r"step split .* got the service account another"):
        task_placements(named, another, STEPS)


@pytest.mark.integration
@pytest.mark.filterwarnings("default")
def test_another_kind_of_stack_and_a_step_that_has_no_parts_are_refused(stack: KubeflowStackSpec) -> None:
    from pipelines.kubeflow import compile_distillation

    run = load_specification(CHECKOUT / "configs" / "quickstart.yaml")
    with pytest.raises(ConfigError, match="expected a stack of kind kubeflow, got local"):
        compile_distillation(run, load_stack("local"))
    with pytest.raises(ConfigError, match="expected shards of a step with prompts, got 'split'"):
        compile_distillation(run, stack, shards={"split": 2})


@pytest.mark.filterwarnings("default")
def test_a_step_gets_as_many_pods_of_zenml_as_of_kubeflow(stack: KubeflowStackSpec) -> None:
    from pipelines.kubeflow_placement import kubeflow_options

    placement = load_placement(stack.placement)
    steps = {**placement.steps, "split": {**placement.steps.get("split", {}), "retries": 2}}
    configured = kubeflow_options(stack, placement.model_copy(update={"steps": steps}), STEPS)["step_configurations"]
    pods = {name: own["settings"]["orchestrator"]["task"]["retries"] for name, own in configured.items()}
    assert pods["split"] == 2
    assert {name: own["retry"].max_retries if "retry" in own else 0 for name, own in configured.items()} == pods


@pytest.mark.filterwarnings("default")
def test_a_pod_tries_its_step_once(stack: KubeflowStackSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    from zenml.config.retry_config import StepRetryConfig
    from zenml.execution.step import utils

    from pipelines.kubeflow import _stack_of

    tries = list[str]()

    def launch() -> None:
        tries.append("one")
        raise RuntimeError("the step's own")

    monkeypatch.setattr(utils, "StepLauncher", lambda **_: SimpleNamespace(launch=launch))
    monkeypatch.setenv("KFP_RUN_ID", "1")
    orchestrator, _ = _stack_of(stack)
    orchestrator._active_snapshot = SimpleNamespace()  # type: ignore[assignment]
    step: Any = SimpleNamespace(config=SimpleNamespace(name="split", retry=StepRetryConfig(max_retries=2)))
    with pytest.raises(RuntimeError, match="the step's own"):
        orchestrator.run_step(step)
    assert tries == ["one"]

"""What a pod is told of files: paths of the checkout become the image's, and files of this machine are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.submitting import cluster_options, relocated
from proxykd.config import RunSpec
from proxykd.config.stack import STACKS, ClusterStackSpec, KubeflowStackSpec, KubernetesStackSpec, load_stack
from proxykd.exceptions import ConfigError
from tests.support.program import CHECKOUT


@pytest.fixture
def stack() -> ClusterStackSpec:
    found = load_stack("kubernetes")
    assert isinstance(found, KubernetesStackSpec)
    return found


def reading(make_run: Callable[..., RunSpec], path: Path) -> RunSpec:
    prompts = {"kind": "jsonl", "path": str(path)}
    return make_run(prompts=prompts, teacher={"kind": "recorded"})


def test_a_file_of_the_checkout_is_named_as_in_the_image(make_run: Any, stack: ClusterStackSpec) -> None:
    told = relocated(reading(make_run, CHECKOUT / "README.md"), stack)
    assert told["prompts"]["path"] == "/app/README.md"


def test_a_file_of_this_machine_is_refused_with_what_to_do(
    make_run: Any, stack: ClusterStackSpec, tmp_path: Path
) -> None:
    (tmp_path / "prompts.jsonl").touch()
    with pytest.raises(ConfigError, match=r"prompts\.path=.* which no pod sees; put it on a volume .*/models"):
        relocated(reading(make_run, tmp_path / "prompts.jsonl"), stack)


def test_a_file_on_a_volume_of_the_pods_stays(make_run: Any, stack: ClusterStackSpec, tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").touch()
    placement = yaml.safe_load((STACKS.parent / "placements" / "cpu.yaml").read_text(encoding="utf-8"))
    placement["steps"]["default"]["volumes"] = {"corpus": str(tmp_path)}
    (tmp_path / "placement.yaml").write_text(yaml.safe_dump(placement), encoding="utf-8")
    there = stack.model_copy(update={"placement": tmp_path / "placement.yaml"})
    run = reading(make_run, tmp_path / "prompts.jsonl")
    assert relocated(run, there) == run.model_dump(mode="json")


def test_nothing_waits_inside_zenml(stack: ClusterStackSpec) -> None:
    settings = cluster_options(stack)["settings"]
    assert settings["orchestrator"].synchronous is False
    assert settings["docker"].parent_image == stack.image


def test_kubeflow_is_told_each_steps_pod() -> None:
    found = load_stack("kubeflow")
    assert isinstance(found, KubeflowStackSpec)
    options = cluster_options(found)
    assert options["settings"]["orchestrator"].synchronous is False
    task = options["step_configurations"]["distill_student_sft"]["settings"]["orchestrator"]["task"]
    assert (task["gpus"], task["node_selectors"]) == (8, {"proxykd.dev/pool": "h100"})

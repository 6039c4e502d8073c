"""A step's placement in the intermediate representation: every field arrives, credentials cannot."""

from typing import Any

import pytest
import yaml
from kfp import components, dsl
from kfp.compiler import Compiler
from pydantic import ValidationError

from cluster.kubeflow_task import Folder, SecretVariable, TaskPlacement, Toleration, place_task
from proxykd.config.variables import is_credential

IMAGE = "registry.invalid/proxykd@sha256:" + "0" * 64
FULL = TaskPlacement(
    cpu="8",
    memory="64Gi",
    gpus=2,
    node_selectors={"proxykd.dev/pool": "h100"},
    tolerations=(Toleration(key="nvidia.com/gpu", value="present", effect="NoSchedule"),),
    labels={"kueue.x-k8s.io/queue-name": "proxykd-gpu"},
    annotations={"cluster-autoscaler.kubernetes.io/safe-to-evict": "false"},
    environment={"PROXYKD_HOME": "/var/lib/proxykd"},
    secrets=(SecretVariable(secret="proxykd-teacher", key="key", variable="OPENAI_API_KEY"),),
    claims={"/models": "proxykd-models"},
    folders=(Folder(name="shm", path="/dev/shm", in_memory=True, size="8Gi"), Folder(name="tmp", path="/tmp")),
    retries=3,
    deadline_s=600,
)


def compiled(placement: TaskPlacement, path: Any) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Container, task and Kubernetes configuration of a pipeline with one placed step, as kfp reads them back."""

    def train() -> dsl.ContainerSpec:
        return dsl.ContainerSpec(image=IMAGE, command=["true"])

    component = dsl.container_component(train)

    @dsl.pipeline(name="one")
    def pipeline() -> None:
        place_task(component(), placement)

    file = str(path / "one.yaml")
    Compiler().compile(pipeline, file)
    components.load_component_from_file(file)
    with open(file, encoding="utf-8") as text:
        spec, platform = yaml.safe_load_all(text)
    container = spec["deploymentSpec"]["executors"]["exec-train"]["container"]
    task = spec["root"]["dag"]["tasks"]["train"]
    return container, task, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]["exec-train"]


def test_all_of_a_placement_arrives(tmp_path: Any) -> None:
    container, task, pod = compiled(FULL, tmp_path)

    resources = container["resources"]
    assert (resources.get("resourceCpuLimit"), resources["resourceCpuRequest"]) == (None, "8")
    assert (resources["resourceMemoryLimit"], resources["resourceMemoryRequest"]) == ("64Gi", "64Gi")
    assert resources["accelerator"]["resourceType"] == "nvidia.com/gpu"
    assert resources["accelerator"]["resourceCount"] == "2"
    assert container["env"] == [{"name": "PROXYKD_HOME", "value": "/var/lib/proxykd"}]
    assert task["retryPolicy"]["maxRetryCount"] == 3
    assert pod["nodeSelector"]["labels"] == FULL.node_selectors
    assert pod["tolerations"] == [
        {"effect": "NoSchedule", "key": "nvidia.com/gpu", "operator": "Equal", "value": "present"}
    ]
    assert pod["podMetadata"] == {"labels": FULL.labels, "annotations": FULL.annotations}
    assert pod["activeDeadlineSeconds"] == "600"
    assert pod["securityContext"]["runAsNonRoot"] is True
    (secret,) = pod["secretAsEnv"]
    assert (secret["secretName"], secret["optional"]) == ("proxykd-teacher", False)
    assert secret["keyToEnv"] == [{"envVar": "OPENAI_API_KEY", "secretKey": "key"}]
    (claim,) = pod["pvcMount"]
    assert (claim["constant"], claim["mountPath"]) == ("proxykd-models", "/models")
    assert [(one["mountPath"], one.get("medium"), one.get("sizeLimit")) for one in pod["emptyDirMounts"]] == [
        ("/dev/shm", "Memory", "8Gi"),
        ("/tmp", None, None),
    ]


def test_nothing_but_the_user_stands_in_an_empty_placement(tmp_path: Any) -> None:
    container, task, pod = compiled(TaskPlacement(), tmp_path)
    assert set(container) == {"image", "command"}
    assert "retryPolicy" not in task
    assert pod == {"securityContext": {"runAsGroup": "10001", "runAsNonRoot": True, "runAsUser": "10001"}}


@pytest.mark.parametrize(
    "name", ["OPENAI_API_KEY", "ZENML_STORE_API_TOKEN", "AWS_SECRET_ACCESS_KEY", "PGPASSWORD", "hf_token", "x_apikey"]
)
def test_a_credential_in_clear_text_is_refused(name: str) -> None:
    assert is_credential(name)
    with pytest.raises(ValidationError, match="name a Secret") as caught:
        TaskPlacement(environment={name: "s3cr3t-value"})
    assert "s3cr3t-value" not in str(caught.value.errors(include_input=False))


@pytest.mark.parametrize("name", ["PROXYKD_HOME", "MLFLOW_TRACKING_URI", "PROXYKD_LAUNCHER", "TOKENIZERS_PARALLELISM"])
def test_what_pods_are_told_in_clear_text_is_no_credential(name: str) -> None:
    assert not is_credential(name)


def test_a_quantity_that_is_none_is_refused(tmp_path: Any) -> None:
    with pytest.raises(ValueError, match="memory"):
        compiled(TaskPlacement(memory="much"), tmp_path)

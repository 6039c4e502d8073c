"""A placement as settings of ZenML's Kubernetes orchestrator, step by step.

ZenML takes any key in its settings without a word, ignores its own ResourceSettings on Kubernetes, and by default
counts a lost spot node as a failed try. So the settings are written here in full, their keys are checked, and what a
cluster that enforces Pod Security ``restricted`` wants to see stands in every pod.
"""

from collections.abc import Mapping
from math import floor
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from zenml.config import DockerSettings
from zenml.config.retry_config import StepRetryConfig
from zenml.integrations.kubernetes.flavors import KubernetesOrchestratorSettings
from zenml.integrations.kubernetes.pod_settings import KubernetesPodSettings

from cluster.connection import settle_client_logs
from cluster.names import GPU, PART_OF, PRIORITY_LABEL, QUEUE_LABEL, ROLE, START_TIMEOUT, STORAGE
from proxykd.config.launcher import LAUNCHER_VARIABLE
from proxykd.config.placement import OUTSIDE, OrchestratorPodSpec, PlacementSpec, PoolSpec, StepPlacementSpec, amount
from proxykd.config.stack import ClusterStackSpec, KubeflowStackSpec, KubernetesStackSpec
from proxykd.config.steps import STEPS
from proxykd.exceptions import ConfigError
from proxykd.workspace import Workspace

Settings = TypeVar("Settings", bound=BaseModel)
STARTERS = 32
"""Most steps whose Jobs the orchestrator's pod makes at once; ZenML's own is 10."""
EVICTION = "cluster-autoscaler.kubernetes.io/safe-to-evict"
STATE, MODELS, HOME = "/var/lib/proxykd", "/models", "/home/proxykd"

# A minute and more of an API server that answers with errors: ZenML waits a second between two tries.
API: Mapping[str, Any] = {"api_request_timeout": 30, "max_api_retries": 90}

STORE_URL = "ZENML_STORE_URL"
EXCEPTION = 1
"""Exit status of Python after an exception."""


def run_options(stack: ClusterStackSpec, placement: PlacementSpec, steps: tuple[str, ...] = STEPS) -> dict[str, Any]:
    """What ``Pipeline.with_options`` takes for a run on a cluster: settings of the run and of each step.

    Args:
        stack: Image, addresses, secrets and service accounts.
        placement: Places and sizes.
        steps: The names of the pipeline's steps.
    """
    settle_client_logs()
    if isinstance(stack, KubeflowStackSpec):
        from pipelines.kubeflow_placement import kubeflow_options

        return kubeflow_options(stack, placement, steps)
    orchestrator = _orchestrator(stack, placement)
    return {
        "settings": {
            "docker": image_settings(stack.image),
            "orchestrator": checked(orchestrator, KubernetesOrchestratorSettings),
        },
        "step_configurations": {name: step_options(stack, placement, name) for name in steps},
    }


def checked(values: Mapping[str, Any], model: type[Settings]) -> Settings:
    """ZenML's settings, made from keys that it really has.

    Raises:
        ConfigError: naming those that it has not: another version of ZenML, say.
    """
    if unknown := sorted(set(values) - set(model.model_fields)):
        raise ConfigError(f"expected settings that {model.__name__} of this ZenML has, got {unknown}; pin its version")
    return model.model_validate(dict(values))


def failure_policy(retries: int) -> dict[str, Any]:
    """What the end of a step's pod means; the first rule that fits counts.

    Args:
        retries: 0 = a pod that fails without having lost its node ends the step.
    """
    # First of all: a node that was taken away is nobody's failure, whatever the exit status.
    lost = {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]}

    def exits(action: str, operator: str, status: int) -> dict[str, Any]:
        return {"action": action, "onExitCodes": {"containerName": "main", "operator": operator, "values": [status]}}

    if not retries:
        return {"rules": [lost, exits("FailJob", "NotIn", 0)]}
    return {"rules": [lost, exits("FailJob", "In", EXCEPTION), exits("Count", "NotIn", 0)]}


def image_settings(image: str) -> DockerSettings:
    """Run the image as it is: the checkout is in it, so nothing is built, uploaded or downloaded."""
    nothing = {"install_stack_requirements": False, "allow_including_files_in_images": False}
    downloads = {"allow_download_from_code_repository": False, "allow_download_from_artifact_store": False}
    return DockerSettings(parent_image=image, skip_build=True, **nothing, **downloads)


def _orchestrator(stack: ClusterStackSpec, placement: PlacementSpec) -> dict[str, Any]:
    own = placement.orchestrator
    return {
        "synchronous": False,
        "service_account_name": stack.service_accounts.orchestrator,
        "step_pod_service_account_name": stack.service_accounts.step,
        "orchestrator_pod_settings": _orchestrator_pod(stack, placement, own),
        "orchestrator_job_backoff_limit": own.retries,
        "job_name_prefix": "proxykd",
        "job_monitoring_interval": own.poll_s,
        "max_parallelism": own.parallel_steps,
        "ttl_seconds_after_finished": own.keep_s,
        **API,
        "concurrency_policy": "Forbid",
    }


def _orchestrator_pod(stack: ClusterStackSpec, placement: PlacementSpec, own: OrchestratorPodSpec) -> Any:
    pool = placement.pools[own.pool] if own.pool else PoolSpec()
    step = StepPlacementSpec(
        pool="", cpu=own.cpu, memory=own.memory, priority=own.priority, volumes={}, grace_s=60, scratch="4Gi"
    )
    values = _pod(stack, placement, step, pool, role="orchestrator", is_client=True)
    starters = str(min(own.parallel_steps, STARTERS))
    told = {
        "ZENML_LOGGING_VERBOSITY": "ERROR",  # it says there why a step's Job failed
        # Each waits for ZenML's server once its Job is made, and keeps the next ones from being made meanwhile.
        "ZENML_DAG_RUNNER_WORKER_COUNT": starters,
        "ZENML_STORE_CONNECTION_POOL_SIZE": starters,
    }
    if isinstance(stack, KubernetesStackSpec) and stack.zenml_url is not None:
        told[STORE_URL] = stack.zenml_url  # its steps' pods get the address that it has itself
    if stack.start_timeout_s is not None:
        told[START_TIMEOUT] = f"{stack.start_timeout_s:g}"
    values["env"] += _variables(told)
    return checked(values, KubernetesPodSettings)


def step_options(stack: ClusterStackSpec, placement: PlacementSpec, name: str) -> dict[str, Any]:
    """A step's share of ``run_options``."""
    step, accounts = placement.step(name), stack.service_accounts
    is_trainer = step.launcher.kind == "trainjob"
    account = step.service_account or (accounts.trainer if is_trainer else accounts.step)
    role = "launcher" if is_trainer else step.role
    values = _pod(stack, placement, step, placement.pools[step.pool], role=role, is_client=is_trainer)
    # A data set's card is kept beside the weights by default, which this step has no use for.
    cache = {"HF_HUB_CACHE": f"{HOME}/hub"} if name.startswith("query_teacher") else {}
    values["env"] += _variables({LAUNCHER_VARIABLE: placement.launcher(name).model_dump_json()} | cache | step.env)
    settings = {
        "step_pod_service_account_name": account,
        "pod_settings": checked(values, KubernetesPodSettings),
        "pod_failure_policy": failure_policy(step.retries),
        "pod_stop_grace_period": step.grace_s,
        "active_deadline_seconds": step.deadline_s,
        "ttl_seconds_after_finished": placement.orchestrator.keep_s,
        "job_name_prefix": "proxykd",
        **API,
    }
    # It has to cover lost nodes, too.
    retries = retry_options(step.retries + step.preemptions)
    return {"settings": {"orchestrator": checked(settings, KubernetesOrchestratorSettings)}, **retries}


def retry_options(retries: int) -> dict[str, Any]:
    """How many pods of a step ZenML shall take beyond the first; it refuses more, whatever became of those before."""
    return {"retry": StepRetryConfig(max_retries=retries)} if retries else {}


def _pod(
    stack: ClusterStackSpec,
    placement: PlacementSpec,
    step: StepPlacementSpec,
    pool: PoolSpec,
    *,
    role: str,
    is_client: bool,
) -> dict[str, Any]:
    """Settings of a pod; ``is_client`` = it asks the API server, and so gets its account's token."""
    labels = {**PART_OF, ROLE: role}
    if pool.queue is not None:
        labels |= {QUEUE_LABEL: pool.queue, PRIORITY_LABEL: step.priority}
    volumes, mounts = _volumes(step)
    return {
        "labels": labels,
        "annotations": {} if pool.spot else {EVICTION: "false"},
        "node_selectors": dict(pool.node_selectors),
        "tolerations": [dict(one) for one in pool.tolerations],
        "resources": _resources(step),
        "volumes": volumes,
        "volume_mounts": mounts,
        "env": _variables(_environment(stack, step, role)),
        "env_from": [{"secretRef": {"name": name}} for name in stack.pod_secrets(step.secrets)],
        "container_security_context": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
        },
        "additional_pod_spec_args": _pod_spec(placement.user, step.priority, is_client=is_client),
    }


def _pod_spec(user: int, priority: str, *, is_client: bool) -> dict[str, Any]:
    context = {"runAsNonRoot": True, "runAsUser": user, "runAsGroup": user, "fsGroup": user}
    return {
        # Not the owner of each file on a volume anew at each start: weights and checkpoints are many and large.
        "security_context": {
            **context,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "priority_class_name": priority,
        "automount_service_account_token": is_client,
        "enable_service_links": False,
    }


def _resources(step: StepPlacementSpec) -> dict[str, dict[str, str]]:
    """Memory, disk and GPUs as request and limit; processors as request alone."""
    both = {"memory": step.memory, STORAGE: step.scratch, **({GPU: str(step.gpus)} if step.gpus else {})}
    return {"requests": {"cpu": step.cpu, **both}, "limits": both}


def _volumes(step: StepPlacementSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    own = {"tmp": "/tmp", "home": HOME, "shm": "/dev/shm"}
    volumes: list[dict[str, Any]] = [
        {"name": "tmp", "emptyDir": {"sizeLimit": step.scratch}},
        {"name": "home", "emptyDir": {"sizeLimit": step.scratch}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": step.shm}},
    ]
    volumes += [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in step.volumes]
    places = {**own, **step.volumes}
    if STATE not in places.values():
        volumes.append({"name": "state", "emptyDir": {"sizeLimit": step.scratch}})
        places["state"] = STATE
    # Weights are written by the Job that fetches them alone (k8s/fetch.yaml).
    return volumes, [
        {"name": name, "mountPath": path, **({"readOnly": True} if path == MODELS else {})}
        for name, path in places.items()
    ]


def _environment(stack: ClusterStackSpec, step: StepPlacementSpec, role: str) -> dict[str, str]:
    # The processes of a TrainJob are in pods of their own.
    processes = step.launcher.processes_per_node if step.launcher.kind == "torchrun" else 1
    cores = max(1, floor(amount(step.cpu)) // processes)
    return {
        **Workspace(Path(STATE)).environment(),
        "ZENML_CONFIG_PATH": f"{HOME}/zenml",
        "MLFLOW_TRACKING_URI": str(stack.tracking_uri),
        "HF_HOME": f"{MODELS}/hf",
        "HF_DATASETS_CACHE": f"{HOME}/datasets",  # which is written to even where files of this machine are read
        # Whoever has no way to the hub takes weights from the volume at once, without waiting for an answer.
        **({} if role == OUTSIDE else {"HF_HUB_OFFLINE": "1"}),
        "OMP_NUM_THREADS": str(cores),
        "HOME": HOME,
    }


def _variables(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"name": name, "value": value} for name, value in values.items()]

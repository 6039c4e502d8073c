"""What a step's pod needs, written into a Kubeflow Pipelines task with kfp-kubernetes.

ZenML's Kubeflow orchestrator (0.98) knows CPU, memory and one accelerator label; all else that a pod needs is dropped.
Here it is said in the terms of the intermediate representation, so that plain Kubeflow Pipelines reads it.
"""

from typing import Any, Literal

from pydantic import Field, NonNegativeInt, PositiveInt

from cluster.names import GPU
from proxykd.config.base import Spec
from proxykd.config.variables import PublicVariables


class Toleration(Spec):
    """A taint that the pod accepts."""

    key: str
    """Of the taint."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """``Exists`` accepts every value."""
    value: str | None = None
    """Of the taint; None with ``Exists``."""
    effect: Literal["NoExecute", "NoSchedule", "PreferNoSchedule"] | None = None
    """None = every effect."""


class SecretVariable(Spec):
    """One key of a Secret as one environment variable: names alone, never a value."""

    secret: str
    """Name of the Secret."""
    key: str
    """Key in it."""
    variable: str
    """Name of the environment variable."""


class Folder(Spec):
    """A writable folder beside the image, which lives as long as the pod."""

    name: str
    """Of the volume."""
    path: str
    """Where it is mounted."""
    in_memory: bool = False
    """Its files then count against the pod's memory."""
    size: str | None = None
    """For example ``8Gi``; None = no limit."""


class TaskPlacement(Spec):
    """A step's pod in the terms of Kubeflow Pipelines."""

    cpu: str | None = None
    """Cores asked for, for example ``2`` or ``500m``; None = the namespace's default."""
    memory: str | None = None
    """Memory, as request and as limit, for example ``16Gi``; None = the namespace's default."""
    gpus: NonNegativeInt = 0
    """Whole GPUs."""
    user: PositiveInt = 10_001
    """User and group under which the container runs; the image's."""
    node_selectors: dict[str, str] = Field(default_factory=dict)
    """Label -> value of the nodes."""
    tolerations: tuple[Toleration, ...] = ()
    """Taints that the pod accepts."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Label -> value of the pod; Kueue's queue and priority are such labels."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """Annotation -> value of the pod."""
    environment: PublicVariables = Field(default_factory=dict)
    """Variable -> value, in clear text."""
    secrets: tuple[SecretVariable, ...] = ()
    """Variables whose values stand in Secrets."""
    claims: dict[str, str] = Field(default_factory=dict)
    """Where a persistent volume claim is mounted -> its name."""
    folders: tuple[Folder, ...] = ()
    """Writable folders."""
    retries: NonNegativeInt = 0
    """How often a failed step is started again."""
    deadline_s: PositiveInt | None = None
    """The pod is stopped after so many seconds; None = never."""


def place_task(task: Any, placement: TaskPlacement) -> Any:
    """Write a placement into a task of the pipeline that is being compiled.

    Args:
        task: ``kfp.dsl.PipelineTask`` of a container component.
        placement: What its pod needs.

    Returns:
        The task.

    Raises:
        ValueError: from kfp, if a quantity is none.
    """
    _set_resources(task, placement)
    _set_pod(task, placement)
    _mount(task, placement)
    # kfp's set_env_variable reads the sources of everybody who called it, for each variable anew.
    container = task.container_spec
    container.env = {**(container.env or {}), **dict(sorted(placement.environment.items()))}
    if placement.retries:
        task.set_retry(placement.retries)
    return task


def _set_resources(task: Any, placement: TaskPlacement) -> None:
    if placement.cpu is not None:
        task.set_cpu_request(placement.cpu)
    if placement.memory is not None:
        task.set_memory_request(placement.memory).set_memory_limit(placement.memory)
    if placement.gpus:
        task.set_accelerator_type(GPU).set_accelerator_limit(placement.gpus)


def _set_pod(task: Any, placement: TaskPlacement) -> None:
    from kfp import kubernetes

    user = placement.user
    kubernetes.set_security_context(task, run_as_user=user, run_as_group=user, run_as_non_root=True)
    for label, value in sorted(placement.node_selectors.items()):
        kubernetes.add_node_selector(task, label, value)
    for one in placement.tolerations:
        kubernetes.add_toleration(task, one.key, one.operator, one.value, one.effect)
    for label, value in sorted(placement.labels.items()):
        kubernetes.add_pod_label(task, label, value)
    for annotation, value in sorted(placement.annotations.items()):
        kubernetes.add_pod_annotation(task, annotation, value)
    if placement.deadline_s is not None:
        kubernetes.set_timeout(task, placement.deadline_s)


def _mount(task: Any, placement: TaskPlacement) -> None:
    from kfp import kubernetes

    for one in placement.secrets:
        kubernetes.use_secret_as_env(task, one.secret, {one.key: one.variable})
    for path, claim in sorted(placement.claims.items()):
        kubernetes.mount_pvc(task, claim, path)
    for folder in placement.folders:
        kubernetes.empty_dir_mount(task, folder.name, folder.path, "Memory" if folder.in_memory else None, folder.size)

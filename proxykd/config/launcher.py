"""How the processes of a training step are started: what a placement says of it, and what the step's pod is told."""

from typing import Annotated, Any, Literal

from pydantic import Field

from proxykd.config.base import Count, PositiveFloat, Spec

LAUNCHER_VARIABLE = "PROXYKD_LAUNCHER"
"""The environment variable with a ``LauncherSpec`` as JSON."""

Quantity = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([EPTGMk]i?|m)?$", examples=["16", "64Gi"])]
"""As Kubernetes writes amounts of processors and memory."""


class LauncherSpec(Spec):
    """Who starts the processes of a training step, how many there are, and where they run."""

    kind: Literal["process", "torchrun", "trainjob"] = "process"
    """``process`` = the step itself; ``torchrun`` = processes of the step's machine; ``trainjob`` = pods of their own,
    started by Kubeflow Trainer, while the step only follows them."""
    nodes: Count = 1
    """Pods of a TrainJob."""
    processes_per_node: Count = 1
    """Processes of the machine, or of each pod: one a GPU."""
    runtime: str = "proxykd-train"
    """TrainingRuntime of a TrainJob, in its namespace: k8s/trainjob."""
    image: str | None = None
    """Image of a TrainJob's pods; None = that of the step's own pod."""
    queue: str | None = None
    """Kueue's LocalQueue for a TrainJob; None = it is not queued."""
    priority: str | None = None
    """Kueue's WorkloadPriorityClass for a TrainJob; None = the queue's usual."""
    cpu: Quantity | None = None
    """Processors of each pod of a TrainJob; None = as its runtime says."""
    memory: Quantity | None = None
    """Memory of each pod of a TrainJob, as request and as limit; None = as its runtime says."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of each pod of a TrainJob."""
    shm: Quantity | None = None
    """Size of /dev/shm in each pod of a TrainJob; None = as its runtime says."""
    scratch: Quantity | None = None
    """Disk of each pod of a TrainJob, as request and as limit; None = as its runtime says."""
    node_selectors: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes for a TrainJob's pods; leave it empty with a queue, whose flavor says it."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints that a TrainJob's pods endure, as in a pod's manifest; leave it empty with a queue."""
    start_s: PositiveFloat = 86_400.0
    """Seconds for which a TrainJob may wait in its queue, or for a node, before the step gives up: a day, as busy
    clusters queue over night."""
    grace_s: Annotated[int, Field(ge=1)] = 300
    """Seconds from the news that a pod must go to its end: time for a checkpoint."""

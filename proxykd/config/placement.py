"""Where each step of a run goes on a cluster and what it gets there: pools of nodes, and steps on them.

A placement is a YAML file that a stack names (``k8s/placements``). It holds sizes and places alone: neither the image
nor addresses, which are the stack's, nor anything of the specification, which is the same on every stack.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from proxykd.config.base import Count, PositiveFloat, Spec
from proxykd.config.launcher import LauncherSpec, Quantity
from proxykd.config.loading import load_model, read_yaml
from proxykd.config.stack import ObjectName
from proxykd.config.steps import DIVISIBLE, STEPS, TRAINING
from proxykd.config.variables import PublicVariables
from proxykd.exceptions import ConfigError

if TYPE_CHECKING:
    from proxykd.config.specification import RunSpec

WHAT, HELP = "a placement", "see docs/placement.md"
DEFAULT = "default"
"""The entry whose values hold for every step that does not say otherwise."""
Role = Literal["step", "teacher-query"]
OUTSIDE: Role = "teacher-query"
"""The one role of steps whose pods may leave the cluster."""
_USED: Mapping[str, tuple[str, ...]] = {
    "process": (),
    "torchrun": ("processes_per_node",),
    "trainjob": ("nodes", "processes_per_node", "pool", "cpu", "memory", "gpus", "shm", "scratch", "priority",
                 "start_s", "grace_s"),
}  # fmt: skip
"""Kind of a launcher -> its keys."""
RUNTIME_USER, _STATE = 10_001, "/var/lib/proxykd"
RUNTIME_CLAIMS = {_STATE: "proxykd-journal", "/models": "proxykd-models"}
"""What the pods of a TrainJob run as and mount, whatever a placement says: k8s/trainjob/training-runtime.yaml."""
_UNITS = {"m": Decimal("0.001"), "": Decimal(1)}
_UNITS |= {letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", 1)}
_UNITS |= {f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", 1)}


class PoolSpec(Spec):
    """Nodes of one kind, reached through a queue of Kueue or by their labels."""

    queue: ObjectName | None = None
    """Kueue's LocalQueue; its flavor then chooses the nodes. None = the labels choose them."""
    node_selectors: dict[str, str] = Field(default_factory=dict)
    """Labels of the nodes; {} = any node. Leave it empty with a queue."""
    tolerations: tuple[dict[str, Any], ...] = ()
    """Taints that pods there endure, as in a pod's manifest. Leave it empty with a queue."""
    autoscaled: bool = False
    """Whether nodes are made as pods ask for them; else one must be there at submission. Leave it out with a queue."""
    gpu_max: Annotated[int, Field(ge=0)] = 0
    """GPUs of one node; 0 = the pool has none."""
    cpu_max: Quantity | None = None
    """Processors of one node that pods may ask for; None = not checked."""
    memory_max: Quantity | None = None
    """Memory of one node that pods may ask for; None = not checked."""
    spot: bool = False
    """Whether nodes may be taken away at any time; only then may the autoscaler move running pods, too."""

    @model_validator(mode="after")
    def _is_reached_one_way(self) -> Self:
        if self.queue is not None and (self.node_selectors or self.tolerations or self.autoscaled):
            raise ValueError(
                "expected a queue, whose flavor names the nodes, or labels, tolerations and autoscaled: not both"
            )
        return self


class LauncherPlacementSpec(Spec):
    """Who starts the processes of a training step, and where."""

    kind: Literal["process", "torchrun", "trainjob"] = "process"
    """``process`` = the step's own; ``torchrun`` = several in its pod; ``trainjob`` = pods of a Kubeflow TrainJob."""
    nodes: Count = 1
    """Pods of a TrainJob."""
    processes_per_node: Count = 1
    """Processes of each pod: one a GPU."""
    pool: str | None = None
    """Pool of a TrainJob's pods; None = the step's."""
    cpu: Quantity | None = None
    """Processors of each pod of a TrainJob; None = as its runtime says."""
    memory: Quantity | None = None
    """Memory of each pod of a TrainJob; None = as its runtime says."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of each pod of a TrainJob: one a process; 0 = it trains on processors, in a pool without GPUs."""
    shm: Quantity | None = None
    """Size of /dev/shm in each pod of a TrainJob; None = the step's where one is given, else as its runtime says."""
    scratch: Quantity | None = None
    """Disk of each pod of a TrainJob for /tmp, the home and the log together; None = as its runtime says. The step's
    own is for artifacts, which the training gets through the claim."""
    priority: ObjectName | None = None
    """Kueue's WorkloadPriorityClass of a TrainJob; None = the step's."""
    start_s: PositiveFloat = 86_400.0
    """Seconds for which a TrainJob may wait to start before the step gives up: a day, as queues are long at night."""
    grace_s: Count = 300
    """Seconds from the news that a pod of a TrainJob must go to its end: time for a checkpoint."""

    @model_validator(mode="after")
    def _says_what_its_kind_uses(self) -> Self:
        used = {"kind", *_USED[self.kind]}
        fields = type(self).model_fields.items()
        if unused := [name for name, field in fields if name not in used and getattr(self, name) != field.default]:
            raise ValueError(
                f"kind {self.kind!r} has no use for {', '.join(unused)}; leave it out, or choose a kind that has"
            )
        return self


class StepPlacementSpec(Spec):
    """What one step gets."""

    pool: str
    """Name of a pool."""
    cpu: Quantity = "1"
    """Processors asked for; there is no limit, as throttling a step helps nobody."""
    memory: Quantity = "4Gi"
    """Memory, as request and as limit: a step that needs more is ended, and says so."""
    gpus: Annotated[int, Field(ge=0)] = 0
    """GPUs of the pod."""
    role: Role = "step"
    """What the network lets it do: storage, MLflow and ZenML as a ``step``; port 443 outside, too, as
    ``teacher-query``.
    A step that starts a TrainJob is a launcher, whatever stands here, and reaches the API server.
    """
    service_account: ObjectName | None = None
    """Account of the pod; None = the stack's for steps, or for those that start a TrainJob."""
    priority: ObjectName = "proxykd-normal"
    """PriorityClass of the pod, and with a queue the WorkloadPriorityClass of its Job."""
    volumes: Mapping[ObjectName, str] = Field(
        default_factory=lambda: {"proxykd-models": "/models", "proxykd-journal": "/var/lib/proxykd"}
    )
    """Volume claim -> where it is mounted."""
    shm: Quantity = "1Gi"
    """Size of /dev/shm, in memory: PyTorch's loaders and NCCL use it."""
    scratch: Quantity = "20Gi"
    """The node's disk for /tmp, the home and the log together, as request and as limit: artifacts out of an object
    store lie in /tmp while the step runs. docs/scale.md has what each step needs."""
    secrets: tuple[ObjectName, ...] = ()
    """Secrets whose keys become variables of the pod; the artifact store's is the stack's affair."""
    env: PublicVariables = Field(default_factory=dict)
    """Further variables, in clear text in the pod and in ZenML's database; names of credentials are refused."""
    retries: Annotated[int, Field(ge=0)] = 0
    """Times that a pod which was killed (for its memory, say) is replaced; 0 = the step has failed then, and the same
    command goes on from what is finished. An exception ends the step at once: steps wait passing trouble out."""
    preemptions: Annotated[int, Field(ge=0)] = 10
    """Times that a pod whose node was taken away is replaced, which is no failure. ZenML counts all pods of a step, so
    with ``retries`` above 0 a killed pod is replaced up to the sum of both."""
    grace_s: Count = 60
    """Seconds from the news that the pod must go to its end: time for a checkpoint."""
    deadline_s: Count | None = None
    """Seconds after which the step has failed, waiting for a node included; None = no limit."""
    shards: Count = 1
    """Pods that share the work of querying or of estimating."""
    launcher: LauncherPlacementSpec = LauncherPlacementSpec()
    """Who starts the processes of a training step."""

    @model_validator(mode="after")
    def _has_a_process_for_each_gpu(self) -> Self:
        wanted = self.launcher.processes_per_node
        gpus = self.launcher.gpus if self.launcher.kind == "trainjob" else self.gpus
        if self.launcher.kind != "process" and gpus and gpus != wanted:
            raise ValueError(f"expected one process a GPU, got processes_per_node={wanted} with gpus={gpus}")
        return self

    @model_validator(mode="after")
    def _has_memory_for_what_it_shares(self) -> Self:
        if "shm" in self.model_fields_set and amount(self.shm) > amount(self.memory):
            raise ValueError(f"shm: {self.shm} is part of memory, which is {self.memory}; raise memory, or lower shm")
        shm, memory = self.train_job_shm, self.launcher.memory
        if self.launcher.kind == "trainjob" and shm and memory and amount(shm) > amount(memory):
            raise ValueError(f"launcher.shm: {shm} is part of memory, which is {memory}; raise memory, or lower shm")
        return self

    @model_validator(mode="after")
    def _shares_the_claims_of_its_training(self) -> Self:
        if self.launcher.kind != "trainjob":
            return self
        found = {path.rstrip("/"): claim for claim, path in self.volumes.items()}
        for path, claim in RUNTIME_CLAIMS.items():
            own = found.get(path, claim if path != _STATE else None)
            if own != claim:
                raise ValueError(
                    f"volumes: expected the claim {claim} at {path}, which the pods of a TrainJob mount there, got "
                    f"{own or 'none'}; leave volumes out, or train with `launcher: {{kind: torchrun}}`"
                )
        return self

    @property
    def train_job_shm(self) -> str | None:
        """Size of /dev/shm in the pods of the step's TrainJob; None = as its runtime says."""
        return self.launcher.shm or (self.shm if "shm" in self.model_fields_set else None)


class OrchestratorPodSpec(Spec):
    """The pod that walks the pipeline and starts the steps."""

    pool: str | None = None
    """Pool of the pod, one without a queue: a waiting orchestrator would hold up its own steps. None = any node."""
    cpu: Quantity = "250m"
    """Processors asked for."""
    memory: Quantity = "1Gi"
    """Memory, as request and as limit."""
    priority: ObjectName = "proxykd-high"
    """PriorityClass of the pod."""
    retries: Annotated[int, Field(ge=0)] = 3
    """Times that a failed pod is replaced; the next one goes on with the run."""
    poll_s: Count = 3
    """Seconds between two looks at the Jobs of the running steps."""
    parallel_steps: Count = 64
    """Steps that run at once."""
    keep_s: Count | None = 86_400
    """Seconds for which finished Jobs are kept for whoever wants to look at them: a day; None = for ever."""


class PlacementSpec(Spec):
    """Pools, and which step goes to which."""

    pools: dict[str, PoolSpec] = Field(min_length=1)
    """Name -> pool."""
    steps: dict[str, dict[str, Any]] = Field(min_length=1)
    """Step -> what it gets. ``default`` holds for all; ``distill_student`` for both arms; the longest name wins."""
    orchestrator: OrchestratorPodSpec = OrchestratorPodSpec()
    """The pod that walks the pipeline."""
    user: Count = 10_001
    """User and group under which every container runs; the image's."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        for name in self.steps:
            if name != DEFAULT and not any(_covers(name, step) for step in STEPS):
                near = difflib.get_close_matches(name, STEPS, n=1, cutoff=0.5)
                hint = f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(STEPS)}"
                raise ValueError(f"steps: unknown step {name!r}{hint}")
        for name in self.steps:
            self._check(name)
        for step in STEPS:
            self._check(step)
        if self.user != RUNTIME_USER and any(self.step(name).launcher.kind == "trainjob" for name in TRAINING):
            raise ValueError(
                f"user: expected {RUNTIME_USER}, as which the pods of a TrainJob write to the claim that they share "
                f"with the step, got {self.user}; leave it out, or train with `launcher: {{kind: torchrun}}`"
            )
        pool = self.orchestrator.pool
        if pool is not None and self._pool("orchestrator", pool).queue is not None:
            raise ValueError(f"orchestrator: expected a pool without a queue, {pool!r} has one; leave pool out")
        return self

    def step(self, name: str) -> StepPlacementSpec:
        """What a step gets.

        A launcher that holds for all holds for the steps that train; the others get no trainer's account for it.

        Args:
            name: One of the pipeline's steps, or such a name with a number behind it.
        """
        fitting = [own for own in self.steps if own != DEFAULT and _covers(own, name)]
        values = dict(self.steps.get(DEFAULT, {}))
        if name != DEFAULT and not _trains(name):
            values.pop("launcher", None)
            if own := [entry for entry in fitting if "launcher" in self.steps[entry]]:
                raise ValueError(
                    f"steps.{own[0]}.launcher: expected a launcher of {', '.join(TRAINING)} alone, as {name} starts no "
                    "processes; leave it out"
                )
        for entry in sorted(fitting, key=len):
            values |= self.steps[entry]
        try:
            return StepPlacementSpec.model_validate(values)
        except ValidationError as error:
            raise ValueError("; ".join(f"steps.{name}.{_told(one)}" for one in error.errors())) from None

    @property
    def shards(self) -> dict[str, int]:
        """Step -> in how many parts its prompts are worked on; those left out are one."""
        return {name: count for name in DIVISIBLE if (count := self.step(name).shards) > 1}

    def launcher(self, name: str) -> LauncherSpec:
        """What a step's pod is told about starting processes: the launcher, with its pool spelt out."""
        step = self.step(name)
        own, values = step.launcher, step.launcher.model_dump(exclude={"pool", "priority"})
        if own.kind != "trainjob":
            return LauncherSpec.model_validate({key: values[key] for key in ("kind", "nodes", "processes_per_node")})
        pool = self.pools[own.pool or step.pool]
        places = {"node_selectors": pool.node_selectors, "tolerations": pool.tolerations, "queue": pool.queue}
        priority = own.priority or step.priority if pool.queue else None
        return LauncherSpec.model_validate({**values, **places, "priority": priority, "shm": step.train_job_shm})

    def _check(self, name: str) -> None:
        step = self.step(name)
        pool = self._pool(name, step.pool)
        _check_room(f"steps.{name}", step.pool, pool, step)
        if step.shards > 1 and name in STEPS and name not in DIVISIBLE:
            raise ValueError(f"steps.{name}.shards: expected shards of {' or '.join(DIVISIBLE)} alone; leave it out")
        if step.launcher.kind == "trainjob":
            place = step.launcher.pool or step.pool
            wanted = self._pool(f"{name}.launcher", place)
            _check_room(f"steps.{name}.launcher", place, wanted, step.launcher)
            if step.launcher.priority is not None and wanted.queue is None and name != DEFAULT:
                raise ValueError(
                    f"steps.{name}.launcher.priority: it is for a queue, and pool {place!r} has none; leave it out"
                )
        if name in TRAINING:
            self._check_launcher(name, step)

    def _check_launcher(self, name: str, step: StepPlacementSpec) -> None:
        """Raise where processes would train on the processors of nodes that have GPUs, or GPUs would have none."""
        own, is_train_job = step.launcher, step.launcher.kind == "trainjob"
        if own.kind == "process" and step.gpus > 1:
            raise ValueError(
                f"steps.{name}.gpus: expected 1, as a launcher of kind process trains in one process, got {step.gpus}; "
                f"add `launcher: {{kind: torchrun, processes_per_node: {step.gpus}}}`"
            )
        pool = (own.pool if is_train_job else None) or step.pool
        if own.kind != "process" and not (own.gpus if is_train_job else step.gpus) and self.pools[pool].gpu_max:
            key = f"steps.{name}.launcher.gpus" if is_train_job else f"steps.{name}.gpus"
            raise ValueError(
                f"{key}: expected {own.processes_per_node}, one for each process, got 0 in pool {pool!r}, whose nodes "
                f"have {self.pools[pool].gpu_max}; to train on processors choose a pool without GPUs"
            )

    def _pool(self, name: str, pool: str) -> PoolSpec:
        if pool not in self.pools:
            raise ValueError(f"steps.{name}.pool: unknown pool {pool!r}; there are {', '.join(sorted(self.pools))}")
        return self.pools[pool]


def amount(quantity: str) -> Decimal:
    """A Kubernetes quantity such as ``500m`` or ``16Gi`` as a number of processors or bytes."""
    match = re.fullmatch(r"([0-9.]+)([A-Za-z]*)", quantity)
    if match is None or match[2] not in _UNITS:
        raise ConfigError(f"expected a quantity such as 500m or 16Gi, got {quantity!r}; correct the placement")
    return Decimal(match[1]) * _UNITS[match[2]]


def load_placement(path: Path) -> PlacementSpec:
    """Read and validate a placement.

    Raises:
        ConfigError: naming every key, step or pool that is unknown, and what no pool can give.
    """
    values = read_yaml(path, what=WHAT, example="k8s/placements/cpu.yaml")
    found: PlacementSpec = load_model(path, PlacementSpec, values, what=WHAT, help_text=HELP)
    return found


def check_processes(run: "RunSpec", placement: PlacementSpec) -> None:
    """Check that nothing that a run trains in several processes has a launcher of one, nor the other way round.

    Raises:
        ConfigError: naming the first step that would train alone although the specification says otherwise, or the
            setting for which the distilled student is trained by one process.
    """
    if placement.step("distill_student_proxy_kd").launcher.kind != "process":
        run.student.check_one_process()
    for name in TRAINING:
        section, spec = ("proxy", run.proxy) if name == "align_proxy" else ("student", run.student)
        if spec.processes > 1 and placement.step(name).launcher.kind == "process":
            raise ConfigError(
                f"expected {section}.processes=1, as {name} has a launcher of kind process in the placement, which "
                f"goes before it, got {spec.processes}; add `launcher: {{kind: torchrun, processes_per_node: "
                f"{spec.processes}}}` to steps.{name} of the placement, or leave {section}.processes out"
            )


def _told(error: Any) -> str:
    """A fault of one entry: where, what, and the nearest key that there is."""
    *_, model = [StepPlacementSpec, *([LauncherPlacementSpec] if error["loc"][:1] == ("launcher",) else [])]
    near = difflib.get_close_matches(str(error["loc"][-1]) if error["loc"] else "", model.model_fields, n=1)
    hint = f"; did you mean {near[0]!r}?" if near and error["type"] == "extra_forbidden" else ""
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}{hint}"


def _covers(entry: str, step: str) -> bool:
    return step == entry or step.startswith(f"{entry}_")


def _trains(entry: str) -> bool:
    """Whether an entry, or a step, is of a step that trains."""
    return any(_covers(entry, step) or _covers(step, entry) for step in TRAINING)


def _check_room(where: str, name: str, pool: PoolSpec, wanted: StepPlacementSpec | LauncherPlacementSpec) -> None:
    """Raise where one pod asks for more than one node of the pool has."""
    if wanted.gpus > pool.gpu_max:
        raise ValueError(f"{where}.gpus: {wanted.gpus} asked for, but a node of pool {name!r} has {pool.gpu_max}")
    pairs: Iterable[tuple[str, str | None, str | None]] = (
        ("cpu", wanted.cpu, pool.cpu_max),
        ("memory", wanted.memory, pool.memory_max),
    )
    for key, asked, most in pairs:
        if asked is not None and most is not None and amount(asked) > amount(most):
            raise ValueError(f"{where}.{key}: {asked} asked for, but a node of pool {name!r} has {most}")

"""What a stack's runs need on the cluster: gathered from the stack's file and its placement, judged by the doctor."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain

from cluster.capacity import Demand
from cluster.names import GPU, STORAGE
from proxykd.config.placement import PlacementSpec, StepPlacementSpec, amount, load_placement
from proxykd.config.stack import ClusterStackSpec, KubeflowStackSpec
from proxykd.config.steps import STEPS

S3_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass(frozen=True, slots=True)
class Needs:
    """What must be there.

    Attributes:
        demands: What each step asks of its pool.
        accounts: Service accounts of the pods.
        secrets: Secret -> the keys that must be in it.
        volumes: Volume claims.
        priorities: PriorityClasses of the pods.
        queue_priorities: Kueue's WorkloadPriorityClasses.
        runtimes: Training runtimes that TrainJobs refer to; () = no step starts one.
        steps: Step -> what its pod gets.
        store_secret: The artifact store's secret, which every pod gets; None = there is none.
    """

    demands: tuple[Demand, ...]
    accounts: tuple[str, ...]
    secrets: Mapping[str, tuple[str, ...]]
    volumes: tuple[str, ...]
    priorities: tuple[str, ...] = ()
    queue_priorities: tuple[str, ...] = ()
    runtimes: tuple[str, ...] = ()
    steps: Mapping[str, StepPlacementSpec] = field(default_factory=dict)
    store_secret: str | None = None

    @property
    def has_queue(self) -> bool:
        """Whether any step waits in a queue of Kueue."""
        return any(demand.queue for demand in self.demands)


def needs_of(stack: ClusterStackSpec) -> Needs:
    """The needs of a stack.

    Raises:
        ConfigError: if the placement cannot be used.
    """
    placement = load_placement(stack.placement)
    steps = {name: placement.step(name) for name in STEPS}
    secrets: dict[str, tuple[str, ...]] = dict(stack.secrets)
    if stack.artifact_store.secret:
        own = secrets.get(stack.artifact_store.secret, ())
        secrets[stack.artifact_store.secret] = tuple(dict.fromkeys((*own, *S3_KEYS)))
    for step in steps.values():
        secrets |= {name: () for name in step.secrets if name not in secrets}
    return Needs(
        demands=_grouped(chain.from_iterable(_demands(placement, name, step) for name, step in steps.items())),
        accounts=_accounts(stack, steps.values()),
        secrets=secrets,
        volumes=tuple(dict.fromkeys((*stack.volumes, *chain.from_iterable(step.volumes for step in steps.values())))),
        priorities=_priorities(stack, placement, steps.values()),
        queue_priorities=_queue_priorities(placement, steps.values()),
        runtimes=tuple(dict.fromkeys(one.runtime for one in map(placement.launcher, STEPS) if one.kind == "trainjob")),
        steps=steps,
        store_secret=stack.artifact_store.secret,
    )


def _accounts(stack: ClusterStackSpec, steps: Iterable[StepPlacementSpec]) -> tuple[str, ...]:
    """Service accounts that must be there; Kubeflow Pipelines has its own unless the stack names one."""
    if isinstance(stack, KubeflowStackSpec):
        return (stack.pipelines_service_account,) if stack.pipelines_service_account else ()
    found = [stack.service_accounts.orchestrator, stack.service_accounts.step]
    found += [stack.service_accounts.trainer] * any(step.launcher.kind == "trainjob" for step in steps)
    return tuple(dict.fromkeys([*found, *(step.service_account for step in steps if step.service_account)]))


def _priorities(
    stack: ClusterStackSpec, placement: PlacementSpec, steps: Iterable[StepPlacementSpec]
) -> tuple[str, ...]:
    """PriorityClasses of the pods; Kubeflow Pipelines has no word for them."""
    if isinstance(stack, KubeflowStackSpec):
        return ()
    return tuple(dict.fromkeys([placement.orchestrator.priority, *(step.priority for step in steps)]))


def _demands(placement: PlacementSpec, name: str, step: StepPlacementSpec) -> Iterator[Demand]:
    asked: dict[str, str | None] = {"cpu": step.cpu, "memory": step.memory, STORAGE: step.scratch, GPU: str(step.gpus)}
    yield (pod := _demand(placement, name, step.pool, asked))
    if (own := step.launcher).kind == "trainjob":
        asked = {"cpu": own.cpu, "memory": own.memory, STORAGE: own.scratch, GPU: str(own.gpus)}
        training = _demand(placement, f"the TrainJob of {name}", own.pool or step.pool, asked)
        yield training._replace(num_pods=own.nodes, own=pod)


def _demand(placement: PlacementSpec, step: str, pool: str, asked: Mapping[str, str | None]) -> Demand:
    resources = {name: amount(text) for name, text in asked.items() if text is not None and amount(text)}
    chosen = placement.pools[pool]
    return Demand(step, pool, chosen.queue, chosen.node_selectors, resources, is_autoscaled=chosen.autoscaled)


def _grouped(demands: Iterable[Demand]) -> tuple[Demand, ...]:
    """One demand for all steps that ask for the same, named after the first."""
    found: dict[str, list[Demand]] = {}
    for demand in demands:
        beside = demand.own and (demand.own.pool, demand.own.resources)
        found.setdefault(repr((demand.pool, demand.resources, demand.num_pods, beside)), []).append(demand)
    return tuple(
        first._replace(step=first.step + (f" and {len(more)} more" if more else "")) for first, *more in found.values()
    )


def _queue_priorities(placement: PlacementSpec, steps: Iterable[StepPlacementSpec]) -> tuple[str, ...]:
    """WorkloadPriorityClasses of what waits in a queue."""
    names = []
    for step in steps:
        names += [step.priority] if placement.pools[step.pool].queue else []
        if step.launcher.kind == "trainjob" and placement.pools[step.launcher.pool or step.pool].queue:
            names.append(step.launcher.priority or step.priority)
    return tuple(dict.fromkeys(names))

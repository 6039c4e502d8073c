"""What the steps of a placement ask for, and whether the namespace's quotas and ranges can ever give it.

A step's TrainJob is asked for while the step's own pod waits for it, so both count together; its pods start together or
not at all.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import NamedTuple

from cluster.api import ClusterApi, Object
from cluster.findings import Finding, missing, ok
from cluster.kinds import Kind
from cluster.names import GPU, STORAGE
from proxykd.exceptions import ClusterMissingError

RESOURCES = ("cpu", "memory", GPU)
QUOTAS = Kind("v1", "ResourceQuota", "resourcequotas")
RANGES = Kind("v1", "LimitRange", "limitranges")


class Demand(NamedTuple):
    """What a step asks of its pool.

    Attributes:
        step: Its name.
        pool: Name of the pool in the placement.
        queue: Kueue's local queue; None = the pool is chosen by node labels.
        node_labels: Labels of the pool's nodes, where there is no queue.
        resources: Resource -> amount of one pod: cores, bytes, GPUs.
        num_pods: Pods that have to run at once.
        own: What the step's own pod asks for, of a TrainJob that this pod follows; None = these pods are all.
        is_autoscaled: Whether the pool's nodes are made as pods ask for them.
    """

    step: str
    pool: str
    queue: str | None
    node_labels: Mapping[str, str]
    resources: Mapping[str, Decimal]
    num_pods: int = 1
    own: "Demand | None" = None
    is_autoscaled: bool = False

    @property
    def total(self) -> dict[str, Decimal]:
        """What all its pods ask for."""
        return {name: amount * self.num_pods for name, amount in self.resources.items()}

    @property
    def held(self) -> dict[str, Decimal]:
        """What the step's own pod holds while these wait; {} = there is no such pod."""
        return {} if self.own is None else self.own.total


def quantity(text: object) -> Decimal:
    """A Kubernetes quantity, such as 500m or 16Gi, as a number."""
    from kubernetes.utils import parse_quantity

    return Decimal(parse_quantity(text))


def asked(demand: Demand, name: str, amount: Decimal, held: Decimal = Decimal(0)) -> str:
    """What is asked for, for people: ``align_proxy asks for 2 GPUs``.

    Args:
        demand: Who asks.
        name: Of the resource.
        amount: How much of it.
        held: How much of it the step's own pod has meanwhile; 0 = nothing.
    """
    beside = f" beside {shown(name, held)} of the step's own pod, which waits for it" if held else ""
    return f"{demand.step} asks for {shown(name, amount)}{beside}"


def shown(name: str, amount: Decimal) -> str:
    """An amount for people: ``2 GPUs``, ``16.0 GiB memory``, ``8 cpu``."""
    if name == GPU:
        return f"{amount.normalize():f} GPU{'' if amount == 1 else 's'}"
    kinds = {"memory": "memory", STORAGE: "disk"}
    return f"{amount / 2**30:.1f} GiB {kinds[name]}" if name in kinds else f"{amount.normalize():f} {name}"


def check_quotas(api: ClusterApi, demands: Sequence[Demand]) -> Iterator[Finding]:
    """Whether the namespace's quotas leave room for the largest step, at least once everything else has ended."""
    try:
        quotas = list(api.list(QUOTAS))
    except ClusterMissingError:
        return
    for quota in quotas:
        yield compare_quota(quota, demands)


def compare_quota(quota: Object, demands: Sequence[Demand]) -> Finding:
    """One quota against the steps, each with all its pods."""
    what = f"quota {quota['metadata']['name']}"
    hard = (quota.get("status") or {}).get("hard") or quota["spec"].get("hard", {})
    used = (quota.get("status") or {}).get("used") or {}
    limits = {key.removeprefix("requests."): quantity(value) for key, value in hard.items() if _is_request(key)}
    busy = {key.removeprefix("requests."): quantity(value) for key, value in used.items() if _is_request(key)}
    never, later = [], []
    for demand in demands:
        for name, amount in {**demand.total, "pods": Decimal(demand.num_pods)}.items():
            held = Decimal(demand.own is not None) if name == "pods" else demand.held.get(name, Decimal(0))
            if name in limits and amount + held > limits[name]:
                never.append(f"{asked(demand, name, amount, held)}, it allows {shown(name, limits[name])}")
            elif name in limits and amount + held > limits[name] - busy.get(name, 0):
                later.append(demand.step)
    if never:
        return missing(what, "; ".join(never), "lower it in the placement, or have the quota raised")
    return ok(what, f"room for {', '.join(dict.fromkeys(later))} only when others end" if later else "")


def check_ranges(api: ClusterApi, demands: Sequence[Demand]) -> Iterator[Finding]:
    """Whether the namespace's LimitRanges allow pods as large as the steps ask for."""
    try:
        ranges = list(api.list(RANGES))
    except ClusterMissingError:
        return
    for one in ranges:
        yield compare_range(one, demands)


def compare_range(limits: Object, demands: Iterable[Demand]) -> Finding:
    """One LimitRange against a pod of each step, whose one container has all that it asks for.

    A bound on processors is a limit of every container that has none: a pod that asks for more is refused, and one
    that asks for less is throttled there.
    """
    what, never = f"limit range {limits['metadata']['name']}", []
    bounds = [one.get("max") or {} for one in limits["spec"]["limits"] if one["type"] in ("Container", "Pod")]
    for demand in demands:
        for name, amount in demand.resources.items():
            most = min((quantity(bound[name]) for bound in bounds if name in bound), default=amount)
            if amount > most:
                never.append(f"a pod of {demand.step} asks for {shown(name, amount)}, it allows {shown(name, most)}")
    if never:
        return missing(what, "; ".join(never), "lower it in the placement, or have the bound raised")
    caps = [bound["cpu"] for bound in bounds if "cpu" in bound]
    return ok(what, f"no container uses more than {caps[0]} processors" if caps else "")


def _is_request(key: str) -> bool:
    return key == "pods" or key in ("cpu", "memory") or key.startswith("requests.")

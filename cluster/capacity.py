"""Whether pools, queues and quotas can ever give what the steps of a placement ask for.

A queue's flavor must hold a whole group of pods at once (a TrainJob's nodes start together or not at all); a pool of
nodes must hold one pod on one node. A pool that stands at zero nodes and grows on demand cannot be judged by its nodes.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, NamedTuple

from cluster.api import ClusterApi, Object
from cluster.findings import Finding, guarded, missing, ok, unchecked
from cluster.kinds import CLUSTER_QUEUES, LOCAL_QUEUES, NODES, RESOURCE_FLAVORS, Kind
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
    """

    step: str
    pool: str
    queue: str | None
    node_labels: Mapping[str, str]
    resources: Mapping[str, Decimal]
    num_pods: int = 1

    @property
    def total(self) -> dict[str, Decimal]:
        """What all its pods ask for."""
        return {name: amount * self.num_pods for name, amount in self.resources.items()}


def quantity(text: object) -> Decimal:
    """A Kubernetes quantity, such as 500m or 16Gi, as a number."""
    from kubernetes.utils import parse_quantity

    return Decimal(parse_quantity(text))


def check_pools(api: ClusterApi, demands: Sequence[Demand]) -> Iterator[Finding]:
    """Each pool that a step uses: is it there, and can it give what its steps ask for."""
    for pool in dict.fromkeys(demand.pool for demand in demands):
        own = [demand for demand in demands if demand.pool == pool]
        looked = _check_queue(api, pool, own) if own[0].queue else _check_nodes(api, pool, own)
        yield from guarded(f"pool {pool}", looked)


def _check_queue(api: ClusterApi, pool: str, demands: Sequence[Demand]) -> Iterator[Finding]:
    name = str(demands[0].queue)
    what = f"pool {pool}: queue {name}"
    if (local := api.find(LOCAL_QUEUES, name)) is None:
        remedy = f"make a LocalQueue {name} in namespace {api.namespace}, or correct the placement's queue"
        yield missing(what, "no such LocalQueue", remedy)
        return
    owner = str(local["spec"]["clusterQueue"])
    if (queue := api.find(CLUSTER_QUEUES, owner)) is None:
        yield missing(what, f"its ClusterQueue {owner} is not there", f"make the ClusterQueue {owner}")
        return
    if problem := stopped(local) or stopped(queue):
        yield missing(what, problem, "nothing is admitted: release the queue")
        return
    yield from _check_flavors(api, what, queue)
    given = supply(queue)
    if STORAGE not in given:
        remedy = f"cover {STORAGE} in it, unless Kueue's configuration leaves it out (excludeResourcePrefixes)"
        yield unchecked(what, f"its ClusterQueue {owner} does not cover {STORAGE}", remedy)
    yield from check_supply(what, {STORAGE: None, **given}, demands)


def _check_flavors(api: ClusterApi, what: str, queue: Object) -> Iterator[Finding]:
    names = [flavor["name"] for group in queue["spec"].get("resourceGroups", []) for flavor in group["flavors"]]
    for name in dict.fromkeys(names):
        if api.find(RESOURCE_FLAVORS, name) is None:
            yield missing(what, f"its ResourceFlavor {name} is not there", f"make the ResourceFlavor {name}")


def stopped(queue: Object) -> str:
    """Why a queue admits nothing; "" = it does, or does not say."""
    if (policy := queue["spec"].get("stopPolicy", "None")) != "None":
        return f"{queue['kind']} {queue['metadata']['name']} is on hold ({policy})"
    for condition in (queue.get("status") or {}).get("conditions", []):
        if condition.get("type") == "Active" and condition.get("status") == "False":
            return f"{queue['kind']} {queue['metadata']['name']} is not active: {condition.get('message', '')}"
    return ""


def supply(queue: Object) -> dict[str, Decimal | None]:
    """The most of each resource that one flavor of a ClusterQueue gives; None = as much as its cohort lends."""
    is_lent = bool(queue["spec"].get("cohortName"))
    found: dict[str, Decimal | None] = {}
    for group in queue["spec"].get("resourceGroups", []):
        for flavor in group["flavors"]:
            for resource in flavor["resources"]:
                name, most = resource["name"], _most(resource, is_lent=is_lent)
                former = found.get(name, Decimal(0))
                found[name] = None if most is None or former is None else max(most, former)
    return found


def _most(resource: Mapping[str, Any], *, is_lent: bool) -> Decimal | None:
    nominal, limit = quantity(resource["nominalQuota"]), resource.get("borrowingLimit")
    if not is_lent:
        return nominal
    return None if limit is None else nominal + quantity(limit)


def check_supply(
    what: str, given: Mapping[str, Decimal | None], demands: Iterable[Demand], *, is_whole: bool = True
) -> Iterator[Finding]:
    """Compare what steps ask for with what there is at most.

    Args:
        what: The pool, for the message.
        given: Resource -> the most that can be given; None = no bound. A resource that is not named is not given.
        demands: Of the steps.
        is_whole: Whether all pods of a step count together, or each for itself.
    """
    shortages = []
    for demand in demands:
        for name, amount in (demand.total if is_whole else demand.resources).items():
            most = given.get(name, Decimal(0))
            if most is not None and amount > most:
                shortages.append(f"{demand.step} asks for {shown(name, amount)}, it gives at most {shown(name, most)}")
    if shortages:
        remedy = "lower it in the placement, choose another pool, or have the pool enlarged"
        yield missing(what, "; ".join(shortages), remedy)
    else:
        amounts = ", ".join(shown(name, most) for name, most in given.items() if most and name in RESOURCES)
        yield ok(what, amounts)


def shown(name: str, amount: Decimal) -> str:
    """An amount for people: ``2 GPUs``, ``16.0 GiB memory``, ``8 cpu``."""
    if name == GPU:
        return f"{amount.normalize():f} GPU{'' if amount == 1 else 's'}"
    kinds = {"memory": "memory", STORAGE: "disk"}
    return f"{amount / 2**30:.1f} GiB {kinds[name]}" if name in kinds else f"{amount.normalize():f} {name}"


def _check_nodes(api: ClusterApi, pool: str, demands: Sequence[Demand]) -> Iterator[Finding]:
    labels = ",".join(f"{key}={value}" for key, value in sorted(demands[0].node_labels.items()))
    what = f"pool {pool}: nodes {labels or 'of any kind'}"
    nodes = [node for node in api.list(NODES, labels=labels) if not node["spec"].get("unschedulable")]
    if not nodes:
        yield unchecked(what, "no node now", "fine for a pool that grows from nothing; else correct the node selectors")
        return
    given = {name: max(_allocatable(node, name) for node in nodes) for name in (*RESOURCES, STORAGE)}
    yield from check_supply(what, given, demands, is_whole=False)


def _allocatable(node: Object, name: str) -> Decimal:
    return quantity((node.get("status") or {}).get("allocatable", {}).get(name, 0))


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
            if name in limits and amount > limits[name]:
                never.append(f"{demand.step} asks for {shown(name, amount)}, it allows {shown(name, limits[name])}")
            elif name in limits and amount > limits[name] - busy.get(name, 0):
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

"""Whether the pools of a placement can ever give what its steps ask for: queues of Kueue, or nodes.

A queue must hold a whole group of pods at once (a TrainJob's nodes start together or not at all), each group in one
flavor, beside the step's own pod if that holds quota of the same queue; a pool of nodes must hold one pod on one node.
An autoscaled pool that stands at zero nodes cannot be judged by them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from decimal import Decimal
from itertools import product

from cluster.api import ClusterApi, Object
from cluster.capacity import RESOURCES, Demand, asked, quantity, shown
from cluster.cohorts import Group, Lending, alone, cohort_of
from cluster.findings import Finding, guarded, missing, ok, unchecked
from cluster.kinds import CLUSTER_QUEUES, LOCAL_QUEUES, NODES, RESOURCE_FLAVORS
from cluster.names import STORAGE
from proxykd.exceptions import ClusterForbiddenError

_OF_NODES = (*RESOURCES, STORAGE)
_REMEDY = "lower it in the placement, choose another pool, or have the pool enlarged"


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
    yield from _check_groups(api, what, queue, demands)


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


def _check_groups(api: ClusterApi, what: str, queue: Object, demands: Sequence[Demand]) -> Iterator[Finding]:
    groups, cohort = alone(queue), cohort_of(queue)
    if cohort is not None:
        try:
            lending = Lending.read(api)
        except ClusterForbiddenError:
            found = f"this identity may not list ClusterQueues and Cohorts: what the cohort {cohort} lends is not known"
            yield unchecked(what, found, "ask an administrator to run the same command")
        else:
            if lending.has_circle(queue):
                yield missing(what, f"the cohort {cohort} is above itself", "mend parentName of its Cohorts")
                return
            groups = lending.groups(queue)
    covered = {name for group in groups for flavor in group.values() for name in flavor}
    if STORAGE not in covered:
        owner = queue["metadata"]["name"]
        remedy = f"cover {STORAGE} in it, unless Kueue's configuration leaves it out (excludeResourcePrefixes)"
        yield unchecked(what, f"its ClusterQueue {owner} does not cover {STORAGE}", remedy)
    yield check_queue_supply(what, groups, demands, ignored=() if STORAGE in covered else (STORAGE,))


def check_queue_supply(
    what: str, groups: Sequence[Group], demands: Iterable[Demand], *, ignored: Sequence[str] = ()
) -> Finding:
    """Compare what steps ask for with what a queue gives at most.

    Args:
        what: The pool, for the message.
        groups: What the queue's flavors give.
        demands: Of the steps.
        ignored: Resources that the queue lets pass.
    """
    most = _largest(groups)
    shortages: list[str] = []
    for demand in demands:
        held = demand.held if demand.own is not None and demand.own.queue == demand.queue else {}
        wanted = {name: amount for name, amount in demand.total.items() if name not in ignored}
        held = {name: amount for name, amount in held.items() if name not in ignored}
        larger = [name for name, amount in wanted.items() if _exceeds(amount, most.get(name, Decimal(0)))]
        shortages += [f"{asked(demand, name, wanted[name])}, it gives at most {_shown(name, most)}" for name in larger]
        if not larger and not _fits(groups, wanted, held):
            shortages.append(_joint(demand, most, wanted, held))
    if shortages:
        return missing(what, "; ".join(shortages), _REMEDY)
    return ok(what, _told(most))


def _fits(groups: Sequence[Group], wanted: Mapping[str, Decimal], held: Mapping[str, Decimal]) -> bool:
    """Whether in each group one flavor gives all that is wanted, while the same or another gives what is held."""
    return all(
        any(_flavors_fit(own, other, wanted, held) for own, other in product(group.items(), repeat=2))
        for group in groups
    )


def _flavors_fit(
    own: tuple[str, Mapping[str, Decimal | None]],
    other: tuple[str, Mapping[str, Decimal | None]],
    wanted: Mapping[str, Decimal],
    held: Mapping[str, Decimal],
) -> bool:
    zero, is_same = Decimal(0), own[0] == other[0]
    return not any(
        _exceeds(wanted.get(name, zero) + (held.get(name, zero) if is_same else zero), most)
        for name, most in own[1].items()
    ) and not any(_exceeds(held.get(name, zero), most) for name, most in other[1].items())


def _joint(
    demand: Demand, most: Mapping[str, Decimal | None], wanted: Mapping[str, Decimal], held: Mapping[str, Decimal]
) -> str:
    """Why a demand does not fit although the queue gives as much of each single thing."""
    zero = Decimal(0)
    together = [
        f"{asked(demand, name, amount, held[name])}, it gives at most {_shown(name, most)}"
        for name, amount in wanted.items()
        if name in held and _exceeds(amount + held[name], most.get(name, zero))
    ]
    amounts = ", ".join(shown(name, amount + held.get(name, zero)) for name, amount in wanted.items())
    return "; ".join(together) or f"{demand.step} asks for {amounts}, which no one flavor of it gives"


def _largest(groups: Sequence[Group]) -> dict[str, Decimal | None]:
    found: dict[str, Decimal | None] = {}
    for name, most in (pair for group in groups for flavor in group.values() for pair in flavor.items()):
        former = found.get(name, Decimal(0))
        found[name] = None if most is None or former is None else max(most, former)
    return found


def _exceeds(amount: Decimal, most: Decimal | None) -> bool:
    return most is not None and amount > most


def _shown(name: str, most: Mapping[str, Decimal | None]) -> str:
    return shown(name, most.get(name) or Decimal(0))


def _told(given: Mapping[str, Decimal | None]) -> str:
    return ", ".join(shown(name, most) for name, most in given.items() if most and name in RESOURCES)


def _check_nodes(api: ClusterApi, pool: str, demands: Sequence[Demand]) -> Iterator[Finding]:
    labels = ",".join(f"{key}={value}" for key, value in sorted(demands[0].node_labels.items()))
    what = f"pool {pool}: nodes {labels or 'of any kind'}"
    nodes = [node for node in api.list(NODES, labels=labels) if not node["spec"].get("unschedulable")]
    given = {name: max((_allocatable(node, name) for node in nodes), default=Decimal(0)) for name in _OF_NODES}
    shortages = [
        f"{asked(demand, name, amount)}, it gives at most {shown(name, given[name])}"
        for demand in demands
        for name, amount in demand.resources.items()
        if amount > given[name]
    ]
    problem = "; ".join(shortages) if nodes else "no such node, or none that takes pods"
    if not problem:
        yield ok(what, _told(given))
    elif demands[0].is_autoscaled:
        yield unchecked(what, problem, "one that is large enough may be made when a pod asks for it, or be joining now")
    else:
        remedy = "correct its node_selectors, uncordon a node, or set autoscaled: true if nodes are made on demand"
        yield missing(what, problem, _REMEDY if nodes else remedy)


def _allocatable(node: Object, name: str) -> Decimal:
    return quantity((node.get("status") or {}).get("allocatable", {}).get(name, 0))

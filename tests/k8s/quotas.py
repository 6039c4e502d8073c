"""Admission by the namespace's ResourceQuotas and LimitRanges, in the words of a real API server.

What is used is counted anew at each creation: pods that have not ended, and every object of a kind that is counted.
"""

from collections.abc import Iterator
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from kubernetes.utils import parse_quantity

from tests.k8s.kinds import CORE, KINDS, Kind
from tests.k8s.refusals import Refusal

if TYPE_CHECKING:
    from tests.k8s.store import Store

Object = dict[str, Any]
Amounts = dict[str, Decimal]
QUOTA, RANGE, POD, CLAIM = CORE["ResourceQuota"], CORE["LimitRange"], CORE["Pod"], CORE["PersistentVolumeClaim"]
_PLAIN = {"pods", "services", "secrets", "configmaps", "persistentvolumeclaims"}


def admit(store: "Store", kind: Kind, namespace: str, new: Object) -> None:
    """Fill in the defaults of a new pod's containers; refuse what the ranges or the quotas do not allow.

    Raises:
        Refusal: 403, as Kubernetes words it.
    """
    if kind in (QUOTA, RANGE) or not kind.is_namespaced:
        return
    name = new["metadata"]["name"]
    try:
        if kind == POD:
            for found in store.scan(RANGE, namespace):
                _fit(new, found)
        asked = usage(kind, new)
        for quota in store.scan(QUOTA, namespace):
            _spend(store, namespace, quota, asked)
    except _NotAllowed as told:
        raise Refusal(403, "Forbidden", f'{kind.plural} "{name}" is forbidden: {told}') from None


class _NotAllowed(Exception):
    """Why, without the object's name."""


def _fit(pod: Object, found: Object) -> None:
    for item in (one for one in found["spec"]["limits"] if one["type"] == "Container"):
        most = item.get("max", {})
        limits = {**most, **item.get("default", {})}  # a bound is a default, too
        requests = {**limits, **item.get("defaultRequest", {})}
        for container in pod["spec"]["containers"]:
            resources = container.setdefault("resources", {})
            own = resources.get("limits") or {}
            resources["requests"] = {**requests, **own, **(resources.get("requests") or {})}
            resources["limits"] = {**limits, **own}
            _check_container(resources, most)


def _check_container(resources: Object, most: Object) -> None:
    for name, limit in resources["limits"].items():
        if name in resources["requests"] and parse_quantity(resources["requests"][name]) > parse_quantity(limit):
            raise _NotAllowed(f"spec.containers[0].resources.requests: must be less than or equal to {name} limit")
    for name, bound in most.items():
        if parse_quantity(limit := resources["limits"][name]) > parse_quantity(bound):
            raise _NotAllowed(f"maximum {name} usage per Container is {bound}, but limit is {limit}")


def _spend(store: "Store", namespace: str, quota: Object, asked: Amounts) -> None:
    hard = {name: parse_quantity(text) for name, text in quota["spec"]["hard"].items()}
    name, touched = quota["metadata"]["name"], {key for key in hard if asked.get(key)}
    if "pods" in asked:
        unsaid = [
            key for key in hard if key.startswith(("requests.cpu", "requests.memory", "limits.")) and key not in asked
        ]
        if unsaid:
            raise _NotAllowed(f"failed quota: {name}: must specify {','.join(sorted(unsaid))}")
    used = total(usage(kind, one) for kind in KINDS if touched for one in store.scan(kind, namespace))
    over = sorted(key for key in touched if used.get(key, 0) + asked[key] > hard[key])
    if over:
        requested, spent = (",".join(f"{key}={one.get(key, Decimal(0)):f}" for key in over) for one in (asked, used))
        limited = ",".join(f"{key}={quota['spec']['hard'][key]}" for key in over)
        raise _NotAllowed(f"exceeded quota: {name}, requested: {requested}, used: {spent}, limited: {limited}")


def usage(kind: Kind, found: Object) -> Amounts:
    """What an object takes of a quota, under the quota's names."""
    taken = {f"count/{kind.plural}" + (f".{kind.group}" if kind.group else ""): Decimal(1)}
    if kind == POD:
        if found.get("status", {}).get("phase") in ("Succeeded", "Failed"):
            return taken
        taken |= total(_of_container(one) for one in found["spec"]["containers"])
    if kind == CLAIM:
        taken["requests.storage"] = parse_quantity(found["spec"]["resources"]["requests"]["storage"])
    if kind.name == "Service":
        is_public = found["spec"].get("type") in ("NodePort", "LoadBalancer")
        taken |= {"services.nodeports": Decimal(is_public)}
        taken |= {"services.loadbalancers": Decimal(found["spec"].get("type") == "LoadBalancer")}
    return taken | ({kind.plural: Decimal(1)} if kind.plural in _PLAIN and not kind.group else {})


def _of_container(container: Object) -> Amounts:
    resources = container.get("resources") or {}
    return {
        f"{side}.{name}": parse_quantity(text)
        for side in ("requests", "limits")
        for name, text in (resources.get(side) or {}).items()
    }


def total(amounts: "Iterator[Amounts]") -> Amounts:
    """The sum, name by name."""
    found: Amounts = {}
    for one in amounts:
        for name, amount in one.items():
            found[name] = found.get(name, Decimal(0)) + amount
    return found

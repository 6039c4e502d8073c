"""Whether the namespace's NetworkPolicies let a run's pods out to the API server, and name addresses that somebody has.

Of the API's rules only what an address outside the cluster takes is needed: a pod that no policy selects for egress may
go anywhere, one that is selected may go where any of its policies lets it. Most network plugins look at the addresses
behind a service, so those are compared, and not the service's own.

References: Kubernetes API reference, NetworkPolicy v1; RFC 5737, RFC 3849 and RFC 9637 for the addresses of examples.
"""

from collections.abc import Iterator, Mapping, Sequence
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

from cluster.api import ClusterApi, Object
from cluster.findings import Finding, missing, ok, unchecked
from cluster.kinds import ENDPOINT_SLICES, NETWORK_POLICIES
from cluster.names import PART_OF, ROLE
from proxykd.exceptions import ClusterForbiddenError

EXAMPLES = tuple(map(ip_network, ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001:db8::/32", "3fff::/20")))
"""Ranges for documentation: they stand for addresses that are still to be written, and lead nowhere."""
RUN_ROLES = ("orchestrator", "step", "teacher-query", "launcher", "train")
"""Roles of the pods of a run; others' policies do not concern it."""
_SERVICE, _SPACE = "kubernetes", "default"
_FILE = "network.yaml of the overlay"


class Endpoint(NamedTuple):
    """Where something answers outside the cluster's own network."""

    address: str
    port: int

    def __str__(self) -> str:
        return f"{self.address} port {self.port}"


def check_network(api: ClusterApi, callers: Sequence[str]) -> Iterator[Finding]:
    """Placeholders in the policies, and the way of those pods to the API server that ask it.

    Args:
        api: The cluster.
        callers: Roles of the pods that ask the API server.
    """
    policies = list(api.list(NETWORK_POLICIES))
    yield from check_placeholders(policies)
    if callers:
        yield _check_way(api, policies, callers)


def check_placeholders(policies: Sequence[Object]) -> Iterator[Finding]:
    """Policies with a rule that leads to addresses of examples alone; those of other pods than a run's stop no run."""
    for policy in policies:
        blocks = [block for rule in policy["spec"].get("egress") or [] for block in _examples(rule)]
        if not blocks:
            continue
        what = f"NetworkPolicy {policy['metadata']['name']}"
        found = f"{' and '.join(blocks)} is a range for examples: it leads nowhere"
        remedy = f"write your own address into {_FILE} and apply it, or remove the policy"
        is_ours = any(selects(policy["spec"].get("podSelector") or {}, labels_of(role)) for role in RUN_ROLES)
        yield missing(what, found, remedy) if is_ours else unchecked(what, f"{found}; no pod of a run needs it", remedy)


def _examples(rule: Mapping[str, Any]) -> list[str]:
    blocks = [peer.get("ipBlock", {}).get("cidr", "") for peer in rule.get("to") or []]
    return blocks if blocks and all(map(_is_example, blocks)) else []


def _is_example(cidr: str) -> bool:
    own = ip_network(cidr, strict=False) if cidr else None
    return own is not None and any(_is_within(own, known) for known in EXAMPLES)


def _is_within(own: IPv4Network | IPv6Network, other: IPv4Network | IPv6Network) -> bool:
    return own.version == other.version and own.network_address in other and own.broadcast_address in other


def _check_way(api: ClusterApi, policies: Sequence[Object], callers: Sequence[str]) -> Finding:
    what = f"way of {' and '.join(callers)} to the API server"
    look = f"compare `kubectl -n {_SPACE} get endpointslices {_SERVICE}` with the policy api-server in {_FILE}"
    try:
        endpoints = api_server(api)
    except ClusterForbiddenError:
        return unchecked(what, f"this identity may not list EndpointSlices in the namespace {_SPACE}", look)
    if not endpoints:
        return unchecked(what, f"no EndpointSlice of the service {_SERVICE} tells its addresses", look)
    for role in callers:
        if closed := [str(one) for one in endpoints if not lets_out(policies, labels_of(role), one)]:
            found = f"no NetworkPolicy lets pods with the label `{ROLE}: {role}` out to {' and '.join(closed)}"
            return missing(what, found, f"add it to the policy api-server in {_FILE}, and apply that")
    return ok(what, ", ".join(map(str, endpoints)))


def api_server(api: ClusterApi) -> list[Endpoint]:
    """Where the API server itself answers, behind its service.

    Raises:
        ClusterForbiddenError: if this identity may not look at the namespace ``default``.
    """
    slices = api.list(ENDPOINT_SLICES, labels=f"kubernetes.io/service-name={_SERVICE}", namespace=_SPACE)
    found = [
        Endpoint(address, port["port"])
        for part in slices
        for port in part.get("ports") or []
        if port.get("port") is not None
        for one in part.get("endpoints") or []
        for address in one["addresses"]
    ]
    return list(dict.fromkeys(found))


def labels_of(role: str) -> dict[str, str]:
    """Labels of a run's pod with a role; ``pipeline`` is ZenML's, whose value no policy can know."""
    return {**PART_OF, ROLE: role, "pipeline": ""}


def lets_out(policies: Sequence[Object], labels: Mapping[str, str], target: Endpoint) -> bool:
    """Whether the policies of a namespace let a pod out by TCP to an address that is no pod's."""
    selecting = [
        spec
        for spec in (policy["spec"] for policy in policies)
        if _is_for_egress(spec) and selects(spec.get("podSelector") or {}, labels)
    ]
    return not selecting or any(
        _has_port(rule, target.port) and _has_peer(rule, target.address)
        for spec in selecting
        for rule in spec.get("egress") or []
    )


def _is_for_egress(spec: Mapping[str, Any]) -> bool:
    return "Egress" in spec["policyTypes"] if spec.get("policyTypes") else bool(spec.get("egress"))


def _has_port(rule: Mapping[str, Any], port: int) -> bool:
    ports = rule.get("ports")
    return not ports or any(one.get("protocol", "TCP") == "TCP" and _is_in(one, port) for one in ports)


def _is_in(entry: Mapping[str, Any], port: int) -> bool:
    first = entry.get("port")
    if first is None:
        return True
    # A name is a container's, which no address outside the cluster has.
    return isinstance(first, int) and first <= port <= entry.get("endPort", first)


def _has_peer(rule: Mapping[str, Any], address: str) -> bool:
    peers = rule.get("to")
    return not peers or any(_holds(peer["ipBlock"], address) for peer in peers if peer.get("ipBlock"))


def _holds(block: Mapping[str, Any], address: str) -> bool:
    own = ip_address(address)
    return own in ip_network(block["cidr"], strict=False) and not any(
        own in ip_network(cidr, strict=False) for cidr in block.get("except") or []
    )


def selects(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether a label selector fits; an empty one fits all."""
    return all(labels.get(key) == value for key, value in (selector.get("matchLabels") or {}).items()) and all(
        _meets(one, labels) for one in selector.get("matchExpressions") or []
    )


def _meets(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or []
    meets = {
        "In": labels.get(key) in values,
        "NotIn": labels.get(key) not in values,
        "Exists": key in labels,
        "DoesNotExist": key not in labels,
    }
    return meets[expression["operator"]]

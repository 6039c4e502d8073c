"""Which connection NetworkPolicies let through, as the API's reference defines it.

A pod that no policy selects for a direction is open in it; one that is selected is closed but for the sum of what its
policies allow. A connection has to be let out by its source and in by its target; what lies outside the cluster has no
policies. Ports are container ports: a service's port never matters.
"""

from collections.abc import Iterator, Sequence
from ipaddress import ip_address, ip_network
from typing import Any, NamedTuple

from tests.k8s.workloads import selects
from tests.support.kubectl import Manifest


class Pod(NamedTuple):
    """One end of a connection in the cluster.

    Attributes:
        space: Labels of its namespace, its name as ``kubernetes.io/metadata.name``.
        labels: Its own.
        address: IPv4 or IPv6.
        ports: Names of its containers' ports.
    """

    space: dict[str, str]
    labels: dict[str, str]
    address: str = "10.244.0.7"
    ports: dict[str, int] = {}  # noqa: RUF012 (a NamedTuple's default, never written)


class Outside(NamedTuple):
    """One end of a connection that is no pod."""

    address: str


End = Pod | Outside


def reaches(
    objects: Sequence[Manifest], source: End, target: End, port: int, *, protocol: str = "TCP", space: str = "proxykd"
) -> bool:
    """Whether a connection is let through by the policies of the namespace ``space``."""
    policies = [found["spec"] for found in objects if found["kind"] == "NetworkPolicy"]
    return _open(policies, source, target, "egress", port, protocol, space) and _open(
        policies, target, source, "ingress", port, protocol, space
    )


def _open(
    policies: list[dict[str, Any]], own: End, other: End, direction: str, port: int, protocol: str, space: str
) -> bool:
    if isinstance(own, Outside) or own.space.get("kubernetes.io/metadata.name") != space:
        return True
    selecting = [spec for spec in policies if _applies(spec, direction) and selects(spec["podSelector"], own.labels)]
    listening = own if direction == "ingress" else other
    return not selecting or any(
        _ports(rule, listening, port, protocol) and _peers(rule, other, direction, own.space)
        for spec in selecting
        for rule in spec.get(direction) or []
    )


def _applies(spec: dict[str, Any], direction: str) -> bool:
    stated = spec.get("policyTypes") or ["Ingress", *(["Egress"] if spec.get("egress") else [])]
    return direction.capitalize() in stated


def _ports(rule: dict[str, Any], listening: End, port: int, protocol: str) -> bool:
    return not rule.get("ports") or any(
        entry.get("protocol", "TCP") == protocol and port in _range(entry, listening) for entry in rule["ports"]
    )


def _range(entry: dict[str, Any], listening: End) -> range:
    stated = entry.get("port")
    if stated is None:
        return range(1, 65536)
    if isinstance(stated, str):
        named = listening.ports.get(stated, 0) if isinstance(listening, Pod) else 0
        return range(named, named + 1)
    return range(stated, entry.get("endPort", stated) + 1)


def _peers(rule: dict[str, Any], other: End, direction: str, own_space: dict[str, str]) -> bool:
    peers = rule.get("to" if direction == "egress" else "from")
    return not peers or any(_matches(peer, other, own_space) for peer in peers)


def _matches(peer: dict[str, Any], other: End, own_space: dict[str, str]) -> bool:
    if block := peer.get("ipBlock"):
        address = ip_address(other.address)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(cidr) for cidr in block.get("except") or []
        )
    if isinstance(other, Outside):
        return False
    in_space = (
        selects(peer["namespaceSelector"], other.space)
        if "namespaceSelector" in peer
        else _same(own_space, other.space)
    )
    return in_space and selects(peer.get("podSelector", {}), other.labels)


def _same(one: dict[str, str], other: dict[str, str]) -> bool:
    return one["kubernetes.io/metadata.name"] == other["kubernetes.io/metadata.name"]


def spaces_named(*names: str) -> Iterator[dict[str, str]]:
    """The labels that every namespace carries by itself."""
    return ({"kubernetes.io/metadata.name": name} for name in names)

"""Policies against the API server's addresses: as the reference reads them, on the overlays, and what is unwritten."""

import random
from collections.abc import Sequence
from typing import Any

import pytest
import yaml

from cluster import network
from cluster.findings import Finding
from cluster.names import ROLE
from cluster.network import Endpoint, labels_of, lets_out
from tests.cluster.conftest import CHECKOUT, Connect, manifest
from tests.k8s.api_server import ApiServer
from tests.k8s.network import Outside, Pod, reaches

OWN = {"kubernetes.io/metadata.name": "proxykd"}
MINIKUBE = Endpoint("192.168.49.2", 8443)
KIND = Endpoint("172.18.0.2", 6443)


def policy(name: str = "api-server", *rules: dict[str, Any], selector: Any = None, **spec: Any) -> dict[str, Any]:
    chosen = {"matchLabels": {"proxykd.dev/role": "orchestrator"}} if selector is None else selector
    found = {"podSelector": chosen, "policyTypes": ["Egress"], "egress": list(rules), **spec}
    return manifest("networking.k8s.io/v1", "NetworkPolicy", name, spec=found)


def rule(*cidrs: str, ports: Sequence[Any] = (443,)) -> dict[str, Any]:
    found = [one if isinstance(one, dict) else {"protocol": "TCP", "port": one} for one in ports]
    return {"to": [{"ipBlock": {"cidr": cidr}} for cidr in cidrs], "ports": found}


DENY = policy("deny", selector={})


def written(folder: str) -> list[dict[str, Any]]:
    """The policies of a folder of the checkout."""
    found = [
        one
        for file in (CHECKOUT / "k8s" / folder).glob("*.yaml")
        for one in yaml.load_all(file.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    ]
    return [one for one in found if one and one["kind"] == "NetworkPolicy"]


def told(
    server: ApiServer, connect: Connect, *policies: dict[str, Any], at: Sequence[Endpoint] = (), account: str = ""
) -> list[Finding]:
    """What is said of these policies, with an API server that answers there."""
    slices = [
        {
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": f"kubernetes-{number}", "namespace": "default",
                         "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "ports": [{"name": "https", "port": one.port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [one.address]}],
        }
        for number, one in enumerate(at)
    ]  # fmt: skip
    server.apply(*policies, *slices, namespace="proxykd")
    return list(network.check_network(connect(account), ("orchestrator", "launcher")))


def test_an_api_server_at_a_port_that_no_policy_opens_is_told(server: ApiServer, connect: Connect) -> None:
    (finding,) = told(server, connect, *written("base/network"), *written("overlays/local"), at=[MINIKUBE])
    assert (finding.state, finding.found) == (
        "missing",
        "no NetworkPolicy lets pods with the label `proxykd.dev/role: orchestrator` out to 192.168.49.2 port 8443",
    )
    assert "api-server in network.yaml" in finding.remedy
    own = policy("own", rule("192.168.49.2/32", ports=(8443,)), selector={})
    (finding,) = told(server, connect, own, at=[MINIKUBE])
    assert (finding.state, finding.found) == ("ok", "192.168.49.2 port 8443")


def test_an_api_server_where_the_overlay_expects_it_is_reached(server: ApiServer, connect: Connect) -> None:
    (finding,) = told(server, connect, *written("base/network"), *written("overlays/local"), at=[KIND])
    assert (finding.state, finding.found) == ("ok", "172.18.0.2 port 6443")


def test_each_address_and_each_role_has_to_be_let_out(server: ApiServer, connect: Connect) -> None:
    two = [KIND, Endpoint("172.19.0.3", 6443)]
    (finding,) = told(server, connect, *written("base/network"), *written("overlays/local"), at=two)
    assert finding.found.endswith("out to 172.19.0.3 port 6443")
    server.apply(policy("api-server", rule("172.16.0.0/12", ports=(6443,))))  # the orchestrator's alone
    (finding,) = told(server, connect)
    assert "role: launcher` out to 172.18.0.2 port 6443 and 172.19.0.3 port 6443" in finding.found


def test_without_policies_every_way_is_open(server: ApiServer, connect: Connect) -> None:
    (finding,) = told(server, connect, at=[MINIKUBE])
    assert finding.state == "ok"


@pytest.mark.parametrize("overlay", ["production", "staging"])
def test_addresses_of_an_overlay_that_were_left_as_they_are(server: ApiServer, connect: Connect, overlay: str) -> None:
    for one in (found := written(f"overlays/{overlay}")):
        one["metadata"]["namespace"] = "proxykd"  # staging's is another
    states = {one.what: one for one in told(server, connect, *found)}
    api = states["NetworkPolicy api-server"]
    assert (api.state, api.found) == ("missing", "192.0.2.1/32 is a range for examples: it leads nowhere")
    assert states["NetworkPolicy object-storage"].state == "missing"
    # MLflow's own pods: its check says whether they are ready.
    assert getattr(states.get("NetworkPolicy database"), "state", "unchecked") == "unchecked"
    assert "NetworkPolicy zenml-server" not in states


def test_an_address_for_examples_beside_one_of_ones_own_leads_somewhere() -> None:
    assert not list(network.check_placeholders([policy("a", rule("192.0.2.1/32", "10.0.0.1/32"))]))
    assert not list(network.check_placeholders([policy("a", rule("0.0.0.0/0")), policy("b", {"ports": []}), DENY]))
    for cidr in ("192.0.2.0/24", "198.51.100.7/32", "203.0.113.0/28", "2001:db8:1::/48"):
        (finding,) = network.check_placeholders([policy("a", rule("10.0.0.1/32"), rule(cidr))])
        assert cidr in finding.found
    for cidr in ("192.0.0.0/16", "192.0.2.0/23", "192.0.1.0/24"):  # not examples alone
        assert not list(network.check_placeholders([policy("a", rule(cidr))]))


def test_who_may_not_look_into_default_is_told_what_to_compare(server: ApiServer, connect: Connect) -> None:
    objects = list(
        yaml.load_all((CHECKOUT / "k8s/base/rbac/submitter.yaml").read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
    )
    objects[1]["subjects"][0]["namespace"] = "proxykd"
    for one in objects:
        one["metadata"]["namespace"] = "proxykd"
    server.apply(*objects)
    server.access.is_enforced = True
    (finding,) = told(server, connect, DENY, at=[MINIKUBE], account="proxykd-submitter")
    assert (finding.state, "in the namespace default" in finding.found) == ("unchecked", True)
    assert "kubectl -n default get endpointslices kubernetes" in finding.remedy


def test_an_api_server_that_names_no_address_is_left_unchecked(server: ApiServer, connect: Connect) -> None:
    (finding,) = told(server, connect, DENY)
    assert finding.state == "unchecked"


PARTS: dict[str, list[Any]] = {
    "selector": [
        {}, {"matchLabels": {"proxykd.dev/role": "step"}}, {"matchLabels": {"app.kubernetes.io/part-of": "proxykd"}},
        {"matchExpressions": [{"key": "proxykd.dev/role", "operator": "In", "values": ["orchestrator", "train"]}]},
        {"matchExpressions": [{"key": "proxykd.dev/role", "operator": "NotIn", "values": ["orchestrator"]}]},
        {"matchExpressions": [{"key": "pipeline", "operator": "Exists"}]},
        {"matchExpressions": [{"key": "pipeline", "operator": "DoesNotExist"}]},
    ],
    "peers": [
        None, [{"podSelector": {}}], [{"namespaceSelector": {}}], [{"ipBlock": {"cidr": "10.0.0.0/8"}}],
        [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["10.1.0.0/16"]}}],
        [{"ipBlock": {"cidr": "fd00::/8"}}, {"ipBlock": {"cidr": "10.1.2.3/32"}}],
    ],
    "ports": [
        None, [{"port": 443}], [{"protocol": "UDP", "port": 443}], [{"protocol": "TCP"}], [{"port": "https"}],
        [{"protocol": "TCP", "port": 400, "endPort": 500}, {"port": 6443}],
    ],
    "types": [None, ["Egress"], ["Ingress"], ["Ingress", "Egress"]],
}  # fmt: skip


def drawn(random_: random.Random) -> dict[str, Any]:
    rules = []
    for _ in range(random_.randrange(3)):
        peers, ports = random_.choice(PARTS["peers"]), random_.choice(PARTS["ports"])
        rules.append({**({} if peers is None else {"to": peers}), **({} if ports is None else {"ports": ports})})
    found = policy("drawn", *rules, selector=random_.choice(PARTS["selector"]))
    if (types := random_.choice(PARTS["types"])) is None:
        del found["spec"]["policyTypes"]
    else:
        found["spec"]["policyTypes"] = types
    return found


def test_policies_are_read_as_the_reference_says() -> None:
    """Against the reading that the manifests are tested with."""
    random_, seen = random.Random(7), set()
    for _ in range(3_000):
        policies = [drawn(random_) for _ in range(random_.randrange(4))]
        role = random_.choice(network.RUN_ROLES)
        target = Endpoint(
            random_.choice(["10.0.0.1", "10.1.2.3", "192.168.0.1", "fd00::1"]), random_.choice([443, 6443])
        )
        expected = reaches(policies, Pod(OWN, labels_of(role)), Outside(target.address), target.port)
        assert lets_out(policies, labels_of(role), target) is expected, (policies, role, target)
        seen.add(expected)
    assert seen == {True, False}


def test_the_roles_are_those_of_the_checkout() -> None:
    policies = [*written("base/network"), *written("overlays/production")]
    named = {
        role
        for one in policies
        for expression in one["spec"]["podSelector"].get("matchExpressions", [])
        for role in expression.get("values", [])
        if expression["key"] == ROLE
    }
    assert named - set(network.RUN_ROLES) <= {"mlflow", "migration", "fetch"}
    assert named >= set(network.RUN_ROLES)

"""Who may speak to whom: the network policies of each overlay, evaluated."""

import copy
import re
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, strategies

from proxykd.config.steps import STEPS
from tests.k8s.conftest import OVERLAYS, render_with
from tests.k8s.network import End, Outside, Pod, reaches
from tests.k8s.pages import page
from tests.k8s.policy import check
from tests.k8s.references import dangling
from tests.k8s.workloads import ROLE, called, workloads
from tests.support.golden import FOLDER, STEPS_OF
from tests.support.kubectl import Manifest

Overlays = dict[str, list[Manifest]]
NAME = "kubernetes.io/metadata.name"
INTERNET = Outside("93.184.215.14")
PRIVATE = {"198.51.100.0/28": "10.20.0.0/28", "203.0.113.16/28": "10.30.0.16/28", "192.0.2.1/32": "10.40.0.1/32"}
"""What an operator writes instead of the documentation's addresses, which are public ones."""
STORAGE, DATABASE, API_SERVER = Outside("10.20.0.5"), Outside("10.30.0.20"), Outside("10.40.0.1")
WORKFLOW = {"workflows.argoproj.io/workflow": "distil-1"}
"""What Argo Workflows writes on each pod of a run of Kubeflow Pipelines."""


def placed(objects: list[Manifest]) -> list[Manifest]:
    """An overlay with the addresses of a cluster."""
    changed = copy.deepcopy(objects)
    for found in changed:
        for rule in (found["spec"].get("egress") or []) if found["kind"] == "NetworkPolicy" else []:
            for block in [peer["ipBlock"] for peer in rule.get("to") or [] if "ipBlock" in peer]:
                block["cidr"] = PRIVATE.get(block["cidr"], block["cidr"])
    return changed


def pod(role: str, space: str) -> Pod:
    """A pod by its role; ``, of ZenML`` or ``, of Kubeflow``: one that these made."""
    role, _, maker = role.partition(", of ")
    own = {"": {}, "ZenML": {"pipeline": "distill", "run_id": "1"}, "Kubeflow": WORKFLOW}[maker]
    return Pod({NAME: space}, {ROLE: role, "app.kubernetes.io/part-of": "proxykd", **own})


def space_of(objects: list[Manifest]) -> str:
    return next(str(found["metadata"]["name"]) for found in objects if found["kind"] == "Namespace")


def targets(overlay: str, space: str) -> dict[str, tuple[End, int]]:
    """Everything worth reaching, with the port at which it listens."""
    ours = {
        "mlflow": (pod("mlflow", space), 5000),
        "postgres": (pod("postgres", space), 5432),
        "trainer": (pod("train", space), 29500),
        "step": (pod("step", space), 29500),
        "zenml": (Pod({NAME: "zenml"}, {"app.kubernetes.io/name": "zenml"}), 8080),
        "neighbour": (Pod({NAME: "default"}, {ROLE: "mlflow"}), 5000),
        "internet": (INTERNET, 443),
        "metadata": (Outside("169.254.169.254"), 80),
        "ml-pipeline": (Pod({NAME: "kubeflow"}, {"app": "ml-pipeline"}), 8887),
        "metadata-grpc": (Pod({NAME: "kubeflow"}, {"component": "metadata-grpc-server"}), 8080),
        "artifacts": (Pod({NAME: "kubeflow"}, {"app": "seaweedfs"}), 8333),
        "Kubeflow's database": (Pod({NAME: "kubeflow"}, {"app": "mysql"}), 3306),
    }
    if overlay == "local":
        return {**ours, "storage": (pod("object-store", space), 7070), "API server": (Outside("172.18.0.2"), 6443)}
    outside: dict[str, tuple[End, int]] = {"storage": (STORAGE, 443), "API server": (API_SERVER, 443)}
    if overlay == "production":
        outside["postgres"] = (DATABASE, 5432)
    return {**ours, **outside}


ALLOWED = {
    "orchestrator, of ZenML": {"zenml", "storage", "API server"},
    "step, of ZenML": {"zenml", "storage", "mlflow"},
    "teacher-query, of ZenML": {"zenml", "storage", "mlflow", "internet"},
    "launcher, of ZenML": {"zenml", "storage", "mlflow", "API server"},
    "fetch": {"internet"},
    "maintenance": set(),
    "train, of ZenML": {"zenml", "storage", "mlflow", "trainer"},
    "train": {"storage", "mlflow", "trainer"},
    "mlflow": {"storage", "postgres"},
    "migration": {"postgres"},
    "postgres": set(),
    "object-store": set(),
    "a role that nobody knows": set(),
}


KUBEFLOW = {"API server", "ml-pipeline", "metadata-grpc", "artifacts"}
ALLOWED_IN_KUBEFLOW = {
    "step, of Kubeflow": {"zenml", "storage", "mlflow", *KUBEFLOW},
    "teacher-query, of Kubeflow": {"zenml", "storage", "mlflow", "internet", *KUBEFLOW},
    "launcher, of Kubeflow": {"zenml", "storage", "mlflow", *KUBEFLOW},
    "train, of Kubeflow": {"zenml", "storage", "mlflow", "trainer", *KUBEFLOW},
    "a driver without a role of ours, of Kubeflow": KUBEFLOW,
}


def reached(overlay: str, objects: list[Manifest], role: str) -> set[str]:
    """Names of the targets that a role's pods reach in an overlay."""
    space, changed = space_of(objects), placed(objects)
    found = targets(overlay, space).items()
    return {name for name, (end, port) in found if reaches(changed, pod(role, space), end, port, space=space)}


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("role", ALLOWED)
def test_each_role_reaches_what_it_needs_and_nothing_else(overlays: Overlays, overlay: str, role: str) -> None:
    assert reached(overlay, overlays[overlay], role) == ALLOWED[role]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_two_roles_leave_the_cluster_and_the_page_says_which_and_why(overlays: Overlays, overlay: str) -> None:
    leaving = {role.partition(", ")[0] for role in ALLOWED if "internet" in reached(overlay, overlays[overlay], role)}
    text = page("kubernetes").partition("## Who may do what")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([a-z-]+)`[^|]*\|(?:[^|]*\|){4} yes \|", text, re.MULTILINE)
    assert leaving == {*rows} == {"teacher-query", "fetch"}
    assert "`fetch` is the one exception" in text


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubeflows_pods_reach_its_services_where_the_component_says_so(
    overlays: Overlays, tmp_path: Path, overlay: str
) -> None:
    plain, objects = overlays[overlay], render_with(tmp_path, overlay, "kubeflow")
    assert check(objects) == dangling(objects) == []
    for role, expected in (ALLOWED | ALLOWED_IN_KUBEFLOW).items():
        assert reached(overlay, objects, role) == expected, role
    for role, expected in ALLOWED_IN_KUBEFLOW.items():
        closed = {*KUBEFLOW, "zenml"} - ({"API server"} if role.startswith("launcher") else set())
        assert reached(overlay, plain, role) == expected - closed, role


def test_the_pods_of_a_compiled_pipeline_carry_roles_that_reach_zenml_and_storage(tmp_path: Path) -> None:
    objects = placed(render_with(tmp_path, "production", "kubeflow"))
    ends = targets("production", "proxykd")
    documents = [
        each
        for graph in STEPS_OF
        for each in yaml.load_all((FOLDER / f"{graph}.yaml").read_text(), Loader=yaml.CSafeLoader)
    ]
    executors = [
        each
        for one in documents
        for each in one.get("platforms", {})
        .get("kubernetes", {})
        .get("deploymentSpec", {})
        .get("executors", {})
        .items()
    ]
    assert len(executors) >= len(STEPS)
    for name, executor in executors:
        own = Pod({NAME: "proxykd"}, {**executor["podMetadata"]["labels"], **WORKFLOW})
        for target in ("zenml", "storage", "mlflow", *KUBEFLOW):
            assert reaches(objects, own, *ends[target]), (name, target)


@pytest.mark.parametrize(
    ("policy", "role", "target"),
    [
        ("api-server", "teacher-query", "API server"),
        ("database", "fetch", "postgres"),
        ("object-storage", "fetch", "storage"),
    ],
)
def test_a_role_that_gets_too_far_is_seen(overlays: Overlays, policy: str, role: str, target: str) -> None:
    objects = copy.deepcopy(overlays["production"])
    (found,) = [each for each in objects if called(each) == f"NetworkPolicy/{policy}"]
    found["spec"]["podSelector"]["matchExpressions"][0]["values"].append(role)
    row = next(each for each in ALLOWED if each.partition(", ")[0] == role)
    assert reached("production", objects, row) == ALLOWED[row] | {target}


def test_a_role_that_loses_its_storage_is_seen(overlays: Overlays) -> None:
    objects = copy.deepcopy(overlays["production"])
    (found,) = [each for each in objects if called(each) == "NetworkPolicy/object-storage"]
    found["spec"]["podSelector"]["matchExpressions"][0]["values"].remove("teacher-query")
    row = "teacher-query, of ZenML"
    assert reached("production", objects, row) == ALLOWED[row] - {"storage"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_everybody_resolves_names_in_the_cluster_alone(overlays: Overlays, overlay: str) -> None:
    objects, space = overlays[overlay], space_of(overlays[overlay])
    servers = Pod({NAME: "kube-system"}, {"k8s-app": "kube-dns"})
    for role in ALLOWED:
        for protocol in ("UDP", "TCP"):
            assert reaches(objects, pod(role, space), servers, 53, protocol=protocol, space=space)
            assert not reaches(objects, pod(role, space), INTERNET, 53, protocol=protocol, space=space)
        assert not reaches(objects, pod(role, space), servers, 443, space=space)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_nobody_comes_in_from_outside(overlays: Overlays, overlay: str) -> None:
    objects, space = overlays[overlay], space_of(overlays[overlay])
    prometheus = Pod({NAME: "monitoring"}, {"app.kubernetes.io/name": "prometheus"})
    for role in ALLOWED:
        for port in (443, 5000, 5432, 7070, 29500):
            for source in (INTERNET, Pod({NAME: "default"}, {}), Pod({NAME: "monitoring"}, {})):
                assert not reaches(objects, source, pod(role, space), port, space=space)
            assert reaches(objects, prometheus, pod(role, space), port, space=space) == (
                role == "mlflow" and port == 5000
            )


@given(strategies.ip_addresses())
def test_the_teachers_way_outside_leads_nowhere_else(overlays: Overlays, address: IPv4Address | IPv6Address) -> None:
    objects, source = overlays["local"], pod("teacher-query", "proxykd")
    if reaches(objects, source, Outside(str(address)), 443):
        assert address.is_global or address in ip_network("192.0.0.0/16") or _is_for_documentation(address)
    assert not reaches(objects, source, Outside(str(address)), 80)


def _is_for_documentation(address: IPv4Address | IPv6Address) -> bool:
    blocks = ("192.0.2.0/24", "198.51.100.0/24", "203.0.113.0/24", "2001::/23", "2001:db8::/32", "3fff::/20")
    return any(address in ip_network(block) for block in blocks)


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254", "168.63.129.16", "100.100.100.200", "192.0.0.192", "10.0.0.1", "172.31.255.254", "127.0.0.1",
        "192.168.1.1", "fd00:ec2::254", "fe80::1", "::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe",
        "2002:a9fe:a9fe::1", "2001:0:a9fe:a9fe::1", "0.0.0.0", "224.0.0.1", "255.255.255.255",
    ],
)  # fmt: skip
def test_metadata_services_and_private_networks_are_out_of_reach(overlays: Overlays, address: str) -> None:
    assert not reaches(overlays["production"], pod("teacher-query", "proxykd"), Outside(str(ip_address(address))), 443)


@pytest.mark.parametrize("address", ["93.184.215.14", "104.18.7.192", "2606:4700::6812:7c0", "1.1.1.1", "223.5.5.5"])
def test_the_teacher_is_within_reach(overlays: Overlays, address: str) -> None:
    assert reaches(overlays["production"], pod("teacher-query", "proxykd"), Outside(address), 443)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_policy_selects_a_role_that_exists(overlays: Overlays, overlay: str) -> None:
    made = {pod.labels[ROLE] for pod in workloads(overlays[overlay])} | {
        "orchestrator", "step", "teacher-query", "launcher", "train", "fetch",
    }  # fmt: skip
    for found in overlays[overlay]:
        if found["kind"] == "NetworkPolicy" and found["spec"]["podSelector"]:
            selector = found["spec"]["podSelector"]
            values = [*selector.get("matchLabels", {}).values()]
            values += [value for rule in selector.get("matchExpressions", []) for value in rule.get("values", [])]
            assert set(values) <= made, found["metadata"]["name"]


def policy(**spec: Any) -> list[Manifest]:
    return [{"kind": "NetworkPolicy", "metadata": {"name": "p"}, "spec": {"podSelector": {}, **spec}}]


A = Pod({NAME: "proxykd"}, {"app": "a"}, "10.0.0.1")
B = Pod({NAME: "other", "team": "x"}, {"app": "b"}, "10.0.0.2", {"http": 8080})
BOTH = {"namespaceSelector": {"matchLabels": {"team": "x"}}, "podSelector": {"matchLabels": {"app": "b"}}}


@pytest.mark.parametrize(
    ("spec", "source", "target", "expected"),
    [
        ({"podSelector": {"matchLabels": {"app": "z"}}, "policyTypes": ["Egress"]}, A, B, True),
        ({"policyTypes": ["Egress"]}, A, B, False),
        ({"policyTypes": ["Ingress"]}, A, B, True),
        ({}, A, B, True),
        ({}, B, A, False),
        ({"egress": [{"to": [BOTH]}]}, A, B, True),
        ({"egress": [{"to": [{**BOTH, "podSelector": {"matchLabels": {"app": "c"}}}]}]}, A, B, False),
        ({"egress": [{"to": [{"podSelector": {"matchLabels": {"app": "b"}}}]}]}, A, B, False),
        ({"egress": [{"to": [{"namespaceSelector": {}}]}]}, A, B, True),
        ({"egress": [{"to": [{"namespaceSelector": {}}]}]}, A, INTERNET, False),
        ({"egress": [{}]}, A, INTERNET, True),
        ({"egress": [{"ports": [{"port": "http"}]}]}, A, B, True),
        ({"egress": [{"ports": [{"port": "web"}]}]}, A, B, False),
        ({"egress": [{"ports": [{"port": 8000, "endPort": 8080}]}]}, A, B, True),
        ({"egress": [{"ports": [{"port": 8000, "endPort": 8079}]}]}, A, B, False),
        ({"egress": [{"ports": [{"port": 8080, "protocol": "UDP"}]}]}, A, B, False),
        ({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/24"}}]}]}, A, B, True),
        ({"egress": [{"to": [{"ipBlock": {"cidr": "10.0.0.0/24", "except": ["10.0.0.2/32"]}}]}]}, A, B, False),
        ({"egress": [{"to": [{"ipBlock": {"cidr": "::/0"}}]}]}, A, B, False),
        ({"ingress": [{"from": [BOTH]}]}, B, A, True),
        ({"ingress": [{"from": [{"podSelector": {}}]}]}, B, A, False),
        ({"ingress": [{}]}, INTERNET, A, True),
    ],
)  # fmt: skip
def test_policies_mean_what_the_api_says(spec: dict[str, Any], source: End, target: End, expected: bool) -> None:
    assert reaches(policy(**spec), source, target, 8080) == expected

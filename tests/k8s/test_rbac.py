"""Who may do what: the rights of each service account, and that nobody has more."""

import pytest

from tests.k8s.conftest import OVERLAYS
from tests.k8s.rbac import granted
from tests.support.kubectl import Manifest

Overlays = dict[str, list[Manifest]]


def rights(group: str, resource: str, verbs: str) -> set[tuple[str, str, str]]:
    return {(verb, group, resource) for verb in verbs.split()}


LOOKED_AT = (
    rights("", "serviceaccounts", "get")
    | rights("", "persistentvolumeclaims", "get")
    | rights("", "services", "get")
    | rights("", "resourcequotas", "list")
    | rights("", "limitranges", "list")
    | rights("discovery.k8s.io", "endpointslices", "list")
    | rights("networking.k8s.io", "networkpolicies", "list")
    | rights("kueue.x-k8s.io", "localqueues", "get list")
    | rights("trainer.kubeflow.org", "trainingruntimes", "get")
    | rights("trainer.kubeflow.org", "trainjobs", "list delete")
    | rights("jobset.x-k8s.io", "jobsets", "list")
)
EXPECTED = {
    "proxykd-submitter": rights("batch", "jobs", "create get list delete")
    | rights("batch", "cronjobs", "create get list patch delete")
    | rights("", "secrets", "create patch delete")
    | rights("", "pods", "list")
    | rights("", "pods/log", "get")
    | rights("", "events", "list")
    | LOOKED_AT,
    "proxykd-orchestrator": rights("batch", "jobs", "create get list patch delete")
    | rights("", "pods", "get list")
    | rights("", "secrets", "delete"),
    "proxykd-trainer": rights("trainer.kubeflow.org", "trainjobs", "create get delete")
    | rights("kueue.x-k8s.io", "workloads", "list")
    | rights("", "pods", "get list")
    | rights("", "pods/log", "get")
    | rights("", "events", "list"),
    "proxykd-step": set(),
    "proxykd-mlflow": set(),
    "proxykd-store": set(),
}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_each_account_has_its_rights_and_no_others(overlays: Overlays, overlay: str) -> None:
    accounts = {found["metadata"]["name"] for found in overlays[overlay] if found["kind"] == "ServiceAccount"}
    assert {name: granted(overlays[overlay], name) for name in accounts} == EXPECTED


def test_rights_that_are_limited_to_names_say_so() -> None:
    objects = [
        {
            "kind": "Role",
            "metadata": {"name": "r"},
            "rules": [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"], "resourceNames": ["a", "b"]}],
        },
        {
            "kind": "RoleBinding",
            "metadata": {"name": "b", "namespace": "n"},
            "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [{"kind": "ServiceAccount", "name": "s"}, {"kind": "User", "name": "u"}],
        },
    ]
    assert granted(objects, "s") == {("get", "", "secrets:a"), ("get", "", "secrets:b")}
    assert granted(objects, "u") == set()


@pytest.mark.parametrize(
    ("subject", "expected"),
    [
        ({"kind": "ServiceAccount", "name": "s", "namespace": "n"}, True),
        ({"kind": "ServiceAccount", "name": "s", "namespace": "other"}, False),
        ({"kind": "User", "name": "system:serviceaccount:n:s"}, True),
        ({"kind": "User", "name": "system:serviceaccount:other:s"}, False),
        ({"kind": "Group", "name": "system:serviceaccounts"}, True),
        ({"kind": "Group", "name": "system:serviceaccounts:n"}, True),
        ({"kind": "Group", "name": "system:authenticated"}, True),
        ({"kind": "Group", "name": "system:serviceaccounts:other"}, False),
        ({"kind": "Group", "name": "s"}, False),
    ],
)
def test_rights_count_by_whatever_name_an_account_gets_them(subject: dict[str, str], expected: bool) -> None:
    rule = {"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}
    objects: list[Manifest] = [
        {"kind": "Role", "metadata": {"name": "r", "namespace": "n"}, "rules": [rule]},
        {
            "kind": "RoleBinding",
            "metadata": {"name": "b", "namespace": "n"},
            "roleRef": {"kind": "Role", "name": "r"},
            "subjects": [subject],
        },
    ]
    assert granted(objects, "s") == ({("get", "", "pods")} if expected else set())

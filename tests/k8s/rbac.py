"""Who may do what, out of Roles and RoleBindings."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from tests.support.kubectl import Manifest

Right = tuple[str, str, str]


EVERYBODY = {("create", "authorization.k8s.io", "selfsubjectaccessreviews")}
"""What Kubernetes itself lets every known user do, by its ClusterRole system:basic-user."""


def granted(objects: Sequence[Manifest], service_account: str) -> set[Right]:
    """What a service account may do in its namespace: (verb, API group, resource), subresources as ``pods/log``.

    Rights that a rule limits to names (``resourceNames``) carry the name: ``secrets:proxykd-teacher``.
    """
    roles = {found["metadata"]["name"]: found for found in objects if found["kind"] == "Role"}
    names = [found["roleRef"]["name"] for found in _bindings(objects, service_account)]
    rights: set[Right] = set()
    for rule in (rule for name in names for rule in roles[name]["rules"]):
        limits = [f":{name}" for name in rule.get("resourceNames") or []] or [""]
        rights |= {
            (verb, group, resource + limit)
            for verb in rule["verbs"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for limit in limits
        }
    return rights


def skip_unless_whole(request: pytest.FixtureRequest, module: Mapping[str, Any]) -> None:
    """Skip a test that judges the calls of all tests of its module where some of them do not run.

    Args:
        request: Of the test.
        module: The module's names.
    """
    ran = {item.name.partition("[")[0] for item in request.session.items if item.path == request.path}
    if missed := {name for name in module if name.startswith("test_")} - ran:
        pytest.skip(f"it takes the calls of {', '.join(sorted(missed))}")


def bound(objects: Sequence[Manifest], service_account: str) -> bool:
    """Whether any role is bound to it."""
    return bool(_bindings(objects, service_account))


def rules_of(objects: Sequence[Manifest]) -> Iterator[tuple[Manifest, dict[str, Any]]]:
    """Every rule, with the role that it stands in."""
    for found in objects:
        if found["kind"] in ("Role", "ClusterRole"):
            yield from ((found, rule) for rule in found.get("rules") or [])


def _bindings(objects: Sequence[Manifest], service_account: str) -> list[Manifest]:
    return [
        found
        for found in objects
        if found["kind"] == "RoleBinding"
        and any(_is_of(subject, service_account, found) for subject in found.get("subjects") or [])
    ]


def _is_of(subject: dict[str, str], service_account: str, binding: Manifest) -> bool:
    """Whether a subject is the account of the binding's namespace, by its name, as a user or by its groups."""
    named = subject.get("namespace", "default")
    space = binding["metadata"].get("namespace", named)  # as it is written, it is the overlay's to say
    if subject["kind"] == "ServiceAccount":
        return (subject["name"], subject.get("namespace", space)) == (service_account, space)
    groups = {"system:authenticated", "system:serviceaccounts", f"system:serviceaccounts:{space}"}
    names = {"Group": groups, "User": {f"system:serviceaccount:{space}:{service_account}"}}
    return subject["name"] in names[subject["kind"]]

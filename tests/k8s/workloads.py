"""The pods that objects describe, wherever in them the template lies."""

import re
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from tests.support.kubectl import Manifest

ROLE = "proxykd.dev/role"
LONG_RUNNING = frozenset({"Deployment", "StatefulSet", "DaemonSet", "ReplicaSet"})


class Workload(NamedTuple):
    """One kind of pod.

    Attributes:
        owner: The object that it comes from.
        labels: Of its pods.
        spec: The pod's specification.
        replicas: How many there are.
    """

    owner: Manifest
    labels: dict[str, str]
    spec: dict[str, Any]
    replicas: int = 1

    @property
    def containers(self) -> list[dict[str, Any]]:
        """All of them, those that run first too."""
        return [*(self.spec.get("initContainers") or []), *(self.spec.get("containers") or [])]

    @property
    def lives_long(self) -> bool:
        """Whether it is to run until it is removed."""
        return self.owner["kind"] in LONG_RUNNING


def workloads(objects: Iterable[Manifest]) -> Iterator[Workload]:
    """The pods of every object that makes some."""
    for found in objects:
        kind, spec = found["kind"], found.get("spec") or {}
        if kind == "Pod":
            yield Workload(found, labels_of(found), spec)
        elif kind in LONG_RUNNING | {"Job"}:
            yield _templated(found, spec["template"], spec.get("replicas", 1))
        elif kind == "CronJob":
            yield _templated(found, spec["jobTemplate"]["spec"]["template"])
        elif kind == "JobSet":
            yield from _replicated(found, spec)
        elif kind in ("TrainingRuntime", "ClusterTrainingRuntime"):
            yield from _replicated(found, spec["template"]["spec"])


def _templated(owner: Manifest, template: dict[str, Any], replicas: int = 1) -> Workload:
    return Workload(owner, labels_of(template), template["spec"], replicas)


def _replicated(owner: Manifest, spec: dict[str, Any]) -> Iterator[Workload]:
    return (_templated(owner, job["template"]["spec"]["template"]) for job in spec["replicatedJobs"])


def labels_of(found: dict[str, Any]) -> dict[str, str]:
    """The labels in an object's or a template's metadata."""
    return dict((found.get("metadata") or {}).get("labels") or {})


def called(found: Manifest) -> str:
    """Kind and name of an object."""
    return f"{found['kind']}/{found['metadata'].get('name') or found['metadata'].get('generateName')}"


def selects(selector: dict[str, Any] | None, labels: dict[str, str]) -> bool:
    """Whether a label selector matches; an empty one matches all, none at all matches nothing."""
    if selector is None:
        return False
    wanted = selector.get("matchLabels") or {}
    return all(labels.get(key) == value for key, value in wanted.items()) and all(
        _holds(rule, labels) for rule in selector.get("matchExpressions") or []
    )


def _holds(rule: dict[str, Any], labels: dict[str, str]) -> bool:
    key, values = rule["key"], rule.get("values") or []
    match rule["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise ValueError(f"expected an operator of label selectors, got {rule['operator']}")


def substitutes(text: str) -> set[str]:
    """The variables that Kubernetes puts into a command's argument."""
    return set(re.findall(r"\$\(([A-Za-z_][A-Za-z0-9_]*)\)", text))

"""The pod that this process runs in, and what a pod says of its end: disrupted, or stranded on a node that is away."""

import os
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from cluster.api import ClusterApi
from cluster.kinds import PODS
from proxykd.exceptions import ClusterForbiddenError

STRANDED_S = 60.0
"""Seconds beyond its grace period in which a pod's node may say that it is gone."""


class OwnPod(NamedTuple):
    """What a step learns about its own pod.

    Attributes:
        name: Of the pod.
        image: Of its container ``main``, or of its first.
        owner: The controller that owns it, as an owner reference of what the step makes; {} = nobody.
    """

    name: str
    image: str
    owner: dict[str, Any]


def read_own_pod(api: ClusterApi, *, environ: Mapping[str, str] = os.environ) -> OwnPod | None:
    """The pod named by ``POD_NAME`` or by the host's name; None = this process is in no pod of that namespace."""
    name = environ.get("POD_NAME") or environ.get("HOSTNAME", "")
    try:
        pod = api.find(PODS, name) if name else None
    except ClusterForbiddenError:
        return None
    if pod is None:
        return None
    containers = pod["spec"]["containers"]
    main = next((one for one in containers if one["name"] == "main"), containers[0])
    owners = [one for one in pod["metadata"].get("ownerReferences") or [] if one.get("controller")]
    keys = ("apiVersion", "kind", "name", "uid")
    # Without blockOwnerDeletion, which takes a permission on the owner's finalizers.
    return OwnPod(name, main.get("image", ""), {key: owners[0][key] for key in keys} if owners else {})


def is_disrupted(pod: Mapping[str, Any]) -> bool:
    """Whether a pod was told to go for its node's sake: drained, preempted, or lost."""
    return has_condition(pod, "DisruptionTarget")


def is_stranded(pod: Mapping[str, Any], now: datetime | None = None) -> bool:
    """Whether a pod should be gone by now, and nobody says that it is: its node does not answer.

    Such a pod goes on being called running for ever, and its Job waits for its end before it makes another.

    Args:
        pod: The pod.
        now: The time; None = this moment.
    """
    deadline = pod["metadata"].get("deletionTimestamp")  # the grace period is in it
    if not deadline or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
        return False
    over = (now or datetime.now(UTC)) - datetime.fromisoformat(deadline.replace("Z", "+00:00"))
    return over.total_seconds() > STRANDED_S


def how_to_free(pod: Mapping[str, Any]) -> str:
    """What a person does about a pod that is stranded."""
    node = (pod.get("spec") or {}).get("nodeName") or "of it"
    return (
        f"the node {node} does not answer for the pod {pod['metadata']['name']}; once that machine is off for certain, "
        "delete the Node object, or the pod with `kubectl delete pod --force`"
    )


def has_condition(thing: Mapping[str, Any], name: str) -> bool:
    """Whether a condition of an object is true."""
    return condition(thing, name).get("status") == "True"


def condition(thing: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A condition of an object; {} = it has none of that name."""
    found = (thing.get("status") or {}).get("conditions") or []
    return next((one for one in found if one.get("type") == name), {})

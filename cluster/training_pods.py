"""What a TrainJob and its pods say of themselves: how far they are, and what is wrong with them."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple

from cluster.manifest import CONTAINER
from cluster.own_pod import condition, has_condition, how_to_free, is_disrupted, is_stranded

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
JOBSET_LABEL = "jobset.sigs.k8s.io/jobset-name"
LOST = 75
"""Exit status of a pod that lost another one, as ``proxykd.launching.node`` has it; that module loads torch."""
_WRONG_IMAGE = frozenset({"InvalidImageName", "ErrImageNeverPull"})
_NO_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "RegistryUnavailable"})
_WRONG_POD = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})

Object = Mapping[str, Any]


class Trouble(NamedTuple):
    """Something that keeps a pod from its work.

    Attributes:
        kind: ``image`` (it cannot be had), ``pod`` (the container cannot be made) or ``memory`` (it was used up).
        pod: Name of the pod.
        text: What the cluster says of it.
        may_pass: Whether waiting may help, as with a registry that is away.
    """

    kind: str
    pod: str
    text: str
    may_pass: bool


def troubles(pods: Sequence[Object]) -> Iterator[Trouble]:
    """What is wrong with the pods, worst first within each."""
    for pod in pods:
        name = str(pod["metadata"]["name"])
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            states = [status.get(key) or {} for key in ("state", "lastState")]
            if any((state.get("terminated") or {}).get("reason") == "OOMKilled" for state in states):
                yield Trouble("memory", name, f"limit {memory_limit(pod)}", may_pass=False)
            waiting = states[0].get("waiting") or {}
            text = f"{waiting.get('reason')}: {waiting.get('message') or status.get('image') or ''}".rstrip(": ")
            if waiting.get("reason") in _WRONG_IMAGE | _NO_IMAGE:
                yield Trouble("image", name, text, may_pass=waiting["reason"] in _NO_IMAGE)
            elif waiting.get("reason") in _WRONG_POD:
                yield Trouble("pod", name, text, may_pass=True)


def memory_limit(pod: Object) -> str:
    """Of the container that trains, as the manifest has it."""
    for container in pod["spec"]["containers"]:
        if container["name"] == CONTAINER:
            return str(((container.get("resources") or {}).get("limits") or {}).get("memory", "none"))
    return "none"


def is_running(pod: Object) -> bool:
    """Whether its container has begun and not ended, on a node that answers."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return not is_stranded(pod) and any("running" in (status.get("state") or {}) for status in statuses)


def has_begun(pod: Object) -> bool:
    """Whether there may be a log."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return any({"running", "terminated"} & set(status.get("state") or {}) for status in statuses)


def starts_in_vain(pods: Sequence[Object], since: datetime | None) -> int:
    """How often the training was begun again without a new checkpoint: pods of one node that lost another and ended.

    Args:
        pods: All pods that the cluster still knows, those that ended among them.
        since: When the last checkpoint was written; None = there is none.
    """
    ends: Counter[int] = Counter()
    for pod in pods:
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = (status.get("state") or {}).get("terminated") or {}
            at = ended.get("finishedAt")
            is_newer = since is None or (at and datetime.fromisoformat(at.replace("Z", "+00:00")) > since)
            ends[node_index(pod)] += bool(ended.get("exitCode") == LOST and is_newer and not is_disrupted(pod))
    return max(ends.values(), default=0)


def node_index(pod: Object) -> int:
    """Its number in the training, from 0."""
    metadata = pod["metadata"]
    found = {**(metadata.get("annotations") or {}), **(metadata.get("labels") or {})}
    return int(found.get(INDEX_LABEL, 0))


def describe(job: Object, pods: Sequence[Object], *, nodes: int, why: str = "") -> str:
    """One line on how far it is.

    Args:
        job: The TrainJob.
        pods: Its pods.
        nodes: How many there are to be.
        why: What the queue, or who refused a pod, says, if it is known.
    """
    if has_condition(job, "Failed") or has_condition(job, "Complete"):
        return "ended"
    if is_queued(job):
        return "waits to be admitted" + (f" ({why})" if why else "")
    running = sum(map(is_running, pods))
    if running >= nodes:
        return f"runs on {nodes} node{'s' * (nodes > 1)}"
    unplaced = next((text for pod in pods if (text := _unplaced(pod))), "")
    lost = sum(map(is_disrupted, pods))
    notes = [f"{lost} preempted"] * bool(lost) + [unplaced] * bool(unplaced) + [why] * bool(why)
    notes += [how_to_free(pod) for pod in pods if is_stranded(pod)]
    return f"{running} of {nodes} nodes run" + (f" ({'; '.join(notes)})" if notes else "")


def is_queued(job: Object) -> bool:
    """Whether Kueue, or somebody, holds it back."""
    return bool((job.get("spec") or {}).get("suspend"))


def _unplaced(pod: Object) -> str:
    placed = condition(pod, "PodScheduled")
    return str(placed.get("message", "")) if placed.get("status") == "False" else ""

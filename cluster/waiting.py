"""Why a run on a cluster does not get on: what its Jobs and pods wait for, in one line that a person can act on."""

from collections.abc import Iterator
from datetime import datetime

from cluster.api import ClusterApi, Object
from cluster.garbage import created, ended
from cluster.kinds import JOBS, PODS
from cluster.refusals import refusals

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
STEP_ANNOTATION = "zenml.io/step-name"
ORCHESTRATOR_ANNOTATION = "zenml.io/orchestrator"


def jobs_of(api: ClusterApi, run_id: str) -> list[Object]:
    """The Jobs of a run: the orchestrator's and one a step."""
    return list(api.list(JOBS, labels=f"run_id={run_id}"))


def waits(api: ClusterApi, run_id: str) -> dict[str, tuple[datetime, str]]:
    """Step -> since when its Job has had no running pod, and why; steps that run or have ended are left out.

    Args:
        api: The cluster.
        run_id: ZenML's identity of the run.
    """
    jobs = [job for job in jobs_of(api, run_id) if ended(job) is None]
    pods: dict[str, list[Object]] = {}
    if jobs:
        for pod in api.list(PODS, labels=f"run_id={run_id}"):
            pods.setdefault((pod["metadata"].get("labels") or {}).get("job-name", ""), []).append(pod)
    is_bare = any(job["metadata"]["name"] not in pods and not job["spec"].get("suspend") for job in jobs)
    refused = refusals(api) if is_bare else {}
    found = {}
    for job in jobs:
        own = pods.get(job["metadata"]["name"], [])
        if not any(pod.get("status", {}).get("phase") in ("Running", "Succeeded") for pod in own):
            found[step_of(job)] = created(job), why(job, own, refused.get(job["metadata"]["name"], ""))
    return found


def step_of(job: Object) -> str:
    """The step that a Job runs; "the orchestrator" for the Job that starts the steps."""
    annotations = job["metadata"].get("annotations") or {}
    return str(annotations.get(STEP_ANNOTATION) or "the orchestrator")


def why(job: Object, pods: list[Object], refused: str = "") -> str:
    """What a Job without a running pod waits for.

    Args:
        job: The Job.
        pods: Its pods.
        refused: Why a pod of it was refused; "" = none was, or nobody knows.
    """
    if job["spec"].get("suspend"):
        queue = (job["metadata"].get("labels") or {}).get(QUEUE_LABEL)
        return f"to be admitted by the queue {queue}" if queue else "because its Job is suspended"
    unmade = f"for its pod to be made: {refused}" if refused else "for its pod to be made"
    return next((reason for pod in pods for reason in _reasons(pod)), unmade)


def _reasons(pod: Object) -> Iterator[str]:
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "", "ContainerCreating", "PodInitializing"):
            yield f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield f"{condition.get('reason', 'Unschedulable')}: {condition.get('message', '')}".rstrip(": ")
    if status.get("phase", "Pending") == "Pending":
        yield "for its pod to start"

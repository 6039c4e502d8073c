"""Why a run on a cluster does not get on: what its Jobs and pods wait for, in one line that a person can act on."""

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from cluster.api import ClusterApi, Object
from cluster.garbage import created, ended, moment, run_of
from cluster.kinds import JOBS, PODS
from cluster.names import QUEUE_LABEL
from cluster.own_pod import condition, how_to_free, is_stranded
from cluster.refusals import refusals

STEP_ANNOTATION = "zenml.io/step-name"
ORCHESTRATOR_ANNOTATION = "zenml.io/orchestrator"
ORCHESTRATOR = "the orchestrator"
RUN_LABEL = "run_id"
"""ZenML's, on Jobs and pods; where a schedule starts a run, its orchestrator's have none: only the Job is annotated."""


def jobs_of(api: ClusterApi, run_id: str) -> list[Object]:
    """The Jobs of a run: the orchestrator's and one a step; a schedule's one is of no run before its pod has begun."""
    unlabelled = (job for job in api.list(JOBS, labels=f"!{RUN_LABEL}") if run_of(job) == run_id)
    return [*api.list(JOBS, labels=f"{RUN_LABEL}={run_id}"), *unlabelled]


def _pods_of(api: ClusterApi, run_id: str, jobs: Iterable[Object]) -> dict[str, list[Object]]:
    """Job -> its pods, of those of a run."""
    unlabelled = [job for job in jobs if RUN_LABEL not in (job["metadata"].get("labels") or {})]
    found: dict[str, list[Object]] = {}
    for chosen in (f"{RUN_LABEL}={run_id}", *(f"job-name={job['metadata']['name']}" for job in unlabelled)):
        for pod in api.list(PODS, labels=chosen):
            found.setdefault((pod["metadata"].get("labels") or {}).get("job-name", ""), []).append(pod)
    return found


class Waits:
    """``waits``, looked at again and again: of a pod that ran and left nothing behind only the former look knows.

    Args:
        run_id: ZenML's identity of the run.
    """

    def __init__(self, run_id: str) -> None:
        self._run_id = run_id
        self._since: dict[str, datetime] = {}
        self._looked = datetime.min.replace(tzinfo=UTC)

    def look(self, api: ClusterApi, now: datetime) -> dict[str, tuple[datetime, str]]:
        """As ``waits``; a step that did not wait at the last look has waited no longer than since then."""
        found = waits(api, self._run_id, now)
        self._since = {step: max(since, self._since.get(step, self._looked)) for step, (since, _) in found.items()}
        self._looked = now
        return {step: (self._since[step], reason) for step, (_, reason) in found.items()}


def waits(api: ClusterApi, run_id: str, now: datetime) -> dict[str, tuple[datetime, str]]:
    """Step -> since when it waits while nothing of the run runs, and for what; of steps that neither run nor ended.

    The time is the latest at which any step had a running pod, ended, or was (again) to begin: ``now`` while another
    step runs, as with a shard that queues behind its siblings. The orchestrator's own pod is no step.

    Args:
        api: The cluster.
        run_id: ZenML's identity of the run.
        now: The time, with its zone.
    """
    jobs = jobs_of(api, run_id)
    open_jobs = [job for job in jobs if ended(job) is None]
    pods = _pods_of(api, run_id, open_jobs) if open_jobs else {}
    waiting = [job for job in open_jobs if not _is_up(_of(job, pods), now)]
    is_bare = any(not _of(job, pods) and not job["spec"].get("suspend") for job in waiting)
    refused = refusals(api) if is_bare else {}
    active = [_active(job, _of(job, pods), now) for job in jobs if step_of(job) != ORCHESTRATOR]
    found = {}
    for job in waiting:
        own = _of(job, pods)
        since = max([_since(job, own), *active])
        found[step_of(job)] = since, why(job, own, refused.get(job["metadata"]["name"], ""), now=now)
    return found


def _of(job: Object, pods: dict[str, list[Object]]) -> list[Object]:
    return pods.get(job["metadata"]["name"], [])


def _is_up(pods: list[Object], now: datetime) -> bool:
    phases = ((pod.get("status") or {}).get("phase") for pod in pods if not is_stranded(pod, now))
    return any(phase in ("Running", "Succeeded") for phase in phases)


def _active(job: Object, pods: list[Object], now: datetime) -> datetime:
    """When a Job last had a running pod, or was to begin."""
    if (end := ended(job)) is not None:
        return end[0]
    return now if _is_up(pods, now) else _since(job, pods)


def _since(job: Object, pods: list[Object]) -> datetime:
    """When the wait of a Job without a running pod began: a preempted one's with the end of its last pod."""
    told = [(job.get("status") or {}).get("startTime"), condition(job, "Suspended").get("lastTransitionTime")]
    told += [text for pod in pods for text in _times(pod)]
    return max([created(job), *filter(None, map(moment, told))])


def _times(pod: Object) -> Iterator[str | None]:
    yield pod["metadata"].get("creationTimestamp")
    yield pod["metadata"].get("deletionTimestamp")
    yield condition(pod, "DisruptionTarget").get("lastTransitionTime")
    for container in (pod.get("status") or {}).get("containerStatuses") or []:
        yield ((container.get("state") or {}).get("terminated") or {}).get("finishedAt")


def step_of(job: Object) -> str:
    """The step that a Job runs; ``ORCHESTRATOR`` for the Job that starts the steps."""
    annotations = job["metadata"].get("annotations") or {}
    return str(annotations.get(STEP_ANNOTATION) or ORCHESTRATOR)


def why(job: Object, pods: list[Object], refused: str = "", *, now: datetime | None = None) -> str:
    """What a Job without a running pod waits for.

    Args:
        job: The Job.
        pods: Its pods.
        refused: Why a pod of it was refused; "" = none was, or nobody knows.
        now: The time; None = this moment.
    """
    if job["spec"].get("suspend"):
        queue = (job["metadata"].get("labels") or {}).get(QUEUE_LABEL)
        return f"to be admitted by the queue {queue}" if queue else "because its Job is suspended"
    if stranded := [pod for pod in pods if is_stranded(pod, now)]:
        return f"for a pod to go: {how_to_free(stranded[0])}"
    unmade = f"for its pod to be made: {refused}" if refused else "for its pod to be made"
    return next((reason for pod in pods for reason in _reasons(pod)), unmade)


def _reasons(pod: Object) -> Iterator[str]:
    status = pod.get("status") or {}
    for container in status.get("containerStatuses") or []:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "", "ContainerCreating", "PodInitializing"):
            yield f"{waiting['reason']}: {waiting.get('message', '')}".rstrip(": ")
    placed = condition(pod, "PodScheduled")
    if placed.get("status") == "False":
        yield f"{placed.get('reason', 'Unschedulable')}: {placed.get('message', '')}".rstrip(": ")
    if status.get("phase", "Pending") == "Pending":
        yield "for its pod to start"

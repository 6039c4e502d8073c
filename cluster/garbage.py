"""``proxykd gc``: what runs left behind, found and removed; nothing else is touched.

An object is ours if it carries the label ``app.kubernetes.io/part-of: proxykd`` and the identity of a run, or is the
token of a snapshot that our ZenML knows. It is waste if its run has ended, or is one that our ZenML no longer has.
Between a submission and its first pod a run looks dead, so what is younger than a grace is left alone; Jobs that have
ended are kept longer, for their logs. Every removal names the object's uid, so that another that has its name by now
stays, and an object that is gone already is no error.
"""

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache

from cluster import runs
from cluster.api import ClusterApi, Object
from cluster.kinds import CLAIMS, CRON_JOBS, JOBS, PODS, SECRETS, TRAIN_JOBS, Kind
from cluster.names import PART_OF
from cluster.schedules import NEVER
from proxykd.exceptions import ClusterConflictError, ClusterForbiddenError, ClusterMissingError

OURS = ",".join(f"{label}={value}" for label, value in PART_OF.items())
RUN_LABELS = ("run_id", "proxykd.dev/run-id")
"""ZenML's label and that of the objects which steps make."""

RUN_ANNOTATION = "zenml.io/run-id"
PROJECT_LABEL = "project_id"


_TOKEN = re.compile(r"zenml-token-([0-9a-f-]{36})")


def noop(_: str) -> None:
    """Takes a line and does nothing with it."""


@dataclass(frozen=True, slots=True)
class Waste:
    """Something to remove, or a run to close.

    Attributes:
        kind: Run, Job, TrainJob, ...
        name: Of the object, or the run's.
        reason: Why it is waste.
        remove: Removes it; says whether there was anything left to remove.
    """

    kind: str
    name: str
    reason: str
    remove: Callable[[], bool]


@dataclass(frozen=True, slots=True)
class Ages:
    """When a look takes place, and what is too young to be judged.

    Attributes:
        now: The time, with its zone.
        grace: Younger runs and objects are left alone.
        keep: Jobs that ended less than this ago are left alone.
    """

    now: datetime
    grace: timedelta = timedelta(minutes=10)
    keep: timedelta = timedelta(hours=24)

    def are_over(self, found: Object) -> bool:
        """Whether an object is old enough to be judged."""
        if (end := ended(found)) is not None:
            return self.now - end[0] > self.keep
        return self.now - created(found) > self.grace


@dataclass(frozen=True, slots=True)
class Records:
    """What ZenML knows, so that the judgement of objects needs no ZenML.

    Attributes:
        project_id: Of our project: the absence of a run says something of objects of this project alone.
        life_of: Run -> whether it is under way.
        life_of_snapshot: Snapshot -> whether runs of it are under way.
    """

    project_id: str
    life_of: Callable[[str], runs.Life]
    life_of_snapshot: Callable[[str], runs.Life]

    @classmethod
    def of_zenml(cls, *, closed: Collection[str] = ()) -> "Records":
        """Those of the ZenML that the environment names.

        Args:
            closed: Runs that count as ended, because they are about to be closed.
        """
        life_of = cache(lambda run_id: "ended" if run_id in closed else runs.life_of(run_id))
        life_of_snapshot = cache(lambda snapshot_id: runs.life_of_snapshot(snapshot_id, closed=closed))
        return cls(runs.project_id(), life_of, life_of_snapshot)


def find_waste(
    api: ClusterApi, orchestrator_id: str, ages: Ages, *, tell: Callable[[str], None] = noop
) -> Iterator[Waste]:
    """All that a stack's runs left behind: first the runs to close, then what is theirs.

    Args:
        api: The cluster that the stack's file names.
        orchestrator_id: ZenML's identity of the stack's orchestrator.
        ages: What is too young to be judged.
        tell: Takes a line for each kind of object that this identity may not list.
    """
    abandoned = dict(find_abandoned(api, runs.unfinished(), orchestrator_id, ages))
    yield from abandoned.values()
    yield from find_objects(api, Records.of_zenml(closed=abandoned.keys()), ages, tell=tell)


def find_abandoned(
    api: ClusterApi, unfinished: Iterable[runs.Run], orchestrator_id: str, ages: Ages
) -> Iterator[tuple[str, Waste]]:
    """Runs of a stack that ZenML believes to be under way, but whose Jobs are gone or have ended; by identity.

    Args:
        api: The cluster.
        unfinished: The runs that ZenML believes to be under way.
        orchestrator_id: ZenML's identity of the stack's orchestrator: a name may be that of another stack by now.
        ages: What is too young to be judged.
    """
    own = [run for run in unfinished if run.orchestrator_id == orchestrator_id and ages.now - run.created > ages.grace]
    if not own:
        return
    jobs: dict[str, list[Object]] = {}
    for job in api.list(JOBS):
        jobs.setdefault(run_of(job), []).append(job)
    for run in own:
        if reason := why_abandoned(jobs.get(run.run_id, []), ages):
            yield run.run_id, closing(run, reason)


def why_abandoned(jobs: Iterable[Object], ages: Ages) -> str:
    """Why a run will never go on, by its Jobs; "" = it may."""
    ends = []
    for job in jobs:
        if (end := ended(job)) is None:
            return ""
        ends.append(end)
    if not ends:
        return "its Jobs are gone from the cluster"
    latest, told = max(ends)
    return f"its last Job ended ({told}) and started nothing more" if ages.now - latest > ages.grace else ""


def ended(job: Object) -> tuple[datetime, str] | None:
    """When a Job came to its end and how; None = it has not."""
    for condition in (job.get("status") or {}).get("conditions") or []:
        if condition.get("type") in ("Complete", "Failed") and condition.get("status") == "True":
            reason = condition.get("reason") or condition["type"]
            return moment(condition.get("lastTransitionTime")) or created(job), str(reason)
    return None


def find_abandoned_here() -> Iterator[Waste]:
    """Runs of local orchestrators in this workspace's own ZenML; to be called while its lock is held.

    Whoever holds the lock knows that no run is under way here: one that ZenML believes to be was killed.
    """
    if not runs.is_store_of_this_machine():
        return
    for run in runs.unfinished():
        if run.orchestrator == "local":
            yield closing(run, "its process is gone: it was killed")


def closing(run: runs.Run, reason: str) -> Waste:
    """A run to be recorded as failed."""
    return Waste("Run", run.name, reason, lambda: runs.close(run.run_id, f"closed by proxykd gc: {reason}"))


def find_objects(
    api: ClusterApi, records: Records, ages: Ages, *, tell: Callable[[str], None] = noop
) -> Iterator[Waste]:
    """Jobs, TrainJobs, volume claims and pods of runs that have ended or vanished, tokens and half-made schedules.

    Args:
        api: The cluster.
        records: What ZenML knows.
        ages: What is too young to be judged.
        tell: Takes a line for each kind of object that this identity may not list.
    """
    owners = {job["metadata"]["uid"]: run_of(job) for job in api.list(JOBS)}
    looks: list[tuple[Kind, Iterator[Waste]]] = [
        (kind, _find_of_kind(api, kind, records, ages, owners)) for kind in (TRAIN_JOBS, JOBS, CLAIMS, PODS)
    ]
    looks += [(CRON_JOBS, _find_half_made(api, records, ages)), (SECRETS, _find_tokens(api, records, ages))]
    for kind, look in looks:
        try:
            yield from look
        except ClusterForbiddenError:
            tell(f"{kind.plural} are not looked at: this identity may not list them")


def _find_of_kind(
    api: ClusterApi, kind: Kind, records: Records, ages: Ages, owners: Mapping[str, str]
) -> Iterator[Waste]:
    for found in _ours(api, kind):
        if ages.are_over(found) and (reason := why_waste(found, records, owners)):
            yield _removal(api, kind, found, reason)


def _find_half_made(api: ClusterApi, records: Records, ages: Ages) -> Iterator[Waste]:
    for found in api.list(CRON_JOBS):
        if found["spec"].get("schedule") == NEVER and _is_of(found, records) and ages.are_over(found):
            yield _removal(api, CRON_JOBS, found, "a schedule that was never finished")


def remove_job(api: ClusterApi, job: Object) -> bool:
    """Remove a Job and all that it owns; whether it was still there."""
    return _removal(api, JOBS, job, "").remove()


def _ours(api: ClusterApi, kind: Kind) -> Iterator[Object]:
    try:
        for found in api.list(kind, labels=OURS):
            yield {"kind": kind.name, **found}  # in a list the API server leaves the kind out
    except ClusterMissingError:  # the cluster knows no TrainJobs
        return


def why_waste(found: Object, records: Records, owners: Mapping[str, str]) -> str:
    """Why an object of ours is of no use; "" = it may be of use, or nothing tells that it is a run's.

    Args:
        found: The object.
        records: What ZenML knows.
        owners: Job, by its uid -> run that it belongs to, for what says only which Job owns it.
    """
    owned_by = [owner["uid"] for owner in found["metadata"].get("ownerReferences") or []]
    if owned_by and (found.get("kind") != TRAIN_JOBS.name or ended(found) is not None):
        return ""  # it goes with its owner
    run_id = run_of(found) or next((owners[uid] for uid in owned_by if owners.get(uid)), "")
    if not run_id:
        return ""
    life = records.life_of(run_id)
    if life == "ended":
        # A training that its step no longer follows keeps GPUs busy for as long as the step's Job is kept.
        return f"its run {run_id[:8]} has ended"
    return f"its run {run_id[:8]} is not known any more" if life == "unknown" and _is_of(found, records) else ""


def _is_of(found: Object, records: Records) -> bool:
    return _labels(found).get(PROJECT_LABEL) == records.project_id


def run_of(found: Object) -> str:
    """Identity of the run that an object belongs to; "" = it names none."""
    labels, annotations = _labels(found), found["metadata"].get("annotations") or {}
    named = (labels.get(label) for label in RUN_LABELS)
    return next(filter(None, named), "") or str(annotations.get(RUN_ANNOTATION, ""))


def _labels(found: Object) -> Mapping[str, str]:
    labels: Mapping[str, str] = found["metadata"].get("labels") or {}
    return labels


def _find_tokens(api: ClusterApi, records: Records, ages: Ages) -> Iterator[Waste]:
    """Secrets with ZenML's token for the pods of one snapshot: waste once no run and no schedule uses it.

    They carry no label; a snapshot that our ZenML does not know is somebody else's.
    """
    scheduled: set[str] | None = None
    for secret in api.list(SECRETS):
        name = secret["metadata"]["name"]
        if not (match := _TOKEN.fullmatch(name)) or not ages.are_over(secret):
            continue
        if records.life_of_snapshot(match[1]) != "ended":
            continue
        if scheduled is None:
            scheduled = {token for one in api.list(CRON_JOBS) for token in tokens_in(one)}
        if name not in scheduled:
            yield _removal(api, SECRETS, secret, f"no run and no schedule of snapshot {match[1][:8]} needs it")


def tokens_in(found: object) -> Iterator[str]:
    """Names of the token secrets that a manifest refers to, wherever it does."""
    if isinstance(found, Mapping):
        for value in found.values():
            yield from tokens_in(value)
    elif isinstance(found, list):
        for value in found:
            yield from tokens_in(value)
    elif isinstance(found, str) and _TOKEN.fullmatch(found):
        yield found


def _removal(api: ClusterApi, kind: Kind, found: Object, reason: str) -> Waste:
    metadata = found["metadata"]

    def remove() -> bool:
        try:
            return api.delete(kind, metadata["name"], namespace=metadata.get("namespace"), uid=metadata["uid"])
        except ClusterConflictError:  # another object has its name by now
            return False

    return Waste(kind.name, metadata["name"], reason, remove)


def created(found: Object) -> datetime:
    """When an object was made; long ago if it does not say."""
    return moment(found["metadata"].get("creationTimestamp")) or datetime.min.replace(tzinfo=UTC)


def moment(text: str | None) -> datetime | None:
    """A time of the API server's."""
    return None if not text else datetime.fromisoformat(text.replace("Z", "+00:00"))

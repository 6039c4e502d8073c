"""Schedules as CronJobs: one a name, changed in place, with a time zone; what ZenML makes is taken over into it.

ZenML makes a CronJob with a random name at each submission and can give it no time zone. The one that it makes here
never fires (30 February): its Job template is copied into the CronJob whose name is the schedule's, and it is removed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cluster.api import ClusterApi, Object
from cluster.kinds import CRON_JOBS
from cluster.names import PART_OF
from proxykd.config.schedule import ScheduleSpec
from proxykd.exceptions import ClusterConflictError, ClusterError, ConfigError

NAME_LABEL = "proxykd.dev/schedule"
FINGERPRINT = "proxykd.dev/fingerprint"
RECORD = "proxykd.dev/zenml-schedule"
NEVER = "0 0 30 2 *"
"""30 February: what a CronJob says that is still being made."""

_TRIES = 5


@dataclass(frozen=True, slots=True)
class Standing:
    """A schedule as the cluster has it.

    Attributes:
        name: Of the schedule.
        cron: When.
        time_zone: Of that.
        concurrency: What happens if the last run is under way.
        is_suspended: Whether nothing is started for now.
        last: When a run was started last; "" = none was.
        active: Runs under way.
    """

    name: str
    cron: str
    time_zone: str
    concurrency: str
    is_suspended: bool
    last: str
    active: int


def cron_job_name(name: str) -> str:
    """Name of a schedule's CronJob: the same at every application."""
    return f"proxykd-{name}"


def timing(spec: ScheduleSpec) -> dict[str, Any]:
    """The fields of a CronJob that say when; None = not set."""
    return {
        "schedule": spec.cron,
        "timeZone": spec.time_zone,
        "concurrencyPolicy": spec.concurrency,
        "startingDeadlineSeconds": spec.starting_deadline_s,
        "suspend": spec.suspend,
    }


def differences(cron_job: Object, wanted: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Field -> what the CronJob says and what it shall say, of those that differ."""
    spec = cron_job["spec"]
    defaults = {"concurrencyPolicy": "Allow", "suspend": False}
    held = {key: spec.get(key, defaults.get(key)) for key in wanted}
    return {key: (held[key], value) for key, value in wanted.items() if held[key] != value}


def find(api: ClusterApi, name: str) -> Object | None:
    """The CronJob of a schedule.

    Raises:
        ConfigError: if one of that name is there which is not ours.
    """
    found = api.find(CRON_JOBS, cron_job_name(name))
    if found is not None and (found["metadata"].get("labels") or {}).get(NAME_LABEL) != name:
        raise ConfigError(
            f"the CronJob {cron_job_name(name)} in namespace {api.namespace} is not a schedule of proxykd; choose "
            "another name for the schedule"
        )
    return found


def required(api: ClusterApi, name: str) -> Object:
    """The CronJob of a schedule that must be there.

    Raises:
        ConfigError: if it is not.
    """
    if (found := find(api, name)) is None:
        raise ConfigError(f"expected a schedule in namespace {api.namespace}, got {name!r}; `proxykd schedule list`")
    return found


def listed(api: ClusterApi) -> Iterator[Standing]:
    """All schedules of the namespace."""
    for found in api.list(CRON_JOBS, labels=NAME_LABEL):
        spec, status = found["spec"], found.get("status") or {}
        yield Standing(
            found["metadata"]["labels"][NAME_LABEL],
            spec["schedule"],
            spec.get("timeZone", "the cluster's"),
            spec.get("concurrencyPolicy", "Allow"),
            bool(spec.get("suspend")),
            str(status.get("lastScheduleTime") or ""),
            len(status.get("active") or []),
        )


def adopt(api: ClusterApi, made: str, name: str, wanted: Mapping[str, Any], notes: Mapping[str, str]) -> None:
    """Take the Job template of a CronJob that ZenML made over into the schedule's own, and remove the former.

    Args:
        api: The cluster.
        made: Name of ZenML's CronJob.
        name: Of the schedule.
        wanted: As ``timing`` gives it.
        notes: Annotations to keep.
    """
    source = api.get(CRON_JOBS, made)
    template = {**source["spec"]["jobTemplate"]}
    own = template.get("metadata") or {}
    template["metadata"] = {
        "labels": {**(own.get("labels") or {}), **PART_OF, NAME_LABEL: name},
        "annotations": own.get("annotations") or {},
    }
    labels = {**(source["metadata"].get("labels") or {}), **PART_OF, NAME_LABEL: name}
    kept = {key: value for key, value in source["spec"].items() if key not in wanted and key != "jobTemplate"}
    spec = {**kept, **{key: value for key, value in wanted.items() if value is not None}, "jobTemplate": template}
    annotations = {**(source["metadata"].get("annotations") or {}), **notes}
    _put(api, name, {"labels": labels, "annotations": annotations}, spec)
    api.delete(CRON_JOBS, made, uid=source["metadata"]["uid"])


def _put(api: ClusterApi, name: str, metadata: Mapping[str, Any], spec: Mapping[str, Any]) -> None:
    """Create the schedule's CronJob, or replace the one that is there, whoever else changes it meanwhile."""
    for _ in range(_TRIES):
        found = find(api, name)
        try:
            if found is None:
                body = {"metadata": {**metadata, "name": cron_job_name(name), "namespace": api.namespace}, "spec": spec}
                api.create(CRON_JOBS, body)
            else:
                changes = {"metadata": {**metadata, "resourceVersion": found["metadata"]["resourceVersion"]}}
                api.patch(CRON_JOBS, cron_job_name(name), {**changes, "spec": merge_patch(found["spec"], spec)})
        except ClusterConflictError:
            continue
        return
    raise ClusterError(f"others kept changing the CronJob {cron_job_name(name)}; apply the schedule again")


def merge_patch(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON merge patch (RFC 7386) from one object to another: what is gone is null, lists are replaced whole.

    A patch and not a replacement: whoever submits may patch CronJobs and needs no further permission.
    """
    changes: dict[str, Any] = dict.fromkeys(old.keys() - new.keys())
    for key, value in new.items():
        former = old.get(key)
        if key in old and former == value:
            continue
        if isinstance(value, Mapping) and isinstance(former, Mapping):
            changes[key] = merge_patch(former, value)
        else:
            changes[key] = value
    return changes


def retime(api: ClusterApi, name: str, wanted: Mapping[str, Any]) -> None:
    """Change in place when a schedule fires."""
    api.patch(CRON_JOBS, cron_job_name(name), {"spec": dict(wanted)})


def remove(api: ClusterApi, found: Object) -> bool:
    """Remove a schedule's CronJob; runs of it that are under way go on. Whether it was still there."""
    metadata = found["metadata"]
    return api.delete(CRON_JOBS, metadata["name"], uid=metadata["uid"], propagation="Orphan")


def note(found: Object, key: str) -> str:
    """An annotation of a schedule's CronJob; "" = it has none."""
    return str((found["metadata"].get("annotations") or {}).get(key, ""))

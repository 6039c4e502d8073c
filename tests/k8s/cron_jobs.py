"""A CronJob controller double: a Job for each time that is due, as suspension, deadline and concurrency allow.

Differs from the real one: a time may be brought about on demand (``ring``), and finished Jobs are kept.
"""

import copy
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

from tests.k8s.controller import Controller, is_finished, ownership
from tests.k8s.defaults import admitted
from tests.k8s.kinds import CORE
from tests.k8s.refusals import Refusal
from tests.k8s.store import Store

Object = dict[str, Any]
CRON_JOB, JOB = CORE["CronJob"], CORE["Job"]
_NAMED = {"@hourly": "0 * * * *", "@daily": "0 0 * * *", "@midnight": "0 0 * * *", "@weekly": "0 0 * * 0"}
_NAMED |= {"@monthly": "0 0 1 * *", "@yearly": "0 0 1 1 *", "@annually": "0 0 1 1 *"}
_MINUTE = timedelta(minutes=1)


class CronJobs(Controller):
    """Starts the Jobs of every CronJob.

    Attributes:
        clock: The time, with its zone.
        skipped: Names of CronJobs, once for each time that was due and forbidden as the last Job was still active.
    """

    wait_s = 0.1

    def __init__(self, store: Store, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        super().__init__(store)
        self.clock, self.skipped = clock, list[str]()
        self._rung: dict[str, datetime] = {}

    def ring(self, name: str) -> None:
        """Let this moment be one at which the CronJob is due."""
        self._rung[name] = datetime.now(UTC)

    def look(self) -> None:
        """Start what is due."""
        for found in self.store.scan(CRON_JOB):
            self._sync(found, self.clock())

    def _sync(self, found: Object, now: datetime) -> None:
        active = [job for job in self.owned(JOB, found) if not is_finished(job)]
        names = [{"kind": "Job", "name": job["metadata"]["name"]} for job in active]
        self._status(found, active=names)
        due = None if found["spec"]["suspend"] else self._due(found, now)
        if due is None:
            return
        policy = found["spec"]["concurrencyPolicy"]
        if active and policy == "Forbid":
            self.skipped.append(found["metadata"]["name"])
            self._rung.pop(found["metadata"]["name"], None)
            return
        for job in active if policy == "Replace" else []:
            self.store.delete(JOB, job["metadata"]["namespace"], job["metadata"]["name"])
        self._begin(found, due)

    def _due(self, found: Object, now: datetime) -> datetime | None:
        """The latest time that is due and not yet missed for good."""
        if (rung := self._rung.get(found["metadata"]["name"])) is not None:
            return rung
        last = found["status"].get("lastScheduleTime") or found["metadata"]["creationTimestamp"]
        since, limit = _read(last), found["spec"].get("startingDeadlineSeconds")
        if limit is not None:
            since = max(since, now - timedelta(seconds=limit))
        moment, zone = now.replace(second=0, microsecond=0), ZoneInfo(found["spec"].get("timeZone", "UTC"))
        while moment > since:
            if matches(found["spec"]["schedule"], moment.astimezone(zone)):
                return moment
            moment -= _MINUTE
        return None

    def _begin(self, found: Object, due: datetime) -> None:
        meta, template = found["metadata"], copy.deepcopy(found["spec"]["jobTemplate"])
        self._rung.pop(meta["name"], None)
        own = template.get("metadata") or {}
        annotations = {**(own.get("annotations") or {}), "batch.kubernetes.io/cronjob-scheduled-timestamp": _write(due)}
        metadata = {
            "name": f"{meta['name']}-{due.timestamp():.0f}",
            "labels": own.get("labels") or {},
            "annotations": annotations,
            "ownerReferences": ownership(found),
        }
        body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": template["spec"]}
        with suppress(Refusal):  # of that moment's Job, which is there already, or by a quota: looked at again
            self.store.create(JOB, meta["namespace"], admitted(body))
            self._status(found, lastScheduleTime=_write(due))

    def _status(self, found: Object, **status: Any) -> None:
        self.restate(CRON_JOB, found, lambda one: one["status"].update(status))


def matches(schedule: str, moment: datetime) -> bool:
    """Whether a cron expression names this minute; days of the month and of the week as Kubernetes has them.

    Args:
        schedule: Five fields of numbers, ``*``, lists, ranges and steps, or a word such as ``@daily``.
        moment: In the schedule's time zone.
    """
    minute, hour, day, month, weekday = _NAMED.get(schedule, schedule).split()
    is_time = _fits(minute, moment.minute, 59) and _fits(hour, moment.hour, 23) and _fits(month, moment.month, 12)
    is_day, is_weekday = _fits(day, moment.day, 31), any(_fits(weekday, one, 7) for one in _weekdays(moment))
    both = is_day or is_weekday if "*" not in (day[0], weekday[0]) else is_day and is_weekday
    return is_time and both


def _weekdays(moment: datetime) -> tuple[int, ...]:
    number = moment.isoweekday()
    return (0, 7) if number == 7 else (number,)


def _fits(field: str, value: int, most: int) -> bool:
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = (f"0-{most}" if span == "*" else span).partition("-")
        end = int(last or (most if step else first))
        if int(first) <= value <= end and (value - int(first)) % int(step or 1) == 0:
            return True
    return False


def _read(stamp: str) -> datetime:
    return datetime.fromisoformat(stamp.replace("Z", "+00:00"))


def _write(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")

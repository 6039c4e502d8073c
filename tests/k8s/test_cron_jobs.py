"""The CronJob controller double does what a schedule's fields say."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from cluster import schedules
from proxykd.config.schedule import ScheduleSpec
from tests.k8s.api_server import ApiServer, api_server
from tests.k8s.cron_jobs import CronJobs, matches
from tests.k8s.defaults import admitted
from tests.k8s.kinds import CORE

BEGUN = datetime(2026, 3, 27, 12, tzinfo=UTC)  # a Friday; on Sunday Berlin's clocks go forward
POD = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "image"}]}


class Time:
    """A CronJob made at ``BEGUN``, and a clock that a test sets."""

    def __init__(self, server: ApiServer) -> None:
        self.store, self.now = server.store, BEGUN
        self.cron_jobs = CronJobs(server.store, lambda: self.now)

    def schedule(self, **spec: Any) -> None:
        timing = schedules.timing(ScheduleSpec.model_validate(spec))
        kept = {key: value for key, value in timing.items() if value is not None}
        body = {"apiVersion": "batch/v1", "kind": "CronJob", "metadata": {"name": "s", "namespace": "default"}}
        template = {"metadata": {"labels": {"run": "nightly"}}, "spec": {"template": {"spec": POD}}}
        self.store.create(CORE["CronJob"], "default", admitted({**body, "spec": {**kept, "jobTemplate": template}}))
        stamp = BEGUN.strftime("%Y-%m-%dT%H:%M:%SZ")
        self.store.change(CORE["CronJob"], "default", "s", lambda one: one["metadata"].update(creationTimestamp=stamp))

    def at(self, *moments: str) -> list[str]:
        """Times of the Jobs that are there after the clock has shown these, oldest first."""
        for moment in moments:
            self.now = datetime.fromisoformat(moment).replace(tzinfo=UTC)
            self.cron_jobs.look()
        word = "batch.kubernetes.io/cronjob-scheduled-timestamp"
        return sorted(job["metadata"]["annotations"][word] for job in self.store.list(CORE["Job"]))

    def end_all(self) -> None:
        end = {"conditions": [{"type": "Complete", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}
        for job in self.store.list(CORE["Job"]):
            self.store.change(CORE["Job"], "default", job["metadata"]["name"], lambda one: one.update(status=end))


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Time]:
    with api_server(tmp_path) as server:
        yield Time(server)


def test_a_job_is_made_at_its_time_once_and_in_its_time_zone(there: Time) -> None:
    there.schedule(cron="0 3 * * *", time_zone="Europe/Berlin", concurrency="Allow")
    assert there.at("2026-03-28T01:59:59") == []
    assert there.at("2026-03-28T02:00:00", "2026-03-28T02:00:30") == ["2026-03-28T02:00:00Z"]
    assert there.at("2026-03-29T01:00:10")[1:] == ["2026-03-29T01:00:00Z"], "summer time"
    (job, _) = there.store.list(CORE["Job"])
    assert job["metadata"]["labels"] == {"run": "nightly"}


def test_what_is_suspended_or_missed_for_too_long_is_not_made_up_for(there: Time) -> None:
    there.schedule(cron="0 3 * * *", time_zone="Etc/UTC", starting_deadline_s=600, suspend=True)
    assert there.at("2026-03-28T03:00:00") == []
    there.store.change(CORE["CronJob"], "default", "s", lambda one: one["spec"].update(suspend=False))
    assert there.at("2026-03-28T03:10:01") == []
    assert there.at("2026-03-29T03:09:59") == ["2026-03-29T03:00:00Z"]


@pytest.mark.parametrize(("concurrency", "num_left"), [("Allow", 2), ("Forbid", 1), ("Replace", 1)])
def test_a_second_time_while_the_first_runs(there: Time, concurrency: str, num_left: int) -> None:
    there.schedule(cron="@hourly", concurrency=concurrency, starting_deadline_s=60)
    found = there.at("2026-03-27T13:00:00", "2026-03-27T14:00:00")
    assert len(found) == num_left
    assert ("2026-03-27T13:00:00Z" in found) == (concurrency != "Replace")
    assert there.cron_jobs.skipped == ["s"] * (concurrency == "Forbid")
    there.end_all()
    assert there.at("2026-03-27T15:00:00")[-1] == "2026-03-27T15:00:00Z"


def test_it_rings_on_demand_but_not_while_it_is_paused(there: Time) -> None:
    there.schedule(cron=schedules.NEVER, suspend=True)
    there.cron_jobs.ring("s")
    assert there.at("2026-03-27T12:30:00") == []
    there.store.change(CORE["CronJob"], "default", "s", lambda one: one["spec"].update(suspend=False))
    assert len(there.at("2026-03-27T12:31:00", "2026-03-27T12:32:00")) == 1


@pytest.mark.parametrize(
    ("cron", "moment", "is_due"),
    [
        ("*/15 9-17 * * 1-5", "2026-03-27T09:45:00", True),
        ("*/15 9-17 * * 1-5", "2026-03-28T09:45:00", False),  # Saturday
        ("*/15 9-17 * * 1-5", "2026-03-27T09:40:00", False),
        ("0 0 1,15 * *", "2026-03-15T00:00:00", True),
        ("0 0 13 * 5", "2026-03-27T00:00:00", True),  # either day
        ("0 0 * * 7", "2026-03-29T00:00:00", True),
        ("@monthly", "2026-03-02T00:00:00", False),
    ],
)
def test_a_cron_expression(cron: str, moment: str, is_due: bool) -> None:
    assert matches(cron, datetime.fromisoformat(moment)) is is_due


def test_30_february_never_comes() -> None:
    moment = datetime(2026, 1, 1)
    assert not any(matches(schedules.NEVER, moment + timedelta(days=day)) for day in range(4 * 366))

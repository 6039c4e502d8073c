"""Schedules: a run that the cluster starts again and again, made once and changed in place.

What fires is a CronJob with a copy of what ZenML would submit now: specification, image and places are those of the
last application, and a change of any of them takes effect when the schedule is applied again.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from zenml.client import Client
from zenml.config.schedule import Schedule
from zenml.integrations.kubernetes.constants import KUBERNETES_CRON_JOB_METADATA_KEY
from zenml.models.v2.core.schedule import ScheduleUpdate
from zenml.orchestrators.publish_utils import publish_schedule_metadata

from cluster import schedules
from cluster.api import ClusterApi
from cluster.schedule_names import new_record_name
from pipelines.running import arguments
from pipelines.submitting import shards_of, started
from proxykd.config import RunSpec
from proxykd.config.placement import load_placement
from proxykd.config.schedule import ScheduleSpec
from proxykd.config.stack import ClusterStackSpec
from proxykd.exceptions import ClusterError
from proxykd.own_code import code_hash
from proxykd.records import hash_json


@dataclass(frozen=True, slots=True)
class Application:
    """What to schedule.

    Attributes:
        name: Of the schedule.
        run: The resolved specification.
        stack: The active stack.
        when: Its times.
        inputs: Hash of the prompts' file.
        models: Role -> identity of the model behind its source.
        anew: Steps that every run does again although they are finished.
    """

    name: str
    run: RunSpec
    stack: ClusterStackSpec
    when: ScheduleSpec
    inputs: str
    models: Mapping[str, str]
    anew: Sequence[str] = ()

    @property
    def fingerprint(self) -> str:
        """16 hex digits over all that a run of the schedule is made of; its times and its baseline are not among it.

        Raises:
            ConfigError: if the placement cannot be used, or divides a step that cannot be.
            InputError: if a file or trajectories that the specification names cannot be read.
        """
        told = arguments(self.run, inputs=self.inputs, models=self.models, shards=shards_of(self.run, self.stack))
        del told["baseline"]  # it moves with each run that is accepted
        placement = load_placement(self.stack.placement).model_dump(mode="json")
        parts = [told, self.stack.model_dump(mode="json"), placement, sorted(self.anew)]
        return hash_json([*parts, code_hash("pipelines.scheduling")])[:16]  # what submits, and with it what is run


def apply(application: Application, api: ClusterApi) -> list[str]:
    """Make the cluster start the run at its times; what changed, a line each; none = nothing had to.

    Args:
        application: What to schedule; its stack is the active one.
        api: The cluster.

    Raises:
        ClusterError: if the cluster refuses it, or others keep changing the same schedule.
    """
    name, wanted = application.name, schedules.timing(application.when)
    found, fingerprint = schedules.find(api, name), application.fingerprint
    if found is None or schedules.note(found, schedules.FINGERPRINT) != fingerprint:
        _submit(application, api, wanted, fingerprint)
        if found is not None:
            _forget(schedules.note(found, schedules.RECORD))
            return ["what is run", *_lines(schedules.differences(found, wanted))]
        return ["new", *(f"{key}: {value}" for key, value in wanted.items() if value is not None)]
    if changes := schedules.differences(found, wanted):
        schedules.retime(api, name, wanted)
        _record(schedules.note(found, schedules.RECORD), application.when)
    return _lines(changes)


def _lines(changes: Mapping[str, tuple[Any, Any]]) -> list[str]:
    return [f"{key}: {old} -> {new}" for key, (old, new) in changes.items()]


def _submit(application: Application, api: ClusterApi, wanted: Mapping[str, Any], fingerprint: str) -> None:
    """Let ZenML make its CronJob, and take it over into the schedule's own."""
    own = new_record_name(application.name)
    started(
        application.run,
        application.stack,
        inputs=application.inputs,
        models=application.models,
        anew=application.anew,
        schedule=Schedule(name=own, cron_expression=schedules.NEVER),
    )
    record = Client().get_schedule(own, allow_name_prefix_match=False)
    if not (made := record.run_metadata.get(KUBERNETES_CRON_JOB_METADATA_KEY)):
        raise ClusterError(f"expected ZenML to name the CronJob of the schedule {own}, it did not; apply it again")
    notes = {schedules.FINGERPRINT: fingerprint, schedules.RECORD: str(record.id)}
    schedules.adopt(api, str(made), application.name, wanted, notes)
    _record(str(record.id), application.when)
    key = {KUBERNETES_CRON_JOB_METADATA_KEY: schedules.cron_job_name(application.name)}
    publish_schedule_metadata(record.id, {record.orchestrator_id: key})


def _record(record: str, when: ScheduleSpec) -> None:
    """Let ZenML's own record say the same; without it the schedule works all the same."""
    with suppress(KeyError, ValueError):
        update = ScheduleUpdate(cron_expression=when.cron, active=not when.suspend)
        Client().zen_store.update_schedule(UUID(record), update)


def _forget(record: str) -> None:
    """Archive ZenML's record, not through its client, which would remove the CronJob too."""
    with suppress(KeyError, ValueError):
        Client().zen_store.delete_schedule(UUID(record), soft=True)


def suspend(name: str, api: ClusterApi, *, is_suspended: bool) -> bool:
    """Pause a schedule or let it go on; whether that changed anything.

    Raises:
        ConfigError: if there is none of that name.
    """
    found = schedules.required(api, name)
    if bool(found["spec"].get("suspend")) is is_suspended:
        return False
    schedules.retime(api, name, {"suspend": is_suspended})
    with suppress(KeyError, ValueError):
        update = ScheduleUpdate(active=not is_suspended)
        Client().zen_store.update_schedule(UUID(schedules.note(found, schedules.RECORD)), update)
    return True


def delete(name: str, api: ClusterApi) -> bool:
    """Remove a schedule; runs of it that are under way go on. Whether it was still there.

    Raises:
        ConfigError: if there is none of that name.
    """
    found = schedules.required(api, name)
    _forget(schedules.note(found, schedules.RECORD))
    return schedules.remove(api, found)

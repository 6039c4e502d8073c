"""What ZenML says of runs: which there are, in which state, and the end of one that nobody carries on."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal
from uuid import UUID

from zenml.client import Client
from zenml.enums import ExecutionStatus, StackComponentType
from zenml.exceptions import IllegalOperationError
from zenml.models import PipelineRunUpdate, StepRunUpdate

from proxykd.exceptions import InputError

Life = Literal["under way", "ended", "unknown"]
_PAGE = 100


@dataclass(frozen=True, slots=True)
class Run:
    """A run as ZenML keeps it.

    Attributes:
        run_id: ZenML's identity.
        name: Its name.
        status: ZenML's word for its state.
        is_finished: Whether nothing more will happen to it.
        stack: Name of its stack; "" = that stack is gone.
        orchestrator: Flavor of the stack's orchestrator.
        orchestrator_id: Identity of that orchestrator.
        created: When it was submitted.
        ended: When it ended; None = it has not, or nobody noted it.
        reason: Why it is in its state, where somebody said so; "" = nobody did.
    """

    run_id: str
    name: str
    status: str
    is_finished: bool
    stack: str
    orchestrator: str
    orchestrator_id: str
    created: datetime
    ended: datetime | None
    reason: str


def recent(limit: int, *, stack: str | None = None) -> list[Run]:
    """The latest runs, the newest first.

    Args:
        limit: At most so many.
        stack: Name of a stack; None = of all stacks.
    """
    asked = {} if stack is None else {"stack": stack}
    found = Client().list_pipeline_runs(sort_by="desc:created", size=limit, hydrate=True, **asked)
    return [_run(one) for one in found.items]


def named(name: str) -> Run:
    """The run of a name.

    Raises:
        InputError: if ZenML knows none of that name.
    """
    try:
        return _run(Client().get_pipeline_run(name, allow_name_prefix_match=False))
    except KeyError:
        raise InputError(f"expected the name of a run, got {name!r}; `proxykd runs` lists them") from None


def unfinished() -> Iterator[Run]:
    """Runs that ZenML believes to be under way."""
    yield from map(_run, _unfinished(hydrate=True))


def _unfinished(**asked: Any) -> Iterator[Any]:
    waiting = [status.value for status in ExecutionStatus if not status.is_finished]
    number = 1
    while True:
        page = Client().list_pipeline_runs(
            status=f"oneof:{_listed(waiting)}", page=number, size=_PAGE, sort_by="asc:created", **asked
        )
        yield from page.items
        if number >= page.total_pages:
            return
        number += 1


def _listed(words: list[str]) -> str:
    return "[" + ", ".join(f'"{word}"' for word in words) + "]"


def steps_of(run_id: str) -> dict[str, str]:
    """Step -> ZenML's word for its state, of the steps that have begun, in the order in which they began."""
    found = Client().list_run_steps(pipeline_run_id=run_id, sort_by="asc:created", size=1000)
    return {one.name: str(one.status.value) for one in found.items}


def failures(run_id: str, causes: Mapping[str, str] | None = None) -> list[str]:
    """Why the steps of a run that has ended failed, a line each: in their own words, or in the cluster's.

    Args:
        run_id: ZenML's identity of the run.
        causes: Step -> what became of its Job, where the cluster knows.
    """
    found, causes = {}, causes or {}
    for step in Client().list_run_steps(pipeline_run_id=run_id, size=1000, hydrate=True).items:
        # ZenML goes on expecting another try of a step whose Job has no more.
        if step.status.is_failed or step.status == ExecutionStatus.RETRYING:
            told = step.exception_info.message if step.exception_info is not None else None
            found[step.name] = told or causes.get(step.name) or "it left no message"
    return [f"{name}: {told}" for name, told in ({**causes, **found}).items()]


def state_of(run_id: str) -> tuple[str, bool]:
    """A run's state in ZenML's word, and whether it is the last one.

    Raises:
        KeyError: if ZenML knows no such run.
    """
    status = Client().get_pipeline_run(run_id, allow_name_prefix_match=False, hydrate=False).status
    return str(status.value), bool(status.is_finished)


def life_of(run_id: str) -> Life:
    """Whether a run is under way, has ended, or is not known to ZenML."""
    try:
        return "ended" if state_of(run_id)[1] else "under way"
    except KeyError:
        return "unknown"


def has_ended(run_id: str) -> bool:
    """Whether ZenML knows that a run has ended."""
    return life_of(run_id) == "ended"


def life_of_snapshot(snapshot_id: str, *, closed: Collection[str] = ()) -> Life:
    """Whether runs of a snapshot are under way, have all ended, or the snapshot is not known to ZenML.

    Args:
        snapshot_id: ZenML's identity.
        closed: Runs that count as ended.
    """
    try:
        Client().get_snapshot(snapshot_id, include_config_schema=False)
    except KeyError:
        return "unknown"
    is_ended = all(str(one.id) in closed for one in _unfinished(snapshot_id=snapshot_id))
    return "ended" if is_ended else "under way"


def project_id() -> str:
    """Identity of the project that all this is in; ZenML's pods carry it as a label."""
    return str(Client().active_project.id)


def is_store_of_this_machine() -> bool:
    """Whether ZenML keeps its records in the workspace, so that nobody elsewhere can have a run in them."""
    return bool(Client().zen_store.is_local_store())


def token_of(run_id: str) -> str:
    """Name of the secret with the token that a run's pods show ZenML; "" = ZenML knows no snapshot of it."""
    snapshot = Client().get_pipeline_run(run_id, allow_name_prefix_match=False).snapshot
    return f"zenml-token-{snapshot.id}" if snapshot is not None else ""


def close(run_id: str, reason: str, *, is_stopped: bool = False) -> bool:
    """Record a run that nobody carries on as failed, or as stopped, with its unfinished steps.

    Args:
        run_id: ZenML's identity.
        reason: Why; kept with the run.
        is_stopped: Record it as stopped: somebody wanted its end, and nothing of it failed.

    Returns:
        Whether this call did it: False if the run is gone, or has ended meanwhile.
    """
    store = Client().zen_store
    # From STOPPING ZenML goes on to STOPPED when no step is left; asked for STOPPED between steps, it says RUNNING.
    wanted = ExecutionStatus.STOPPING if is_stopped else ExecutionStatus.FAILED
    try:
        if state_of(run_id)[1]:
            return False
        store.update_run(UUID(run_id), PipelineRunUpdate(status=wanted, status_reason=reason))
    except (KeyError, IllegalOperationError):
        return False
    for step in Client().list_run_steps(pipeline_run_id=run_id, size=1000, hydrate=True).items:
        if not step.status.is_finished:
            # ZenML would take FAILED of a step with retries left for a promise to try again.
            is_bare = is_stopped or step.is_retriable
            _close_step(store, step.id, ExecutionStatus.STOPPED if is_bare else ExecutionStatus.FAILED)
    return True


def _close_step(store: Any, step_id: Any, status: ExecutionStatus) -> None:
    try:
        store.update_run_step(step_id, StepRunUpdate(status=status, end_time=datetime.now(UTC).replace(tzinfo=None)))
    except (KeyError, IllegalOperationError):
        return  # it ended, or was removed, at this moment


def _run(found: Any) -> Run:
    stack = found.stack
    parts = stack.components.get(StackComponentType.ORCHESTRATOR, []) if stack is not None else []
    return Run(
        run_id=str(found.id),
        name=found.name,
        status=str(found.status.value),
        is_finished=bool(found.status.is_finished),
        stack=stack.name if stack is not None else "",
        orchestrator=parts[0].flavor_name if parts else "",
        orchestrator_id=str(parts[0].id) if parts else "",
        created=_utc(found.created),
        ended=_utc(found.end_time) if found.end_time else None,
        reason=found.get_body().status_reason or "",
    )


def _utc(moment: datetime) -> datetime:
    """ZenML's times are UTC and do not say so."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

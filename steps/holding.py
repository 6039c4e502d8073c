"""Which run a volume belongs to: two that write one journal and one checkpoint are refused where they meet.

``proxykd run --stack`` refuses a second run before it is submitted; one that a schedule starts, or that another ZenML
stack sends to the same claim, is refused here, by its first step that writes there.
"""

from typing import Any

from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.steps.step_context import StepContext

from cluster.schedule_names import schedule_of_record
from steps.settings import workspace


def hold_workspace() -> None:
    """Let no other run write into the workspace while the run of this step is under way.

    On one machine the workspace is locked for as long as a run takes, and outside of a run nobody else is there: then
    nothing is looked at. Runs of one schedule, whichever of its applications started them, do not stand in each other's
    way: its ``concurrency`` has decided already, and a run that it replaced is never recorded as ended.

    Raises:
        BusyError: if another run is under way there.
    """
    context = StepContext.get()
    if context is None or _is_on_this_machine():
        return
    own = context.pipeline_run
    schedule = _schedule_of(own)

    def is_in_the_way(run_id: str) -> bool:
        try:
            other = Client().get_pipeline_run(run_id, allow_name_prefix_match=False)
        except KeyError:
            return False
        is_under_way: bool = not other.status.is_finished
        return is_under_way and not (schedule and _schedule_of(other) == schedule)

    workspace().take(str(own.id), own.name, is_in_the_way=is_in_the_way)


def _schedule_of(run: Any) -> str:
    """Name of the schedule that started a run, however often it was applied since; "" = none did."""
    return "" if run.schedule is None else schedule_of_record(run.schedule.name)


def _is_on_this_machine() -> bool:
    (orchestrator,) = Client().active_stack_model.components[StackComponentType.ORCHESTRATOR]
    is_local: bool = orchestrator.flavor_name == "local"
    return is_local

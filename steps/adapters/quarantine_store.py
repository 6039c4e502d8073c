"""The newest quarantine of a run, from ZenML's artifact store, wherever that is."""

from zenml.client import Client

from proxykd.artifacts import QuarantineSet
from proxykd.exceptions import InputError

_STEP, _OUTPUT = "validate_data", "quarantine"


def newest_quarantine(name: str) -> QuarantineSet:
    """The quarantine of the last run called ``name`` that came to it, whether its gate was open or closed.

    Raises:
        InputError: if there is none.
    """
    for run in Client().list_pipeline_runs(tags=[name], sort_by="desc:created", size=20, hydrate=True).items:
        step = run.steps.get(_STEP)
        if step is not None and step.outputs.get(_OUTPUT):
            quarantine: QuarantineSet = step.outputs[_OUTPUT][0].load()
            return quarantine
    raise InputError(f"expected a run called {name} with validated rows in this workspace, found none; run it first")

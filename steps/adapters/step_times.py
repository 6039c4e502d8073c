"""How long the steps of the pipeline run under way took when each was last executed, from ZenML."""

from typing import Any
from uuid import UUID

from zenml import get_step_context
from zenml.client import Client


def measured_steps() -> dict[str, Any]:
    """What the run under way has taken so far.

    Returns:
        ``steps``: seconds of every finished step by its name, of a cached one those of the run that executed it; None
        outside a step. ``accelerators``: GPUs of this machine; None where steps run on machines of their own.
    """
    try:
        run_id = get_step_context().pipeline_run.id
    except RuntimeError:  # called as a plain function
        return {"steps": None, "accelerators": None}
    import torch

    client = Client()
    seconds = {name: _seconds(_executed(step)) for name, step in client.get_pipeline_run(run_id).steps.items()}
    is_here = client.active_stack.orchestrator.flavor == "local"
    return {
        "steps": {name: found for name, found in seconds.items() if found is not None},
        "accelerators": torch.accelerator.device_count() if is_here else None,
    }


def _executed(step: Any) -> Any:
    """The run of a step that did the work: itself, or the one that the cache holds."""
    original: UUID | None = step.original_step_run_id
    return step if original is None else Client().get_run_step(original)


def _seconds(step: Any) -> float | None:
    if step.start_time is None or step.end_time is None:
        return None
    return float((step.end_time - step.start_time).total_seconds())

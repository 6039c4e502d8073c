"""Run a pipeline on the active ZenML stack and bring back what the user wants to see of it."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zenml.client import Client
from zenml.enums import ExecutionMode
from zenml.exceptions import RunInterruptedException
from zenml.utils import source_utils

import proxykd
from cluster.step_entry import leave_out_libraries
from pipelines.distill import distill
from proxykd.artifacts import Evaluation, Promotion, ValidationResult, read_json
from proxykd.config import RunSpec
from proxykd.config.shielding import shielded
from proxykd.config.steps import check_anew, check_shards, step_names
from proxykd.data.accepted import accept, hash_files, read_baseline
from proxykd.data.trajectory_rows import trajectories_identity
from proxykd.workspace import Workspace

CHECKOUT = Path(proxykd.__file__).parents[1]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a finished run left.

    Attributes:
        evaluation: The report's folder.
        promotion: Content of ``promotion.json``.
        promotion_folder: Where the report for people lies.
        statuses: Step name -> completed or cached.
    """

    evaluation: Evaluation
    promotion: Mapping[str, Any]
    promotion_folder: Path
    statuses: Mapping[str, str]


def run_distillation(
    run: RunSpec,
    *,
    inputs: str,
    models: Mapping[str, str],
    anew: Sequence[str] = (),
    shards: Mapping[str, int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> RunResult:
    """Run the main job; one that ends well is the baseline of the next one's drift.

    Args:
        run: The resolved specification.
        inputs: Hash of the prompts' file.
        models: Role -> identity of the model behind its source.
        anew: Steps that are done again although they are finished; what follows from them only if its inputs change.
        shards: Step -> in how many parts its prompts are worked on; those left out are one.
        options: Settings of the run and of each step on a cluster, from ``pipelines.placement``; None = a local stack.

    Raises:
        ConfigError: if there is no such step, or it cannot be divided.
        ProxykdError: as the step raised it.
        KeyboardInterrupt: if the run was interrupted (ZenML turns SIGINT and SIGTERM into an exception of its own).
    """
    configured = configure(run, anew=anew, shards=shards, options=options)
    try:
        response = configured(**arguments(run, inputs=inputs, models=models, shards=shards))
    except RunInterruptedException as interruption:
        raise KeyboardInterrupt from interruption
    return collect(response.id, run)


def configure(
    run: RunSpec,
    *,
    anew: Sequence[str] = (),
    shards: Mapping[str, int] | None = None,
    options: Mapping[str, Any] | None = None,
) -> Any:
    """The main job's pipeline, ready to be called with ``arguments``.

    Args:
        run: The resolved specification.
        anew: Steps that are done again although they are finished, with all their portions.
        shards: Step -> in how many parts its prompts are worked on; those left out are one.
        options: Further options of ZenML's ``with_options``: settings of the run and of its steps, or a schedule.

    Raises:
        ConfigError: if there is no such step.
    """
    logging.getLogger("zenml").setLevel(logging.CRITICAL)
    source_utils.set_custom_source_root(str(CHECKOUT))
    leave_out_libraries()
    check_anew(anew)
    further = dict(options or {})
    steps = {name: dict(own) for name, own in further.pop("step_configurations", {}).items()}
    for name in step_names(shards or {}, anew):
        steps[name] = {**steps.get(name, {}), "enable_cache": False}
    return distill.with_options(
        run_name=f"{run.name}-{{date}}-{{time}}",
        tags=[run.name],
        execution_mode=_execution_mode(),
        step_configurations=steps,
        **further,
    )


def arguments(
    run: RunSpec, *, inputs: str, models: Mapping[str, str], shards: Mapping[str, int] | None = None
) -> dict[str, Any]:
    """What the pipeline is told.

    Args:
        run: The resolved specification.
        inputs: Hash of the prompts' file.
        models: Role -> identity of the model behind its source.
        shards: Step -> in how many parts its prompts are worked on; those left out are one.

    Raises:
        ConfigError: if a step cannot be divided.
    """
    check_shards(run, shards or {})
    return {
        "specification": shielded(run.model_dump(mode="json")),
        "inputs": inputs,
        "models": dict(models),
        "files": hash_files(run.validation.files()),
        "trajectories": trajectories_identity(run.student.trajectories),
        "task_files": hash_files(run.evaluation.files()),
        "baseline": read_baseline(Workspace.default().accepted(run.name)),
        "portions": dict(shards) if shards else None,
    }


def _execution_mode() -> ExecutionMode:
    """Stop at the first failure, where the orchestrator can (Kubeflow Pipelines cannot)."""
    supported = Client().active_stack.orchestrator.supported_execution_modes
    return ExecutionMode.FAIL_FAST if ExecutionMode.FAIL_FAST in supported else ExecutionMode.CONTINUE_ON_FAILURE


def collect(run_id: Any, run: RunSpec) -> RunResult:
    """What a run that ended well left; from now on it is the baseline of the next one's drift.

    Args:
        run_id: ZenML's identity of the run.
        run: Its specification.
    """
    steps = _steps(run_id)
    validation: ValidationResult = steps["validate_data"].outputs["validation"][0].load()
    accept(validation, Workspace.default().accepted(run.name))
    evaluation: Evaluation = steps["evaluate_student"].outputs["evaluation"][0].load()
    promotion: Promotion = steps["promote_model"].outputs["promotion"][0].load()
    return RunResult(
        evaluation=evaluation,
        promotion=read_json(promotion.path / "promotion.json"),
        promotion_folder=promotion.path,
        statuses={name: str(step.status) for name, step in steps.items()},
    )


def _steps(run_id: Any) -> Any:
    return Client().get_pipeline_run(run_id).steps

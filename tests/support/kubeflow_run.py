"""``python -m tests.support.kubeflow_run SPECIFICATION STACK``: a run on Kubeflow Pipelines, its outcome as JSON."""

import json
import os
import sys
from pathlib import Path
from typing import Any

from cluster import stacks
from pipelines.kubeflow_placement import kubeflow_options
from pipelines.running import run_distillation
from proxykd.config.loading import load_specification
from proxykd.config.placement import load_placement
from proxykd.config.stack import KubeflowStackSpec, load_stack
from proxykd.config.steps import STEPS
from proxykd.plan import make_plan
from proxykd.workspace import Workspace


def run(specification: Path, stack_file: Path) -> dict[str, Any]:
    """Register the stack, run the pipeline there and wait for its end."""
    stack = load_stack(str(stack_file))
    assert isinstance(stack, KubeflowStackSpec)
    stacks.apply(stack)
    os.environ["ZENML_ACTIVE_STACK_ID"] = stacks.stack_id(stack)
    run = load_specification(specification)
    found = make_plan(run, workspace=Workspace.default())
    options = kubeflow_options(stack, load_placement(stack.placement), STEPS)
    result = run_distillation(run, inputs=found.inputs_hash, models=found.models, options=options)
    report = json.loads((result.evaluation.path / "report.json").read_text(encoding="utf-8"))
    return {"report": report, "statuses": dict(result.statuses)}


if __name__ == "__main__":
    print(json.dumps(run(Path(sys.argv[1]), Path(sys.argv[2]))))

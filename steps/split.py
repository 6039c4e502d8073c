"""Decide which stage sees which prompts, once the validation gate is open."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import DriftReport, SplitSet, ValidatedSet, ValidationResult
from proxykd.config import RunSpec
from proxykd.data.splits import build_splits
from proxykd.own_code import require_code
from steps.adapters.drift_gate import require_no_drift
from steps.adapters.great_expectations_gate import require_open_gate
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder

SECTIONS = ("split",)


@step(output_materializers=FolderMaterializer)
def split(
    validated: ValidatedSet, validation: ValidationResult, drift: DriftReport, settings: dict[str, Any], code: str
) -> Annotated[SplitSet, "splits"]:
    """Assign every prompt to a side by the hash of its id.

    Args:
        validated: Rows with verdicts.
        validation: The gate.
        drift: The gate against the last accepted run.
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code that the step runs.

    Raises:
        GateError: if the validation gate is closed, or the corpus drifted and that is to stop the run.
    """
    require_code(__name__, code)
    require_open_gate(validation)
    require_no_drift(drift)
    with new_folder("splits") as output:
        return build_splits(validated, RunSpec.view(settings).split, output=output)

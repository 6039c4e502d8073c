"""Compare what validation measured with the last accepted run of the same name."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import DriftReport, ValidationResult
from proxykd.config import RunSpec
from steps.adapters.drift_gate import report_drift, require_no_drift
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder, scratch_folder

SECTIONS = ("validation",)


# The baseline is a parameter, not an artifact of this run: what comes after the step waits for it and takes nothing
# from it, so that another baseline redoes this step alone.
@step(output_materializers=FolderMaterializer)
def check_drift(
    validation: ValidationResult, baseline: dict[str, Any] | None, settings: dict[str, Any], code: str
) -> Annotated[DriftReport, "drift"]:
    """Report drift; where the specification says so, it stops the run.

    Args:
        validation: The measures of this run.
        baseline: Those of the last accepted runs; None = there are none.
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code that the step runs.

    Raises:
        GateError: if a measure drifted whose drift is to stop the run.
    """
    spec = RunSpec.view(settings).validation
    with new_folder("drift") as output, scratch_folder() as scratch:
        report = report_drift(validation, baseline, spec, output=output, scratch=scratch)
        require_no_drift(report)
    return report

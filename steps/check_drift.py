"""Compare what validation measured with the last accepted run of the same name."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import DriftReport, ValidationResult
from proxykd.config import RunSpec
from proxykd.own_code import require_code
from steps.adapters.drift_gate import report_drift
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder, scratch_folder

SECTIONS = ("validation",)


@step(output_materializers=FolderMaterializer)
def check_drift(
    validation: ValidationResult, baseline: dict[str, Any] | None, settings: dict[str, Any], code: str
) -> Annotated[DriftReport, "drift"]:
    """Report drift; drift that is to stop the run does so at the split.

    Args:
        validation: The measures of this run.
        baseline: Those of the last accepted runs; None = there are none.
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code that the step runs.
    """
    require_code(__name__, code)
    spec = RunSpec.view(settings).validation
    with new_folder("drift") as output, scratch_folder() as scratch:
        return report_drift(validation, baseline, spec, output=output, scratch=scratch)

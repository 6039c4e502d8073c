"""Decide which stage sees which prompts, once the validation gate is open."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import SplitSet, ValidatedSet, ValidationResult
from proxykd.config import RunSpec
from proxykd.data.splits import build_splits
from steps.adapters.great_expectations_gate import require_open_gate
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder

SECTIONS = ("split",)


@step(output_materializers=FolderMaterializer)
def split(
    validated: ValidatedSet, validation: ValidationResult, settings: dict[str, Any], code: str
) -> Annotated[SplitSet, "splits"]:
    """Assign every prompt to a side by the hash of its id.

    Args:
        validated: Rows with verdicts.
        validation: The gate.
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code that the step runs.

    Raises:
        GateError: if the validation gate is closed.
    """
    require_open_gate(validation)
    with new_folder("splits") as output:
        return build_splits(validated, RunSpec.view(settings).split, output=output)

"""Give every row a verdict and the run a gate."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import CompletionSet, PromptSet, ValidatedSet, ValidationResult
from proxykd.config import RunSpec
from steps.adapters.great_expectations_gate import validate
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder

SECTIONS = ("validation", "split")
ROOMS = ("data",)


@step(output_materializers=FolderMaterializer)
def validate_data(
    prompts: PromptSet, completions: CompletionSet, settings: dict[str, Any], code: str
) -> tuple[Annotated[ValidatedSet, "validated"], Annotated[ValidationResult, "validation"]]:
    """Validate the teacher's texts; a closed gate is recorded here and stops the run at the split.

    Args:
        prompts: The prompts.
        completions: What the teacher said.
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code of ``ROOMS``.
    """
    found = validate(
        prompts,
        completions,
        RunSpec.view(settings),
        output=new_folder("validated"),
        docs=new_folder("validation"),
        scratch=new_folder("scratch"),
    )
    return found.validated, found.result

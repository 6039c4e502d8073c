"""Give every row a verdict and the run a gate."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import CompletionSet, PromptSet, ValidatedSet, ValidationResult
from proxykd.config import RunSpec
from steps.adapters.great_expectations_gate import validate
from steps.materializers.folder import for_outputs
from steps.settings import new_folder, scratch_folder

SECTIONS = ("validation", "split")


@step(output_materializers=for_outputs("validated", "validation"))
def validate_data(
    prompts: PromptSet, completions: CompletionSet, settings: dict[str, Any], code: str
) -> tuple[Annotated[ValidatedSet, "validated"], Annotated[ValidationResult, "validation"]]:
    """Validate the teacher's texts; a closed gate is recorded here and stops the run at the split.

    Args:
        prompts: The prompts.
        completions: What the teacher said.
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code that the step runs.
    """
    with new_folder("validated") as output, new_folder("validation") as docs, scratch_folder() as scratch:
        found = validate(prompts, completions, RunSpec.view(settings), output=output, docs=docs, scratch=scratch)
    return found.validated, found.result

"""Give every row a verdict and the run a gate."""

from functools import partial
from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import CompletionSet, PromptSet, QuarantineSet, ValidatedSet, ValidationResult
from proxykd.config import RunSpec
from proxykd.data.accepted import check_files
from proxykd.data.judging import Environment
from proxykd.data.verifiers import build_verifier, verify_known
from proxykd.models.tokenizers import load_counter
from proxykd.own_code import require_code
from steps.adapters.great_expectations_gate import Folders, validate
from steps.materializers.folder import for_outputs
from steps.settings import new_folder, scratch_folder

SECTIONS = ("validation", "split", "verifier")


@step(output_materializers=for_outputs("validated", "validation", "quarantine"))
def validate_data(
    prompts: PromptSet,
    completions: CompletionSet,
    settings: dict[str, Any],
    files: str,
    tokenizer: str | None,
    models: dict[str, str],
    code: str,
) -> tuple[
    Annotated[ValidatedSet, "validated"],
    Annotated[ValidationResult, "validation"],
    Annotated[QuarantineSet, "quarantine"],
]:
    """Validate the teacher's texts; a closed gate is recorded here and stops the run at the split.

    Args:
        prompts: The prompts.
        completions: What the teacher said.
        settings: The sections named in ``SECTIONS``.
        files: Hash of the files that the section ``validation`` names: other content is other work.
        tokenizer: Source of the model whose tokens count; None = no length in tokens is asked for.
        models: Identity of that model, so that another one behind the same source is used; {} = there is none.
        code: Hash of the code that the step runs.

    Raises:
        InputError: if the files are not those that the run was submitted with.
    """
    require_code(__name__, code)
    run = RunSpec.view(settings)
    check_files(run.validation.files(), files, section="validation")
    counter = None if tokenizer is None else partial(load_counter, tokenizer)
    with (
        new_folder("validated") as output,
        new_folder("validation") as docs,
        new_folder("quarantine") as quarantine,
        scratch_folder() as scratch,
    ):
        verify = None if run.verifier is None else verify_known(build_verifier(run.verifier))
        folders, around = Folders(output, docs, quarantine), Environment(scratch, verify, counter)
        found = validate(prompts, completions, run, folders, around)
    return found.validated, found.result, found.quarantine

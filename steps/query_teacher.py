"""Ask the teacher every prompt, once."""

from pathlib import Path
from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import CompletionSet, PromptSet
from proxykd.config import RunSpec
from proxykd.teacher.query import collect_prompts
from proxykd.teacher.query import query_teacher as query
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder

SECTIONS = ("seed", "prompts", "teacher")
ROOMS = ("teacher", "data")


@step(output_materializers=FolderMaterializer)
def query_teacher(
    settings: dict[str, Any], code: str, inputs: str, journal: str
) -> tuple[Annotated[PromptSet, "prompts"], Annotated[CompletionSet, "completions"]]:
    """Collect the prompts and what the teacher says to them.

    Args:
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code of ``ROOMS``.
        inputs: Hash of the input files, so that a changed file is read again.
        journal: Where paid responses are kept across runs.
    """
    run = RunSpec.view(settings)
    prompts = collect_prompts(run.prompts, seed=run.seed, output=new_folder("prompts"))
    return prompts, query(prompts, run, journal_path=Path(journal), output=new_folder("completions"))

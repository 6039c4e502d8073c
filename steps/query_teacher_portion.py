"""Ask the teacher one portion of the prompts: a shard, in a pod of its own on a cluster."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import AnswerSet
from proxykd.config import RunSpec
from proxykd.data.portions import Portion
from proxykd.own_code import require_code
from proxykd.teacher.portions import ask_portion
from proxykd.teacher.query import check_inputs, collect_prompts
from proxykd.workspace import Workspace
from steps.holding import hold_workspace
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder, scratch_folder

SECTIONS = ("seed", "prompts", "teacher", "staging", "split")


@step(output_materializers=FolderMaterializer)
def query_teacher_portion(
    settings: dict[str, Any], code: str, inputs: str, number: int, of: int
) -> Annotated[AnswerSet, "answers"]:
    """Collect the prompts and ask those of one portion; paid answers are kept in the workspace.

    Args:
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code that the step runs.
        inputs: Hash of the prompts that the run was planned with, so that a changed file is read again.
        number: Which portion, 0 .. of - 1.
        of: How many there are.

    Raises:
        InputError: if the prompts changed after the plan.
    """
    require_code(__name__, code)
    hold_workspace()
    run, portion, workspace = RunSpec.view(settings), Portion(number, of), Workspace.default()
    with new_folder("answers") as output, scratch_folder() as scratch:
        prompts = collect_prompts(run.prompts, seed=run.seed, output=scratch / "prompts")
        check_inputs(prompts, inputs)
        return ask_portion(
            portion.select(prompts, output=scratch / "portion"),
            run,
            portion,
            journal_path=workspace.journal,
            folder=workspace.portions,
            output=output,
        )

"""Ask the teacher every prompt, once."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import AnswerSet, CompletionSet, JournalExcerpt, PromptSet
from proxykd.config import RunSpec
from proxykd.config.teacher import RecordedTeacherSpec
from proxykd.own_code import require_code
from proxykd.teacher.excerpt import write_excerpt
from proxykd.teacher.portions import gather
from proxykd.teacher.query import check_inputs, collect_prompts
from proxykd.teacher.query import query_teacher as query
from proxykd.workspace import Workspace
from steps.holding import hold_workspace
from steps.materializers.folder import for_outputs
from steps.settings import new_folder

SECTIONS = ("seed", "prompts", "teacher", "staging", "split")


@step(output_materializers=for_outputs("prompts", "completions", "journal"))
def query_teacher(
    answers: list[AnswerSet], settings: dict[str, Any], code: str, inputs: str
) -> tuple[
    Annotated[PromptSet, "prompts"],
    Annotated[CompletionSet, "completions"],
    Annotated[JournalExcerpt, "journal"],
]:
    """Collect the prompts and what the teacher says to them; paid answers are kept in the workspace's journal.

    What portions of earlier runs were answered is taken over first.

    Args:
        answers: What the portions of the prompts were answered; with these, nothing is asked. Empty = this step asks.
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code that the step runs.
        inputs: Hash of the prompts that the run was planned with, so that a changed file is read again.

    Raises:
        InputError: if the prompts changed after the plan.
    """
    require_code(__name__, code)
    hold_workspace()
    run, workspace = RunSpec.view(settings), Workspace.default()
    journal, portions = workspace.journal, None if answers else workspace.portions
    with new_folder("prompts") as questions, new_folder("completions") as rows, new_folder("journal") as entries:
        prompts = collect_prompts(run.prompts, seed=run.seed, output=questions)
        check_inputs(prompts, inputs)
        if answers:
            gather(answers, journal)
        completions = query(prompts, run, journal_path=journal, output=rows, asks=not answers, portions=portions)
        asked = None if isinstance(run.teacher, RecordedTeacherSpec) else journal
        return prompts, completions, write_excerpt(completions, asked, output=entries)

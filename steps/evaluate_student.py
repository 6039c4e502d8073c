"""Compare the arms on the same held-out prompts."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import (
    CompletionSet,
    Evaluation,
    ProxyModel,
    SplitSet,
    StudentModel,
    Targets,
    ValidatedSet,
    ValidationResult,
)
from proxykd.config import RunSpec
from proxykd.data.accepted import check_files
from proxykd.evaluation.facts import collect_facts
from proxykd.evaluation.generation_journal import ANSWERS
from proxykd.own_code import require_code
from proxykd.workspace import Workspace
from steps.holding import hold_workspace
from steps.materializers.folder import FolderMaterializer
from steps.settings import checkpoint_folder, new_folder, scratch_folder

SECTIONS = ("name", "seed", "student", "proxy", "split", "validation", "evaluation", "teacher", "targets", "staging")
MODELS = ("student",)


@step(output_materializers=FolderMaterializer)
def evaluate_student(
    completions: CompletionSet,
    validation: ValidationResult,
    validated: ValidatedSet,
    splits: SplitSet,
    proxy: ProxyModel,
    targets: Targets | None,
    sft: StudentModel,
    student: StudentModel,
    settings: dict[str, Any],
    models: dict[str, str],
    files: str,
    code: str,
) -> Annotated[Evaluation, "evaluation"]:
    """Held-out NLL, exact KL where the teacher tells its odds, tasks, calibration, drift, speed; the report.

    Args:
        completions: What the teacher said and cost.
        validation: The gate.
        validated: The teacher's texts.
        splits: Which prompts are held out.
        proxy: The aligned proxy, an arm of its own.
        targets: The estimated distributions, for their statistics; None = the students learnt from none.
        sft: The baseline.
        student: The distilled student.
        settings: The sections named in ``SECTIONS``.
        models: Identity of the student's model, so that another one behind the same source is used.
        files: Hash of the files that the tasks read: other content is other work.
        code: Hash of the code that the step runs.

    Raises:
        InputError: if the files are not those that the run was submitted with.
    """
    require_code(__name__, code)
    from proxykd.evaluation.evaluating import evaluate
    from proxykd.models.loading import save_untrained

    hold_workspace()
    run = RunSpec.view(settings)
    check_files(run.evaluation.files(), files, section="evaluation")
    seeds, facts = run.student.seeds, collect_facts(completions, validation, proxy, targets, sft, student)
    with new_folder("evaluation") as output, scratch_folder() as scratch:
        arms = {
            "none": save_untrained(run.student.model, seeds, folder=scratch / "untrained"),
            "sft": sft.model_folders(seeds),
            "proxy_kd": student.model_folders(seeds),
            "proxy": [proxy.path / "model"],
        }
        return evaluate(
            arms,
            validated,
            splits,
            run,
            facts=facts,
            output=output,
            scratch=scratch,
            journals=checkpoint_folder(models, code) / ANSWERS,
            journal_path=Workspace.default().journal,
        )

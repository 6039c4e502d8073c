"""Train one arm of the comparison: the distilled student, or its SFT baseline."""

from typing import Annotated, Any, Literal

from zenml import step

from proxykd.artifacts import ProxyModel, SplitSet, StudentModel, Targets, ValidatedSet
from proxykd.config import RunSpec
from proxykd.data.trajectory_rows import check_trajectories
from proxykd.launching.choice import choose_launcher
from proxykd.own_code import require_code
from steps.holding import hold_workspace
from steps.launchers import LAUNCHERS
from steps.materializers.folder import FolderMaterializer
from steps.settings import checkpoint_folder, new_folder, scratch_folder

SECTIONS = ("split", "student")
MODELS = ("student",)


@step(output_materializers=FolderMaterializer)
def distill_student(
    validated: ValidatedSet,
    splits: SplitSet,
    targets: Targets | None,
    proxy: ProxyModel,
    arm: Literal["sft", "proxy_kd"],
    trajectories: str,
    settings: dict[str, Any],
    models: dict[str, str],
    code: str,
) -> Annotated[StudentModel, "student"]:
    """Train a student for every seed.

    Args:
        validated: The teacher's texts.
        splits: Which stage sees which.
        targets: The estimated distributions; the arm ``sft`` does not open them. None = no arm learns from any.
        proxy: The proxy itself, which the arm ``proxy_kd`` asks where ``student.living_teacher`` is set.
        arm: ``proxy_kd`` or ``sft``.
        trajectories: Identity of the trajectories that the run was planned with; "" = there are none.
        settings: The sections named in ``SECTIONS``.
        models: Identity of the student's model, so that another one behind the same source is used.
        code: Hash of the code that the step runs.

    Raises:
        InputError: if the trajectories changed after the plan.
    """
    require_code(__name__, code)
    from proxykd.student.training import distill_student as distill

    hold_workspace()
    run, soft = RunSpec.view(settings), targets if arm == "proxy_kd" else None
    check_trajectories(run.student.trajectories, trajectories)
    with new_folder(arm) as output, scratch_folder() as scratch:
        return distill(
            validated,
            splits,
            soft,
            run,
            arm=arm,
            output=output,
            scratch=scratch,
            checkpoints=checkpoint_folder(models, code),
            proxy=proxy if arm == "proxy_kd" else None,
            launcher=choose_launcher(run.student.processes, others=LAUNCHERS),
        )

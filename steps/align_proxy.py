"""Align the open proxy to the teacher."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import ProxyModel, SplitSet, ValidatedSet
from proxykd.config import RunSpec
from proxykd.launching.choice import choose_launcher
from proxykd.own_code import require_code
from proxykd.proxy.launch import align_proxy as align
from steps.holding import hold_workspace
from steps.launchers import LAUNCHERS
from steps.materializers.folder import FolderMaterializer
from steps.settings import checkpoint_folder, new_folder, scratch_folder

SECTIONS = ("seed", "split", "proxy", "staging")
MODELS = ("proxy",)


@step(output_materializers=FolderMaterializer)
def align_proxy(
    validated: ValidatedSet, splits: SplitSet, settings: dict[str, Any], models: dict[str, str], code: str
) -> Annotated[ProxyModel, "proxy"]:
    """Warm-up and preference rounds, with the proxy's fidelity before and after each.

    Args:
        validated: The teacher's texts.
        splits: Which stage sees which.
        settings: The sections named in ``SECTIONS``.
        models: Identity of the proxy's model, so that another one behind the same source is used.
        code: Hash of the code that the step runs.
    """
    require_code(__name__, code)
    hold_workspace()
    run = RunSpec.view(settings)
    with new_folder("proxy") as output, scratch_folder() as scratch:
        return align(
            validated,
            splits,
            run,
            output=output,
            scratch=scratch,
            checkpoints=checkpoint_folder(models, code),
            launcher=choose_launcher(run.proxy.processes, others=LAUNCHERS),
        )

"""Align the open proxy to the teacher."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import ProxyModel, SplitSet, ValidatedSet
from proxykd.config import RunSpec
from proxykd.proxy.alignment import align_proxy as align
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder

SECTIONS = ("seed", "split", "proxy")
ROOMS = ("proxy", "models", "data", "logprobs.py", "preferences.py")


@step(output_materializers=FolderMaterializer)
def align_proxy(
    validated: ValidatedSet, splits: SplitSet, settings: dict[str, Any], code: str
) -> Annotated[ProxyModel, "proxy"]:
    """Warm-up and preference rounds, with the proxy's fidelity before and after each.

    Args:
        validated: The teacher's texts.
        splits: Which stage sees which.
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code of ``ROOMS``.
    """
    run = RunSpec.view(settings)
    return align(validated, splits, run, output=new_folder("proxy"), scratch=new_folder("scratch"))

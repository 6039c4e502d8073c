"""Estimate the teacher's distributions for one portion of the prompts: a shard, in a pod of its own on a cluster."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import CompletionSet, ProxyModel, SplitSet, TargetsPortion, ValidatedSet
from proxykd.config import RunSpec
from proxykd.data.portions import Portion
from proxykd.own_code import require_code
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder, scratch_folder

SECTIONS = ("seed", "split", "proxy", "targets")


@step(output_materializers=FolderMaterializer)
def estimate_distributions_portion(
    completions: CompletionSet,
    validated: ValidatedSet,
    splits: SplitSet,
    proxy: ProxyModel,
    settings: dict[str, Any],
    code: str,
    number: int,
    of: int,
) -> Annotated[TargetsPortion, "portion"]:
    """Sparse targets for every position of one portion's texts on the distillation side.

    Args:
        completions: The teacher's answers, with what its API told of its probabilities.
        validated: The teacher's texts, all of them.
        splits: Which stage sees which.
        proxy: The aligned proxy.
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code that the step runs.
        number: Which portion, 0 .. of - 1.
        of: How many there are.
    """
    require_code(__name__, code)
    from proxykd.estimation.estimating import estimate_portion

    run, portion = RunSpec.view(settings), Portion(number, of)
    with new_folder("portion") as output, scratch_folder() as scratch:
        return estimate_portion(completions, validated, splits, proxy, run, portion, output=output, scratch=scratch)

"""Estimate the teacher's next-token distributions through the proxy."""

from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import CompletionSet, ProxyModel, SplitSet, Targets, TargetsPortion, ValidatedSet
from proxykd.config import RunSpec
from proxykd.own_code import require_code
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder, scratch_folder

SECTIONS = ("seed", "split", "proxy", "targets")


@step(output_materializers=FolderMaterializer)
def estimate_distributions(
    portions: list[TargetsPortion],
    completions: CompletionSet,
    validated: ValidatedSet,
    splits: SplitSet,
    proxy: ProxyModel,
    settings: dict[str, Any],
    code: str,
) -> Annotated[Targets, "targets"]:
    """Sparse targets for every position of the distillation side, and a weight for every sample.

    Args:
        portions: What was estimated for the portions of the prompts, in their order; with these, nothing is estimated.
            Empty = this step estimates.
        completions: The teacher's answers, with what its API told of its probabilities.
        validated: The teacher's texts.
        splits: Which stage sees which.
        proxy: The aligned proxy.
        settings: The sections named in ``SECTIONS``.
        code: Hash of the code that the step runs.
    """
    require_code(__name__, code)
    from proxykd.estimation.estimating import estimate_distributions as estimate
    from proxykd.estimation.estimating import join_portions

    with new_folder("targets") as output, scratch_folder() as scratch:
        run, made_from = RunSpec.view(settings), (completions, validated, splits, proxy)
        if portions:
            return join_portions(portions, *made_from, run, output=output, scratch=scratch)
        return estimate(*made_from, run, output=output, scratch=scratch)

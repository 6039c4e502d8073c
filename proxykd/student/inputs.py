"""What a student learns from: texts, and perhaps their targets."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from proxykd.config.models import StudentSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.exceptions import ArtifactError, ConfigError
from proxykd.student.objective import TargetBatch, collate_targets
from proxykd.student.target_source import OpenTargets, TargetSource, open_targets
from proxykd.student.translated_targets import Rows, no_target
from proxykd.student.unshared import UnsharedTerm
from proxykd.targets.reader import SparseTarget
from proxykd.targets.summary import PRIOR_FOLDER

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from proxykd.student.living import LivingProxy


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a student learns from.

    Attributes:
        corpus: Texts; those of an earlier stage are all learnt from before any of a later one.
        targets: Their distributions, but for texts whose tokens have weights: those have none. None = hard labels only.
        pad_id: Any token id.
        prior: The prior's own distributions of the same texts; None = no such term.
        unshared: How tokens that only the proxy has are compared with those that only the student has; None = not.
        alignment: How targets of another tokenizer are aligned; None = they are of the student's.
        living: The proxy that teaches in person, in place of targets; None = it does not.
    """

    corpus: TokenizedCorpus
    targets: TargetSource | None
    pad_id: int
    prior: TargetSource | None = None
    unshared: UnsharedTerm | None = None
    alignment: Mapping[str, Any] | None = None
    living: "LivingProxy | None" = None

    @classmethod
    def open(
        cls,
        corpus: TokenizedCorpus,
        targets: Path | None,
        tokenizer: "PreTrainedTokenizerBase",
        spec: StudentSpec,
        *,
        rows: Rows | None,
        scratch: Path,
        expected: Mapping[str, Any] | None = None,
    ) -> "TrainingData":
        """Texts with those targets of an artifact that the objective gives a weight.

        Args:
            corpus: Texts.
            targets: Folder of the artifact; None = hard labels only.
            tokenizer: The student's.
            spec: The student's.
            rows: What ``corpus`` was made from, but for texts with weights; None = it is not at hand, and targets of
                another tokenizer are refused.
            scratch: Folder for temporary files.
            expected: Fields of ``targets.json`` that must have these values; None = not looked at.

        Raises:
            ArtifactError: if the targets belong to another tokenizer, which may not or cannot be aligned, or to shorter
                texts.
            ConfigError: if the prior's are wanted and were not kept.
        """
        opened, prior = OpenTargets(None, None, None), None
        shared: dict[str, Any] = {"corpus": corpus, "scratch": scratch, "expected": expected or {}}
        if targets is not None and spec.alpha > 0.0:
            opened = open_targets(targets, tokenizer, spec, rows=rows, **shared)
        if targets is not None and spec.objective.prior_alpha > 0.0:
            folder = _prior_folder(targets, spec)
            prior = open_targets(folder, tokenizer, spec, rows=None, **shared).source
        return cls(corpus, opened.source, tokenizer.pad_token_id, prior, opened.unshared, opened.facts)

    def targets_of(self, indices: list[int], device: torch.device) -> TargetBatch | None:
        """The targets of some examples, cut to their completions; None = hard labels only.

        Raises:
            ArtifactError: if an example has no target, or one that is shorter than its completion.
        """
        return self._collate(indices, self.targets, device)

    def prior_of(self, indices: list[int], device: torch.device) -> TargetBatch | None:
        """The same from the prior's store; None = no such term.

        Raises:
            ArtifactError: if an example has no target, or one that is shorter than its completion.
        """
        return self._collate(indices, self.prior, device)

    def _collate(self, indices: list[int], reader: TargetSource | None, device: torch.device) -> TargetBatch | None:
        if reader is None:
            return None
        targets, temperature = [self._target_of(index, reader) for index in indices], temperature_of(reader)
        return collate_targets(targets, device=device, temperature=temperature)

    def _target_of(self, index: int, targets: TargetSource) -> SparseTarget:
        example = self.corpus[index]
        if example.weights is not None:
            return no_target(len(example.completion_ids), 1)
        target, length = targets.get(example.prompt_id, example.sample_idx), len(example.completion_ids)
        if len(target.tail_logprob) < length:
            raise ArtifactError(
                f"expected targets at {length} positions of prompt {example.prompt_id}, found "
                f"{len(target.tail_logprob)}; proxy and student must render and cut texts alike"
            )
        return target.cut(length)


def temperature_of(reader: TargetSource) -> float:
    """What the targets of a store were tempered with; 1 where it does not say."""
    return float(reader.description.get("temperature", 1.0))


def _prior_folder(targets: Path, spec: StudentSpec) -> Path:
    if not (folder := targets / PRIOR_FOLDER).is_dir():
        raise ConfigError(
            f"expected the prior's own targets in {folder}, as student.objective.prior_alpha="
            f"{spec.objective.prior_alpha:g} asks for them, found none; set prior_alpha to 0, or choose an estimator "
            "that keeps its prior and estimate the targets again"
        )
    return folder

"""What a student learns from: texts, and perhaps their targets."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from proxykd.config.models import StudentSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.exceptions import ArtifactError, ConfigError
from proxykd.models.tokenizers import tokenizer_fingerprint
from proxykd.student.objective import TargetBatch, collate_targets
from proxykd.targets.reader import SparseTarget, TargetReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PRIOR_FOLDER = "prior"
"""Folder of a targets artifact that holds the prior's own targets, where the estimator keeps them."""


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a student learns from.

    Attributes:
        corpus: Texts; those of an earlier stage are all learnt from before any of a later one.
        targets: Their distributions; None = hard labels only.
        pad_id: Any token id.
        prior: The prior's own distributions of the same texts; None = no such term.
    """

    corpus: TokenizedCorpus
    targets: TargetReader | None
    pad_id: int
    prior: TargetReader | None = None

    @classmethod
    def open(
        cls, corpus: TokenizedCorpus, targets: Path | None, tokenizer: "PreTrainedTokenizerBase", spec: StudentSpec
    ) -> "TrainingData":
        """Texts with those targets of an artifact that the objective gives a weight.

        Args:
            corpus: Texts.
            targets: Folder of the artifact; None = hard labels only.
            tokenizer: The student's.
            spec: The student's.

        Raises:
            ArtifactError: if the targets belong to another tokenizer or to shorter texts.
            ConfigError: if the prior's are wanted and were not kept.
        """
        reader = prior = None
        if targets is not None and spec.alpha > 0.0:
            reader = _open_targets(targets, tokenizer, spec)
        if targets is not None and spec.objective.prior_alpha > 0.0:
            prior = _open_prior(targets, tokenizer, spec)
        return cls(corpus, reader, tokenizer.pad_token_id, prior)

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

    def _collate(self, indices: list[int], reader: TargetReader | None, device: torch.device) -> TargetBatch | None:
        if reader is None:
            return None
        targets, temperature = [self._target_of(index, reader) for index in indices], temperature_of(reader)
        return collate_targets(targets, device=device, temperature=temperature)

    def _target_of(self, index: int, targets: TargetReader) -> SparseTarget:
        example = self.corpus[index]
        target, length = targets.get(example.prompt_id, example.sample_idx), len(example.completion_ids)
        if len(target.tail_logprob) < length:
            raise ArtifactError(
                f"expected targets at {length} positions of prompt {example.prompt_id}, found "
                f"{len(target.tail_logprob)}; proxy and student must render and cut texts alike"
            )
        return target.cut(length)


def temperature_of(reader: TargetReader) -> float:
    """What the targets of a store were tempered with; 1 where it does not say."""
    return float(reader.description.get("temperature", 1.0))


def _open_prior(path: Path, tokenizer: "PreTrainedTokenizerBase", spec: StudentSpec) -> TargetReader:
    if not (path / PRIOR_FOLDER).is_dir():
        raise ConfigError(
            f"expected the prior's own targets in {path / PRIOR_FOLDER}, as student.objective.prior_alpha="
            f"{spec.objective.prior_alpha:g} asks for them, found none; set prior_alpha to 0, or choose an estimator "
            "that keeps its prior and estimate the targets again"
        )
    return _open_targets(path / PRIOR_FOLDER, tokenizer, spec)


def _open_targets(targets: Path, tokenizer: "PreTrainedTokenizerBase", spec: StudentSpec) -> TargetReader:
    reader = TargetReader(targets)
    if (max_seq_tokens := reader.description["max_seq_tokens"]) < spec.model.max_seq_tokens:
        raise ArtifactError(
            f"expected targets for texts of up to student.model.max_seq_tokens={spec.model.max_seq_tokens}, found "
            f"{max_seq_tokens}; raise proxy.model.max_seq_tokens to it or lower the student's"
        )
    if reader.description["tokenizer"] != tokenizer_fingerprint(tokenizer):
        raise ArtifactError(
            f"the targets in {targets} were made with another tokenizer than the student's; choose a proxy and a "
            "student of one family, or estimate the targets again"
        )
    return reader

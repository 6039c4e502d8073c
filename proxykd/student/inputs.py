"""What a student learns from: texts, and perhaps their targets."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from proxykd.config.models import StudentSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.exceptions import ArtifactError
from proxykd.models.tokenizers import tokenizer_fingerprint
from proxykd.student.objective import TargetBatch, collate_targets
from proxykd.targets.reader import SparseTarget, TargetReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a student learns from.

    Attributes:
        corpus: Texts; those of an earlier stage are all learnt from before any of a later one.
        targets: Their distributions; None = hard labels only.
        pad_id: Any token id.
    """

    corpus: TokenizedCorpus
    targets: TargetReader | None
    pad_id: int

    @classmethod
    def open(
        cls, corpus: TokenizedCorpus, targets: Path | None, tokenizer: "PreTrainedTokenizerBase", spec: StudentSpec
    ) -> "TrainingData":
        """Texts with the targets of an artifact.

        Args:
            corpus: Texts.
            targets: Folder of the artifact; None = hard labels only.
            tokenizer: The student's.
            spec: The student's.

        Raises:
            ArtifactError: if the targets belong to another tokenizer or to shorter texts.
        """
        reader = None if targets is None else _open_targets(targets, tokenizer, spec)
        return cls(corpus, reader, tokenizer.pad_token_id)

    def targets_of(self, indices: list[int], device: torch.device) -> TargetBatch | None:
        """The targets of some examples, cut to their completions; None = hard labels only.

        Raises:
            ArtifactError: if an example has no target, or one that is shorter than its completion.
        """
        if self.targets is None:
            return None
        return collate_targets([self._target_of(index, self.targets) for index in indices], device=device)

    def _target_of(self, index: int, targets: TargetReader) -> SparseTarget:
        example = self.corpus[index]
        target, length = targets.get(example.prompt_id, example.sample_idx), len(example.completion_ids)
        if len(target.tail_logprob) < length:
            raise ArtifactError(
                f"expected targets at {length} positions of prompt {example.prompt_id}, found "
                f"{len(target.tail_logprob)}; proxy and student must render and cut texts alike"
            )
        return target.cut(length)


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

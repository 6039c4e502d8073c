"""An artifact of targets -> where a training run gets them: as they are, or translated from another tokenizer."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch

from proxykd.config.models import StudentSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.exceptions import ArtifactError, ConfigError
from proxykd.models.sources import Source
from proxykd.models.tokenizers import load_tokenizer_from, tokenizer_fingerprint
from proxykd.progress import report
from proxykd.student.translated_targets import Rows, TranslatedTargets
from proxykd.student.unshared import UnsharedTerm
from proxykd.targets.reader import SparseTarget, TargetReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class TargetSource(Protocol):
    """Where targets come from: a store, or one that is read through two tokenizers."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Content of the store's ``targets.json``."""

    def get(self, prompt_id: str, sample_idx: int) -> SparseTarget:
        """The target of one sample."""


class OpenTargets(NamedTuple):
    """Targets that are ready to be read.

    Attributes:
        source: Where they come from; None = there are none.
        unshared: The term for tokens without a twin; None = there is none.
        facts: How they are aligned, for ``training.json``; None = they are the student's own tokens.
    """

    source: TargetSource | None
    unshared: UnsharedTerm | None
    facts: dict[str, Any] | None


def open_targets(
    targets: Path,
    tokenizer: "PreTrainedTokenizerBase",
    spec: StudentSpec,
    *,
    rows: Rows | None,
    corpus: TokenizedCorpus,
    scratch: Path,
    expected: Mapping[str, Any],
) -> OpenTargets:
    """Open targets for a student; those of another tokenizer are translated if the specification allows it.

    Args:
        targets: Folder of the artifact.
        tokenizer: The student's.
        spec: ``cross_tokenizer`` and the longest text are read.
        rows: The rows that ``corpus`` was made from, but for those with weights; None = they are not at hand, and
            nothing is translated.
        corpus: Their tokens under the student's tokenizer.
        scratch: Folder for the alignment.
        expected: Fields of ``targets.json`` that must have these values: the corpus, say.

    Raises:
        ArtifactError: if the targets are of shorter texts, or of another tokenizer that may or can not be aligned, or
            a text has none.
        ConfigError: if they cannot be translated: they are drawn, or at a temperature.
        ModelError: if a tokenizer cannot tell the bytes of its tokens.
    """
    reader = TargetReader(targets, expected)
    _check_told(targets, reader)
    if (max_seq_tokens := reader.description["max_seq_tokens"]) < spec.model.max_seq_tokens:
        raise ArtifactError(
            f"expected targets for texts of up to student.model.max_seq_tokens={spec.model.max_seq_tokens}, found "
            f"{max_seq_tokens}; raise proxy.model.max_seq_tokens to it or lower the student's"
        )
    if reader.description["tokenizer"] == tokenizer_fingerprint(tokenizer):
        _check_complete(targets, reader, corpus)
        return OpenTargets(reader, None, None)
    if (cross := spec.cross_tokenizer) is None or rows is None:
        raise ArtifactError(
            f"the targets in {targets} were made with another tokenizer than the student's; set "
            "student.cross_tokenizer: {} to have them aligned, or choose a proxy and a student of one family"
        )
    _check_translatable(reader)
    pair = _proxy_tokenizer(targets, reader), tokenizer
    translated = TranslatedTargets.build(reader, rows, corpus, pair, cross, scratch=scratch)
    report(describe_alignment(translated.facts))
    unshared = None
    if cross.unshared == "transport" and cross.uld_weight > 0.0:
        unshared = UnsharedTerm(torch.from_numpy(translated.vocabulary.student_unshared).long(), cross.uld_weight)
    return OpenTargets(translated, unshared, translated.facts)


def _check_told(targets: Path, reader: TargetReader) -> None:
    """A store that somebody else wrote may not say what it is."""
    if silent := [name for name in ("tokenizer", "max_seq_tokens") if name not in reader.description]:
        raise ArtifactError(
            f"expected the targets in {targets} to tell their {' and '.join(silent)}, which a student must agree with, "
            "found no word of it; give TargetWriter.finish the facts, or estimate the targets again"
        )


def _check_complete(targets: Path, reader: TargetReader, corpus: TokenizedCorpus) -> None:
    """Before the first step, and not at the step that happens to draw a text without targets."""
    # A trajectory's tokens have weights of their own, and no targets.
    keys = ((one.prompt_id, one.sample_idx) for one in corpus if one.weights is None)
    missing = (key for key in keys if key not in reader)
    if (first := next(missing, None)) is None:
        return
    num_missing, (prompt_id, sample_idx) = 1 + sum(1 for _ in missing), first
    num_wanted = int((~corpus.is_weighted).sum())
    skipped = reader.description.get("num_skipped", 0)
    raise ArtifactError(
        f"expected targets for all {num_wanted:,} texts that the student learns from in {targets}, which has "
        f"{len(reader):,} and none for {num_missing:,} of them (prompt {prompt_id}, sample {sample_idx}, say; it says "
        f"that {skipped:,} had no room for the proxy, or were empty); estimate the targets again from these rows, with "
        "proxy.model.max_seq_tokens large enough"
    )


def _check_translatable(reader: TargetReader) -> None:
    """Translation moves what a group of tokens does not tell into the tail, which only top-k targets at T = 1 bear."""
    kind = (reader.description.get("reduction") or {}).get("kind", "top_k")
    temperature = float(reader.description.get("temperature", 1.0))
    if kind != "top_k" or temperature != 1.0:
        raise ConfigError(
            f"targets of another tokenizer are translated from targets.reduction.kind=top_k at targets.temperature=1 "
            f"alone; got {kind} at {temperature:g}: change them, or choose a proxy and a student of one family"
        )


def describe_alignment(facts: dict[str, Any]) -> str:
    """One line for the terminal."""
    return (
        f"another tokenizer than the proxy's: {facts['one_to_one']:.1%} of the characters aligned one to one, "
        f"{facts['grouped']:.1%} in groups, {facts['unaligned']:.1%} not; {facts['position_share']:.1%} of the "
        f"positions have a target"
    )


def _proxy_tokenizer(targets: Path, reader: TargetReader) -> "PreTrainedTokenizerBase":
    folder = targets / "tokenizer"
    if not folder.is_dir():
        raise ArtifactError(
            f"expected the proxy's tokenizer in {folder}, which aligning needs, found none; estimate the targets again"
        )
    tokenizer = load_tokenizer_from(Source(str(folder)))
    if tokenizer_fingerprint(tokenizer) != reader.description["tokenizer"]:
        raise ArtifactError(
            f"the tokenizer in {folder} is not the one with which the targets were made; estimate them again"
        )
    return tokenizer

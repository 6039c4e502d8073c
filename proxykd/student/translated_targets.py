"""(prompt, sample) -> its target in the student's tokens, from a store over another tokenizer's.

The proxy's tokens of every text are made again, exactly as they were when the targets were estimated, and laid on the
student's once, before training: one file of int32, read back sample by sample. In memory stay 24 bytes a sample.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.artifacts import batched
from proxykd.config.cross_tokenizer import CrossTokenizerSpec
from proxykd.data.tokenizing import Example, TokenizedCorpus
from proxykd.exceptions import ArtifactError
from proxykd.models.token_alignment import NO_COVERAGE, Coverage, align, find_boundaries, find_groups, measure_coverage
from proxykd.models.token_bytes import TokenBytes, token_bytes_of
from proxykd.models.vocabulary_map import VocabularyMap, shared_mass
from proxykd.records import ValidatedRow
from proxykd.student.translation import SampleAlignment, translate
from proxykd.targets.reader import SparseTarget, TargetReader

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 256
_SAMPLED_TARGETS = 64

Rows = Callable[[], Iterable[ValidatedRow]]
"""The rows whose texts the student learns from, from the first one, each time it is called."""


class _Pair(NamedTuple):
    """A text of the student's, and what the proxy read of it; None = it was left out there."""

    text: bytes
    student: Example
    proxy: Example | None


class TranslatedTargets:
    """A target store read through two tokenizers; ``get`` as ``TargetReader.get``.

    Attributes:
        vocabulary: From the proxy's tokens to the student's.
        facts: What the alignment covers, for the record: ``one_to_one``, ``grouped`` and ``unaligned`` (shares of the
            characters), ``position_share`` (of the student's positions that have a target), ``texts_without_target``,
            ``texts_rewritten``, ``vocabulary`` (``VocabularyMap.facts``) and ``shared_mass`` (share of the listed
            probability that is on shared tokens, over the first texts).
    """

    def __init__(
        self, reader: TargetReader, index: "_Index", vocabulary: VocabularyMap, spec: CrossTokenizerSpec
    ) -> None:
        self._reader, self._index, self._spec = reader, index, spec
        self.vocabulary = vocabulary
        self.facts: dict[str, Any] = {}

    @classmethod
    def build(
        cls,
        reader: TargetReader,
        rows: Rows,
        corpus: TokenizedCorpus,
        tokenizers: "tuple[PreTrainedTokenizerBase, PreTrainedTokenizerBase]",
        spec: CrossTokenizerSpec,
        *,
        scratch: Path,
    ) -> "TranslatedTargets":
        """Align every text; memory holds one batch of them.

        Args:
            reader: The store.
            rows: The rows that ``corpus`` was made from, but for those with weights, which have no targets.
            corpus: Their tokens under the student's tokenizer.
            tokenizers: The proxy's, with which the store was made, and the student's.
            spec: What becomes of tokens without a twin.
            scratch: Folder for the files.

        Raises:
            ModelError: if a tokenizer cannot tell the bytes of its tokens.
            ArtifactError: if ``rows`` are not those of ``corpus``.
        """
        proxy, student = map(token_bytes_of, tokenizers)
        max_tokens = int(reader.description["max_seq_tokens"])
        read = TokenizedCorpus.build(rows(), tokenizers[0], max_seq_tokens=max_tokens, path=scratch / "proxy.arrow")
        writer = _IndexWriter(scratch / "alignment.bin")
        pairs = _pair_up(rows(), iter(read), _aimed(corpus))
        coverage = NO_COVERAGE
        with writer.path.open("wb") as file:
            for batch in batched(pairs, _BATCH_ROWS):
                coverage = coverage.plus(_align_batch(batch, proxy, student, writer, file))
        if len(writer.keys) != (expected := int((~corpus.is_weighted).sum())):
            raise ArtifactError(
                f"expected the rows of {expected} tokenised texts, found those of {len(writer.keys)}; tokenise "
                "the rows again"
            )
        targets = cls(reader, writer.finish(), VocabularyMap.build(proxy, student), spec)
        targets.facts = {**targets._describe(writer, coverage), "vocabulary": targets.vocabulary.facts(proxy)}
        targets.facts["shared_mass"] = targets._shared_mass(corpus)
        return targets

    @property
    def description(self) -> dict[str, Any]:
        """Content of the store's ``targets.json``."""
        return self._reader.description

    def get(self, prompt_id: str, sample_idx: int) -> SparseTarget:
        """The target of one sample, one row a token of the student's.

        Raises:
            ArtifactError: if the sample is unknown, or its stored target is not that of the proxy's tokens.
        """
        alignment = self._index.get(prompt_id, sample_idx)
        if not len(alignment.proxy_ids):
            return no_target(len(alignment.student_ids), int(self.description["top_k"]))
        return translate(self._stored(prompt_id, sample_idx, alignment), alignment, self.vocabulary, self._spec)

    def _stored(self, prompt_id: str, sample_idx: int, alignment: SampleAlignment) -> SparseTarget:
        target = self._reader.get(prompt_id, sample_idx)
        if len(target.tail_logprob) != len(alignment.proxy_ids):
            raise ArtifactError(
                f"expected targets at {len(alignment.proxy_ids)} positions of prompt {prompt_id}, as the proxy's "
                f"tokenizer cuts it, found {len(target.tail_logprob)}; estimate the targets again"
            )
        return target

    def _describe(self, writer: "_IndexWriter", coverage: Coverage) -> dict[str, Any]:
        names = ("one_to_one", "grouped", "unaligned")
        return {
            **{name: round(share, 6) for name, share in zip(names, coverage.shares, strict=True)},
            "position_share": round(writer.num_aligned / max(writer.num_positions, 1), 6),
            "texts_without_target": writer.num_without,
            "texts_rewritten": coverage.num_rewritten,
        }

    def _shared_mass(self, corpus: TokenizedCorpus) -> float | None:
        """Share of the listed probability that is on shared tokens; None where the first texts have no targets."""
        shared = listed = 0.0
        for example in islice(_aimed(corpus), _SAMPLED_TARGETS):
            alignment = self._index.get(example.prompt_id, example.sample_idx)
            if len(alignment.proxy_ids):
                target = self._stored(example.prompt_id, example.sample_idx, alignment)
                found = shared_mass(target.token_ids, target.logprobs, self.vocabulary.shared)
                shared, listed = shared + found[0], listed + found[1]
        return round(shared / listed, 6) if listed else None


class _Index:
    """Where each sample's alignment lies in the file."""

    def __init__(self, path: Path, keys: NDArray[np.int64], places: NDArray[np.int64]) -> None:
        order = np.argsort(keys)
        self._keys, self._places = keys[order], places[order]
        if (self._keys[1:] == self._keys[:-1]).any():
            raise ArtifactError("expected each sample once among the rows, found one twice; validate the rows again")
        self._values = np.memmap(path, np.int32, "r") if path.stat().st_size else np.zeros(0, np.int32)

    def get(self, prompt_id: str, sample_idx: int) -> SampleAlignment:
        key = hash((prompt_id, sample_idx))
        row = int(np.searchsorted(self._keys, key))
        if row == len(self._keys) or self._keys[row] != key:
            raise ArtifactError(f"expected prompt {prompt_id}, sample {sample_idx} among the aligned texts, found none")
        start, num_proxy, length = self._places[row].tolist()
        values = np.array(self._values[start : start + num_proxy + 3 * length])
        return SampleAlignment(values[:num_proxy], *np.split(values[num_proxy:], 3))


class _IndexWriter:
    """Collects where each sample's alignment goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keys: list[int] = []
        self.num_positions = self.num_aligned = self.num_without = 0
        self._places: list[tuple[int, int, int]] = []
        self._size = 0

    def add(self, example: Example, alignment: SampleAlignment, file: IO[bytes]) -> None:
        """Write one sample's alignment."""
        values = np.concatenate(alignment).astype(np.int32)
        file.write(values.tobytes())
        self.keys.append(hash((example.prompt_id, example.sample_idx)))
        self._places.append((self._size, len(alignment.proxy_ids), len(alignment.student_ids)))
        self._size += len(values)
        self.num_positions += len(alignment.student_ids)
        self.num_aligned += int((alignment.source >= 0).sum())
        self.num_without += not len(alignment.proxy_ids)

    def finish(self) -> _Index:
        """The index over all that was written."""
        places = np.array(self._places, np.int64).reshape(-1, 3)
        return _Index(self.path, np.array(self.keys, np.int64), places)


def _aimed(corpus: TokenizedCorpus) -> Iterator[Example]:
    """The examples that have targets."""
    return (example for example in corpus if example.weights is None)


def _pair_up(rows: Iterable[ValidatedRow], proxy: Iterator[Example], student: Iterator[Example]) -> Iterator[_Pair]:
    """The rows that the student learns from; all three are in one order, and either corpus may have left rows out."""
    next_proxy, next_student = next(proxy, None), next(student, None)
    for row in rows:
        key = row.prompt_id, row.sample_idx
        found_proxy = next_proxy if next_proxy is not None and next_proxy[:2] == key else None
        if found_proxy is not None:
            next_proxy = next(proxy, None)
        if next_student is not None and next_student[:2] == key:
            yield _Pair(row.text.encode(), next_student, found_proxy)
            next_student = next(student, None)


def _align_batch(
    pairs: Iterable[_Pair], proxy: TokenBytes, student: TokenBytes, writer: _IndexWriter, file: IO[bytes]
) -> Coverage:
    texts, examples, others = zip(*pairs, strict=True)
    proxy_ids = [np.zeros(0, np.int32) if other is None else other.completion_ids for other in others]
    student_ids = [example.completion_ids for example in examples]
    found_proxy, found_student = find_boundaries(proxy, proxy_ids, texts), find_boundaries(student, student_ids, texts)
    aligned = align(found_proxy, found_student, texts)
    groups = find_groups(found_proxy, found_student, aligned)
    bounds = np.cumsum(found_student.counts)[:-1]
    first = np.cumsum(found_proxy.counts) - found_proxy.counts
    parts = zip(examples, proxy_ids, student_ids, *(np.split(part, bounds) for part in aligned), first, strict=True)
    for example, its_proxy, its_student, source, stop, base in parts:
        local = [np.where(part >= 0, part - base, -1) for part in (source, stop)]
        writer.add(example, SampleAlignment(its_proxy, its_student, *local), file)
    return measure_coverage(found_proxy, found_student, groups, texts)


def no_target(length: int, width: int) -> SparseTarget:
    """The target of a text that the proxy did not read: weighs nothing at any position.

    Args:
        length: Tokens of the text.
        width: Slots a token.
    """
    no_ids, no_logprobs = np.full((length, width), -1, np.int32), np.full((length, width), -np.inf, np.float32)
    zeros = np.zeros(length, np.float32)
    return SparseTarget(no_ids, no_logprobs, zeros, 0.0, position_weights=zeros)

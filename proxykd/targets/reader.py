"""(prompt, sample) -> its target, through a memory map.

    reader = read_targets(path, expected={"tokenizer": fingerprint})
    reader.get(prompt_id, sample_idx)

Only the index stays in memory, 24 bytes a sample; blocks are checked and decoded on demand. Any number of processes
may read one store; within a process every thread needs a reader of its own.
"""

from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.exceptions import ArtifactError
from proxykd.targets.codec import CODED
from proxykd.targets.formats import Decoder
from proxykd.targets.index import key_of, read_index
from proxykd.targets.shards import Block, Shard
from proxykd.targets.summary import check_sizes, read_description

_OPEN_SHARDS = 64


class SparseTarget(NamedTuple):
    """What one sample teaches.

    Attributes:
        token_ids: int32 [length, k], -1 = no token, last in the row.
        logprobs: float32 [length, k], nats; -inf where there is no token.
        tail_logprob: float32 [length], log of the mass outside the k tokens; -inf where there is none.
        weight: Weight of the sample in the KL, in [0, 1].
        text_ids: int32 [length], the text's own tokens; None where the store does not keep them.
        position_weights: float32 [length], by which ``weight`` is multiplied at each position; None = 1 everywhere.
        unshared_probs: float32 [length, k], probabilities of the proxy's tokens that the student does not have, 0 in
            the other slots; None = they are in the tail like any other. Translated targets alone have them.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    tail_logprob: NDArray[np.float32]
    weight: float
    text_ids: NDArray[np.int32] | None = None
    position_weights: NDArray[np.float32] | None = None
    unshared_probs: NDArray[np.float32] | None = None

    def cut(self, length: int) -> "SparseTarget":
        """The target of the first ``length`` positions."""
        ids, logprobs, tail = self.token_ids[:length], self.logprobs[:length], self.tail_logprob[:length]
        text = None if self.text_ids is None else self.text_ids[:length]
        weights, unshared = (
            None if part is None else part[:length] for part in (self.position_weights, self.unshared_probs)
        )
        return SparseTarget(ids, logprobs, tail, self.weight, text, weights, unshared)


class TargetReader:
    """Random access to a target store.

    Args:
        path: Folder that ``TargetWriter.finish`` or ``merge`` completed.
        expected: Fields of ``targets.json`` that must have these values: tokenizer, proxy, corpus, say.

    Attributes:
        description: Content of ``targets.json``.

    Raises:
        ArtifactError: if a file is missing, cut short, damaged or of another format, or the store is not the expected.
    """

    def __init__(self, path: Path, expected: Mapping[str, Any] | None = None) -> None:
        self._path = path
        self.description: dict[str, Any] = read_description(path, expected)
        check_sizes(path, self.description)
        self._places = read_index(path, self.description)
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)
        self._decoders: dict[str, Decoder] = {}
        # Heads and tables of all shards now, so that a store that cannot be used is refused before anything is learnt.
        for number in range(len(self.description["shards"])):
            self._open_shard(number)

    def __len__(self) -> int:
        return len(self._places.keys)

    def __contains__(self, key: tuple[str, int]) -> bool:
        """Whether there is a target for (prompt id, sample index); reads no shard."""
        keys, wanted = self._places.keys, key_of(*key)
        row = int(np.searchsorted(keys, wanted))
        return row < len(keys) and bool(keys[row] == wanted)

    def get(self, prompt_id: str, sample_idx: int) -> SparseTarget:
        """The target of one sample.

        Raises:
            ArtifactError: if the store has none for it, or its block is damaged.
        """
        keys, key = self._places.keys, key_of(prompt_id, sample_idx)
        row = int(np.searchsorted(keys, key))
        if row == len(keys) or keys[row] != key:
            raise ArtifactError(
                f"expected a target for prompt {prompt_id}, sample {sample_idx} in {self._path}, found none; "
                "the targets were made from other rows: estimate them again"
            )
        shard, decoder = self._shard(int(self._places.shards[row]))
        block = shard.block(int(self._places.offsets[row]))
        if (block.prompt_id, block.sample_idx) != (prompt_id, sample_idx):
            raise ArtifactError(
                f"expected prompt {prompt_id}, sample {sample_idx} at byte {block.offset} of {shard.path}, found "
                f"{block.prompt_id}, {block.sample_idx}; index and shards are not of one store: copy it again"
            )
        return self._decode(block, decoder, float(self._places.weights[row]))

    def __iter__(self) -> Iterator[tuple[str, int, SparseTarget]]:
        """(prompt id, sample index, target) of all samples, in the order of the shards; weights are not looked up (1).

        Raises:
            ArtifactError: at the first damaged block.
        """
        for number in range(len(self.description["shards"])):
            shard, decoder = self._shard(number)
            for block in shard.blocks():
                yield block.prompt_id, block.sample_idx, self._decode(block, decoder, 1.0)

    def _decode(self, block: Block, decoder: Decoder, weight: float) -> SparseTarget:
        try:
            positions, text = decoder.decode(block.payload, block.length)
        except ArtifactError as error:
            raise ArtifactError(
                f"prompt {block.prompt_id}, sample {block.sample_idx} in {self._path}: {error}"
            ) from error
        return SparseTarget(*positions, weight=weight, text_ids=text if self.description.get("has_text") else None)

    def _open_shard(self, number: int) -> tuple[Shard, Decoder]:
        shard = Shard(self._path / self.description["shards"][number]["file"])
        wanted = {name: self.description[name] for name in shard.header if name != "tables"}
        if (found := {name: shard.header[name] for name in wanted}) != wanted:
            raise ArtifactError(f"expected a shard of {wanted} in {shard.path}, found {found}; copy the store again")
        tables = shard.header.get("tables", "")
        if tables not in self._decoders:
            self._decoders[tables] = Decoder(self._path, shard.header)
        return shard, self._decoders[tables]


def read_targets(path: Path, expected: Mapping[str, Any] | None = None) -> TargetReader:
    """Open a target store: the one function to read it by.

    Args:
        path: Its folder.
        expected: Fields of ``targets.json`` that must have these values, else the store is refused.

    Raises:
        ArtifactError: with the reason, if the store cannot be used.
    """
    return TargetReader(path, expected)


def verify(path: Path, expected: Mapping[str, Any] | None = None) -> int:
    """Read every block of a store, check its checksum, decode it, and look each up in the index.

    Returns:
        Number of samples.

    Raises:
        ArtifactError: at the first thing that is wrong.
    """
    reader = TargetReader(path, expected)
    count = 0
    for prompt_id, sample_idx, _ in reader:
        reader.get(prompt_id, sample_idx)
        count += 1
    if count != len(reader):
        raise ArtifactError(f"expected {len(reader)} samples in the shards of {path}, found {count}; copy it again")
    return count


__all__ = ["CODED", "SparseTarget", "TargetReader", "read_targets", "verify"]

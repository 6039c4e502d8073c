"""(prompt, sample) -> its target, through a memory map.

Only the index stays in memory, 24 bytes a sample; positions are copied out of the mapped shards on demand.
"""

import hashlib
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from proxykd.artifacts import read_json
from proxykd.exceptions import ArtifactError
from proxykd.targets.codec import ARRAYS, FORMAT, decode
from proxykd.targets.writer import DESCRIPTION, INDEX

_OPEN_SHARDS = 64


class SparseTarget(NamedTuple):
    """What one sample teaches.

    Attributes:
        token_ids: int32 [length, k].
        logprobs: float32 [length, k], nats.
        tail_logprob: float32 [length], log of the mass outside the k tokens; -inf where there is none.
        weight: Weight of the sample in the KL, in [0, 1].
        position_weights: float32 [length], by which ``weight`` is multiplied at each position; None = 1 everywhere.
        unshared_probs: float32 [length, k], probabilities of the proxy's tokens that the student does not have, 0 in
            the other slots; None = they are in the tail like any other. Translated targets alone have them.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    tail_logprob: NDArray[np.float32]
    weight: float
    position_weights: NDArray[np.float32] | None = None
    unshared_probs: NDArray[np.float32] | None = None

    def cut(self, length: int) -> "SparseTarget":
        """The target of the first ``length`` positions."""
        ids, logprobs, tail = self.token_ids[:length], self.logprobs[:length], self.tail_logprob[:length]
        weights, unshared = self.position_weights, self.unshared_probs
        return SparseTarget(
            ids,
            logprobs,
            tail,
            self.weight,
            None if weights is None else weights[:length],
            None if unshared is None else unshared[:length],
        )


class TargetReader:
    """Random access to a target store.

    Args:
        path: Folder that ``TargetWriter`` finished.

    Attributes:
        description: Content of ``targets.json``.

    Raises:
        ArtifactError: if a file is missing, cut short or of another format.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.description: dict[str, Any] = read_json(path / DESCRIPTION)
        if self.description.get("format") != FORMAT:
            raise ArtifactError(
                f"expected targets in the format {FORMAT} in {path}, found {self.description.get('format')!r}; "
                "estimate them again"
            )
        for shard in self.description["shards"]:
            _check_size(path / shard["file"], shard["bytes"])
        self._keys, self._places, self._weights = _read_index(path / INDEX, self.description["num_samples"])
        self._shard = lru_cache(maxsize=_OPEN_SHARDS)(self._open_shard)

    def __len__(self) -> int:
        return len(self._keys)

    def get(self, prompt_id: str, sample_idx: int) -> SparseTarget:
        """The target of one sample.

        Raises:
            ArtifactError: if the store has none for it, or its shard is damaged.
        """
        key = _key_of(prompt_id, sample_idx)
        row = int(np.searchsorted(self._keys, key))
        if row == len(self._keys) or self._keys[row] != key:
            raise ArtifactError(
                f"expected a target for prompt {prompt_id}, sample {sample_idx} in {self._path}, found none; "
                "the targets were made from other rows: estimate them again"
            )
        shard, start, length = (int(value) for value in self._places[row])
        handle = self._shard(shard)
        rows = {name: handle.get_slice(name)[start : start + length] for name in ARRAYS}
        return SparseTarget(*decode(rows), weight=float(self._weights[row]))

    def _open_shard(self, shard: int) -> Any:
        path = self._path / self.description["shards"][shard]["file"]
        try:
            return safe_open(path, framework="np")
        except (OSError, SafetensorError) as error:
            raise ArtifactError(f"expected a shard of targets in {path}: {error}; estimate them again") from error


def _key_of(prompt_id: str, sample_idx: int) -> np.uint64:
    digest = hashlib.blake2b(f"{prompt_id}/{sample_idx}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def _check_size(path: Path, num_bytes: int) -> None:
    found = path.stat().st_size if path.is_file() else None
    if found != num_bytes:
        what = "no such file" if found is None else f"{found} bytes"
        raise ArtifactError(f"expected {num_bytes} bytes of targets in {path}, found {what}; estimate them again")


def _read_index(path: Path, num_samples: int) -> tuple[NDArray[np.uint64], NDArray[np.int32], NDArray[np.float32]]:
    keys, places = np.empty(num_samples, np.uint64), np.empty((num_samples, 3), np.int32)
    weights, row = np.empty(num_samples, np.float32), 0
    try:
        with pq.ParquetFile(path) as file:
            if file.metadata.num_rows != num_samples:
                raise ArtifactError(f"expected {num_samples} rows in {path}, found {file.metadata.num_rows}")
            for batch in file.iter_batches():
                rows = slice(row, row := row + len(batch))
                ids, samples = batch.column("prompt_id").to_pylist(), batch.column("sample_idx").to_pylist()
                keys[rows] = [_key_of(prompt_id, sample) for prompt_id, sample in zip(ids, samples, strict=True)]
                places[rows] = np.stack([batch.column(name).to_numpy() for name in ("shard", "start", "length")], 1)
                weights[rows] = batch.column("weight").to_numpy()
    except (OSError, ValueError) as error:
        raise ArtifactError(f"expected the index of targets in {path}: {error}; estimate them again") from error
    order = np.argsort(keys)
    if num_samples and (keys[order][1:] == keys[order][:-1]).any():
        raise ArtifactError(f"{path} has two rows for one sample; estimate the targets again")
    return keys[order], places[order], weights[order]

"""``index.parquet``: a row a sample, made from the heads of the blocks."""

import hashlib
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from proxykd.artifacts import batched
from proxykd.exceptions import ArtifactError
from proxykd.targets.shards import Shard

INDEX = "index.parquet"
INDEX_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_idx", pa.int32()),
        ("shard", pa.int32()),
        ("offset", pa.int64()),
        ("length", pa.int32()),
        ("sequence_logprob", pa.float64()),
        ("weight", pa.float32()),
    ]
)
_BATCH_ROWS = 4096
_CHUNK = 2**20

Weigh = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]
"""Log-likelihoods [rows] and lengths [rows] of some samples -> their weights [rows]."""


class Places(NamedTuple):
    """Where samples are, sorted by key: 24 bytes a sample.

    Attributes:
        keys: uint64 [samples].
        shards: int32 [samples].
        offsets: int64 [samples].
        weights: float32 [samples].
    """

    keys: NDArray[np.uint64]
    shards: NDArray[np.int32]
    offsets: NDArray[np.int64]
    weights: NDArray[np.float32]


def key_of(prompt_id: str, sample_idx: int) -> np.uint64:
    """64 bits that stand for a sample; two samples with one key are found when the index is read."""
    digest = hashlib.blake2b(f"{prompt_id}/{sample_idx}".encode(), digest_size=8).digest()
    return np.uint64(int.from_bytes(digest, "little"))


def write_index(folder: Path, shards: list[str], *, scratch: Path, weigh: Weigh) -> dict[str, Any]:
    """Write the index of some shards; returns its size and checksum.

    Raises:
        ArtifactError: if a block is damaged.
    """
    scratch.mkdir(parents=True, exist_ok=True)
    pending = scratch / "index-pending.parquet"
    with pq.ParquetWriter(pending, INDEX_SCHEMA) as out:
        for batch in batched(_rows(folder, shards), _BATCH_ROWS):
            columns = [list(column) for column in zip(*batch, strict=True)]
            weights = weigh(np.array(columns[5], np.float64), np.array(columns[4], np.int64))
            arrays = [
                pa.array(column, field.type) for column, field in zip([*columns, weights], INDEX_SCHEMA, strict=True)
            ]
            out.write_batch(pa.RecordBatch.from_arrays(arrays, schema=INDEX_SCHEMA))
    shutil.move(pending, folder / INDEX)
    return {"bytes": (folder / INDEX).stat().st_size, "crc": crc_of(folder / INDEX)}


def _rows(folder: Path, shards: list[str]) -> Iterator[tuple[Any, ...]]:
    for number, name in enumerate(shards):
        for block in Shard(folder / name).blocks():
            yield block.prompt_id, block.sample_idx, number, block.offset, block.length, block.sequence_logprob


def crc_of(path: Path) -> int:
    """CRC-32 of a file, read in chunks."""
    crc = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            crc = zlib.crc32(chunk, crc)
    return crc


def read_index(folder: Path, description: dict[str, Any]) -> Places:
    """The places of all samples.

    Raises:
        ArtifactError: if the index is missing, damaged, or has two rows for one sample.
    """
    path, num_samples = folder / INDEX, int(description["num_samples"])
    try:
        if crc_of(path) != description["index"]["crc"]:
            raise ArtifactError(f"the index {path} is damaged: its checksum is wrong; copy the store again")
        places = _read(path, num_samples)
    except ArtifactError:
        raise
    except (OSError, ValueError) as error:
        raise ArtifactError(f"expected the index of targets in {path}: {error}; estimate them again") from error
    order = np.argsort(places.keys, kind="stable")
    keys = places.keys[order]
    if num_samples and (keys[1:] == keys[:-1]).any():
        raise ArtifactError(f"{path} has two rows for one sample; estimate the targets again")
    return Places(keys, places.shards[order], places.offsets[order], places.weights[order])


def _read(path: Path, num_samples: int) -> Places:
    keys, shards = np.empty(num_samples, np.uint64), np.empty(num_samples, np.int32)
    offsets, weights, row = np.empty(num_samples, np.int64), np.empty(num_samples, np.float32), 0
    with pq.ParquetFile(path) as file:
        if file.metadata.num_rows != num_samples:
            raise ArtifactError(
                f"expected {num_samples} rows in {path}, found {file.metadata.num_rows}; estimate the targets again"
            )
        for batch in file.iter_batches():
            rows = slice(row, row := row + len(batch))
            ids, samples = batch.column("prompt_id").to_pylist(), batch.column("sample_idx").to_pylist()
            keys[rows] = [key_of(prompt_id, sample) for prompt_id, sample in zip(ids, samples, strict=True)]
            for array, name in ((shards, "shard"), (offsets, "offset"), (weights, "weight")):
                array[rows] = batch.column(name).to_numpy()
    return Places(keys, shards, offsets, weights)

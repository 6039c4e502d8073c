"""A stream of samples -> a target store.

    targets-00000.safetensors ...   positions of many samples, a sample never spread over two files
    index.parquet                   a row a sample: where its positions are, its log-likelihood, its weight
    targets.json                    format, sizes of all shards, settings and statistics

Memory is bounded by one shard. The weights need statistics over all samples, so the index is written twice: without
them while the samples stream by, then completed from disk, batch by batch.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from safetensors.numpy import save

from proxykd.artifacts import write_json
from proxykd.targets.codec import FORMAT, Positions, encode

DESCRIPTION = "targets.json"
INDEX = "index.parquet"
SHARD_POSITIONS = 2**17

_BATCH_ROWS = 4096
_PENDING_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_idx", pa.int32()),
        ("shard", pa.int32()),
        ("start", pa.int32()),
        ("length", pa.int32()),
        ("sequence_logprob", pa.float64()),
    ]
)
INDEX_SCHEMA = _PENDING_SCHEMA.append(pa.field("weight", pa.float32()))

Weigh = Callable[[NDArray[np.float64], NDArray[np.int64]], NDArray[np.float64]]
"""Log-likelihoods [rows] and lengths [rows] of some samples -> their weights [rows]."""


class TargetWriter:
    """Writes a store; ``add`` every sample, then ``finish`` once.

    Args:
        folder: Where to; created.
        scratch: Folder for the index while it has no weights yet; created.
        top_k: Tokens kept at each position.
        vocab_size: Upper bound on token ids.
        shard_positions: Positions after which a new file begins; bounds the memory.
    """

    def __init__(
        self, folder: Path, *, scratch: Path, top_k: int, vocab_size: int, shard_positions: int = SHARD_POSITIONS
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(parents=True, exist_ok=True)
        self._folder, self._pending_path = folder, scratch / "index-pending.parquet"
        self._top_k, self._vocab_size, self._shard_positions = top_k, vocab_size, shard_positions
        self._pending = pq.ParquetWriter(self._pending_path, _PENDING_SCHEMA)
        self._rows: list[dict[str, Any]] = []
        self._blocks: list[dict[str, NDArray[np.generic]]] = []
        self._num_buffered = self._num_samples = self._num_positions = 0
        self._shards: list[dict[str, Any]] = []

    def add(self, prompt_id: str, sample_idx: int, positions: Positions, *, sequence_logprob: float) -> None:
        """Append one sample.

        Args:
            prompt_id: With ``sample_idx`` the key of the sample.
            sample_idx: 0 .. num_samples - 1.
            positions: One row for each token of the teacher's text.
            sequence_logprob: Sum of the log-probabilities of these tokens, nats.

        Raises:
            ShapeError: if the arrays do not fit each other or the vocabulary.
        """
        length = len(positions.tail_logprob)
        if self._blocks and self._num_buffered + length > self._shard_positions:
            self._flush_shard()
        self._blocks.append(encode(positions, vocab_size=self._vocab_size))
        place = {"shard": len(self._shards), "start": self._num_buffered, "length": length}
        self._rows.append(
            {"prompt_id": prompt_id, "sample_idx": sample_idx, **place, "sequence_logprob": sequence_logprob}
        )
        self._num_buffered += length
        self._num_positions += length
        self._num_samples += 1
        if len(self._rows) >= _BATCH_ROWS:
            self._flush_rows()

    def finish(self, weigh: Weigh, facts: Callable[[], Mapping[str, Any]]) -> None:
        """Write the last shard, the index with its weights, and the description.

        Args:
            weigh: Gives the samples their weights.
            facts: Settings and statistics for ``targets.json``; asked for after the last weight.
        """
        if self._blocks:
            self._flush_shard()
        self._flush_rows()
        self._pending.close()
        self._complete_index(weigh)
        description = {
            "format": FORMAT,
            "top_k": self._top_k,
            "vocab_size": self._vocab_size,
            "num_samples": self._num_samples,
            "num_positions": self._num_positions,
        }
        write_json(self._folder / DESCRIPTION, {**description, **facts(), "shards": self._shards})

    def _flush_shard(self) -> None:
        arrays = {name: np.concatenate([block[name] for block in self._blocks]) for name in self._blocks[0]}
        path = self._folder / f"targets-{len(self._shards):05d}.safetensors"
        num_bytes = path.write_bytes(save(arrays, metadata={"format": FORMAT}))
        self._shards.append({"file": path.name, "positions": self._num_buffered, "bytes": num_bytes})
        self._blocks, self._num_buffered = [], 0

    def _flush_rows(self) -> None:
        self._pending.write_table(pa.Table.from_pylist(self._rows, schema=_PENDING_SCHEMA))
        self._rows = []

    def _complete_index(self, weigh: Weigh) -> None:
        with pq.ParquetFile(self._pending_path) as pending, pq.ParquetWriter(self._folder / INDEX, INDEX_SCHEMA) as out:
            for batch in pending.iter_batches(batch_size=_BATCH_ROWS):
                weights = weigh(
                    batch.column("sequence_logprob").to_numpy(), batch.column("length").to_numpy().astype(np.int64)
                )
                out.write_batch(
                    pa.RecordBatch.from_arrays([*batch.columns, pa.array(weights, pa.float32())], schema=INDEX_SCHEMA)
                )
        self._pending_path.unlink()

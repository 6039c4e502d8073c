"""A stream of samples -> shards; the shards of all workers -> a target store.

    targets-000-00000.shard ...   blocks of samples (``shards``): worker, number
    tables-<fingerprint>.tables   the code's tables, coded format only
    worker-000.json               what a worker that closed has written
    index.parquet                 a row a sample: where its block is, its log-likelihood, its weight
    targets.json                  format, sizes of all shards, settings and statistics, with a checksum of itself

Every worker writes shards of its own; ``merge`` joins their descriptions and makes the index from the blocks' heads,
without touching a shard. A block reaches the file in one write, so a killed worker loses at most the last sample (and
those that still waited for the tables to be fitted); opened again with ``resume`` it cuts off what is not whole.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from proxykd.artifacts import read_json, write_json
from proxykd.config.targets_store import TargetStoreSpec
from proxykd.exceptions import ArtifactError
from proxykd.targets.codec import Positions, check_positions
from proxykd.targets.formats import CodedEncoder, Encoder, PlainEncoder, Sample
from proxykd.targets.index import INDEX, Weigh, key_of, write_index
from proxykd.targets.shards import Shard, block_bytes, shard_header
from proxykd.targets.summary import DESCRIPTION, write_description

SHARD_POSITIONS = 2**17

__all__ = ["DESCRIPTION", "INDEX", "SHARD_POSITIONS", "TargetWriter", "Weigh", "merge"]


class TargetWriter:
    """Writes a worker's part of a store; ``add`` every sample, then ``finish`` once, or ``close`` and ``merge`` later.

    Args:
        folder: Where to; created.
        scratch: Folder for the index while it is made; created.
        top_k: Tokens kept at each position, at most.
        vocab_size: Upper bound on token ids.
        shard_positions: Positions after which a new file begins.
        store: Format; None = plain.
        num_draws: Rows are counts c / num_draws, to be kept exactly; None = probabilities.
        worker: Number of this worker, 0 where there is one.
        tables: Tables of another worker or store, so that they need not be fitted and kept again; None = fit.
        resume: Go on after the whole blocks that this worker has already written.

    Raises:
        ArtifactError: if the worker has shards here already and ``resume`` is false, or they are of other settings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        scratch: Path,
        top_k: int,
        vocab_size: int,
        shard_positions: int = SHARD_POSITIONS,
        store: TargetStoreSpec | None = None,
        num_draws: int | None = None,
        worker: int = 0,
        tables: Path | None = None,
        resume: bool = False,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._folder, self._scratch, self._worker = folder, scratch, worker
        self._top_k, self._vocab_size, self._shard_positions = top_k, vocab_size, shard_positions
        self._shards: list[dict[str, Any]] = []
        self._file: BinaryIO | None = None
        self._seen: set[int] = set()
        header = self._recover(resume)
        if header.get("tables"):
            tables = folder / header["tables"]
        self._encoder: Encoder
        if store is None or store.kind == "plain":
            self._encoder = PlainEncoder(top_k=top_k, vocab_size=vocab_size)
        else:
            self._encoder = CodedEncoder(
                folder, top_k=top_k, vocab_size=vocab_size, spec=store, num_draws=num_draws, tables=tables
            )
        if header and header != (expected := {**self._encoder.header(), **_decided(header)}):
            raise ArtifactError(f"expected shards of {expected} in {folder}, found {header}; write into another folder")

    def __contains__(self, key: tuple[str, int]) -> bool:
        """Whether a sample (prompt id, sample index) was there before this writer resumed."""
        return int(key_of(*key)) in self._seen

    def add(
        self,
        prompt_id: str,
        sample_idx: int,
        positions: Positions,
        *,
        sequence_logprob: float,
        text_ids: NDArray[np.int32] | None = None,
    ) -> None:
        """Append one sample.

        Args:
            prompt_id: With ``sample_idx`` the key of the sample.
            sample_idx: 0 .. num_samples - 1.
            positions: One row for each token of the teacher's text.
            sequence_logprob: Sum of the log-probabilities of these tokens, nats.
            text_ids: The text's own tokens, int32 [length]: the coded format keeps them (half a byte each) and codes
                the rows by them, 0 to 4 % shorter in all, where the rows are no draws; None = not known.

        Raises:
            ShapeError: if the arrays do not fit each other or the vocabulary, or a row is no distribution.
        """
        checked = check_positions(positions, top_k=self._top_k, vocab_size=self._vocab_size)
        sample = Sample(prompt_id, sample_idx, sequence_logprob, len(checked.tail_logprob))
        self._write_all(self._encoder.add(sample, checked, text_ids))

    def close(self) -> None:
        """Write what is left and describe this worker's shards; the store is complete after ``merge``."""
        self._write_all(self._encoder.flush())
        self._end_shard()
        facts = {"shards": self._shards, "facts": self._encoder.facts()}
        write_json(self._folder / f"worker-{self._worker:03d}.json", facts)

    def header(self) -> dict[str, Any]:
        """What stands at the head of its shards: format and sizes."""
        return self._encoder.header()

    def finish(self, weigh: Weigh, facts: Callable[[], Mapping[str, Any]]) -> None:
        """``close`` and ``merge``, for a store with this one worker.

        Args:
            weigh: Gives the samples their weights.
            facts: Settings and statistics for ``targets.json``; asked for after the last weight.
        """
        self.close()
        merge(self._folder, scratch=self._scratch, weigh=weigh, facts=facts, empty=self.header())

    def _write_all(self, ready: Iterator[tuple[Sample, bytes]]) -> None:
        for sample, payload in ready:
            if self._file is None or (
                self._shards[-1]["positions"] and self._shards[-1]["positions"] + sample.length > self._shard_positions
            ):
                self._begin_shard()
            data = block_bytes(*sample, payload)
            self._file.write(data)  # type: ignore[union-attr]
            self._count(len(data), sample.length)

    def _count(self, num_bytes: int, length: int) -> None:
        shard = self._shards[-1]
        shard["bytes"] += num_bytes
        shard["positions"] += length
        shard["samples"] += 1

    def _begin_shard(self) -> None:
        self._end_shard()
        name = f"targets-{self._worker:03d}-{len(self._shards):05d}.shard"
        header = shard_header(self._encoder.header())
        self._file = (self._folder / name).open("wb", buffering=0)
        self._file.write(header)
        self._shards.append({"file": name, "bytes": len(header), "positions": 0, "samples": 0})

    def _end_shard(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _recover(self, resume: bool) -> dict[str, Any]:
        """Take over the whole blocks on disk; the header of their shards, {} where there are none."""
        header: dict[str, Any] = {}
        paths = sorted(self._folder.glob(f"targets-{self._worker:03d}-*.shard"))
        if paths and not resume:
            raise ArtifactError(
                f"expected no shards of worker {self._worker} in {self._folder}, found {len(paths)}; "
                "resume, or write into an empty folder"
            )
        for path in paths:
            try:
                shard = Shard(path)
            except ArtifactError:
                if path != paths[-1]:
                    raise
                path.unlink()  # killed before the head of a new file was written
                break
            header = shard.header
            self._take_over(shard)
        return header

    def _take_over(self, shard: Shard) -> None:
        end = shard.whole_end()
        self._shards.append({"file": shard.path.name, "bytes": end, "positions": 0, "samples": 0})
        for block in shard.blocks(end):
            self._seen.add(int(key_of(block.prompt_id, block.sample_idx)))
            self._count(0, block.length)
        if end < shard.size:
            with shard.path.open("r+b") as file:
                file.truncate(end)


def merge(
    folder: Path,
    *,
    scratch: Path,
    weigh: Weigh,
    facts: Callable[[], Mapping[str, Any]],
    empty: Mapping[str, Any] | None = None,
) -> None:
    """Make one store of what all workers of a folder have written.

    Args:
        folder: Where the workers wrote.
        scratch: Folder for the index while it is made; created.
        weigh: Gives the samples their weights, batch by batch.
        facts: Settings and statistics for ``targets.json``; asked for after the last weight.
        empty: Header to give a store without a shard.

    Raises:
        ArtifactError: if a shard is damaged or shards are of different settings.
    """
    workers = [read_json(path) for path in sorted(folder.glob("worker-*.json"))]
    shards = [shard for worker in workers for shard in worker["shards"]]
    header = _common_header(folder, shards) if shards else _bare(empty or {})
    index = write_index(folder, [shard["file"] for shard in shards], scratch=scratch, weigh=weigh)
    counts = {name: sum(shard[name] for shard in shards) for name in ("positions", "samples")}
    lost = _join_losses([worker["facts"] for worker in workers])
    description = {
        **header,
        "num_samples": counts["samples"],
        "num_positions": counts["positions"],
        **lost,
        **facts(),
        "index": index,
        "shards": shards,
    }
    write_description(folder, description)
    for path in folder.glob("worker-*.json"):
        path.unlink()


def _common_header(folder: Path, shards: list[dict[str, Any]]) -> dict[str, Any]:
    headers = [Shard(folder / shard["file"]).header for shard in shards]
    bare = [_bare(header) for header in headers]
    if odd := [shard["file"] for shard, header in zip(shards, bare, strict=True) if header != bare[0]]:
        raise ArtifactError(f"expected shards of one format in {folder}, found {odd[:3]} of others; write them anew")
    return bare[0]


def _decided(header: Mapping[str, Any]) -> dict[str, Any]:
    """What the first sample decides, which a writer that resumes has not seen yet."""
    return {name: header[name] for name in ("has_text",) if name in header}


def _bare(header: Mapping[str, Any]) -> dict[str, Any]:
    """A header without what differs between workers: each may have tables of its own."""
    return {name: value for name, value in header.items() if name != "tables"}


def _join_losses(parts: list[dict[str, Any]]) -> dict[str, float]:
    """Mean and maximum of what was lost, over the positions that were not taken over from a killed writer."""
    parts = [facts for facts in parts if facts.get("kl_positions")]
    if not parts:
        return {}
    mean = sum(facts["kl_sum"] for facts in parts) / sum(facts["kl_positions"] for facts in parts)
    return {"kl_mean": mean, "kl_max": max(facts["kl_max"] for facts in parts)}

"""Artifacts: folders with a manifest, the only thing that one stage hands to the next.

A stage writes files into a folder and seals it; the seal is ``manifest.json``: the kind, a SHA-256 for every file,
and the hashes of the artifacts that it was made from, so that a registered student can be followed back to each
response it learnt from. Only data formats that cannot run code are allowed (no pickle).

This module knows folders, Parquet parts and hashes; it does not know any orchestrator's artifact store.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.exceptions import ArtifactError
from proxykd.records import Completion, Prompt, Record, SplitRow, ValidatedRow, hash_json
from proxykd.trajectories import Trajectory

MANIFEST = "manifest.json"
ALLOWED_SUFFIXES = frozenset(
    {
        ".parquet",
        ".safetensors",
        ".shard",
        ".tables",
        ".json",
        ".jsonl",
        ".html",
        ".md",
        ".png",
        ".txt",
        ".jinja",
        ".css",
    }
)

ItemT = TypeVar("ItemT")
RowT = TypeVar("RowT", bound=Record)


@dataclass(frozen=True, slots=True)
class Artifact:
    """A sealed folder.

    Attributes:
        path: The folder.
    """

    kind: ClassVar[str] = "artifact"

    path: Path

    @property
    def manifest(self) -> dict[str, Any]:
        """The content of ``manifest.json``."""
        return read_json(self.path / MANIFEST)

    @property
    def hash(self) -> str:
        """Hex SHA-256 over the kind, every file's hash and every parent's hash; names the artifact."""
        return str(self.manifest["hash"])

    def verify(self) -> None:
        """Recompute every hash.

        Raises:
            ArtifactError: if a file is missing, added or changed, or the folder is of another kind.
        """
        manifest = self.manifest
        if manifest["kind"] != self.kind:
            raise ArtifactError(f"expected a {self.kind} artifact in {self.path}, found kind={manifest['kind']!r}")
        if hash_json({name: manifest[name] for name in ("kind", "files", "made_from")}) != manifest["hash"]:
            raise ArtifactError(f"{self.path / MANIFEST} is not what was sealed: its own hash is wrong")
        if (found := _hash_files(self.path)) != manifest["files"]:
            changed = sorted({*found.items()} ^ {*manifest["files"].items()})
            raise ArtifactError(f"{self.path} differs from its manifest in {sorted({name for name, _ in changed})}")


def seal(artifact: Artifact, made_from: Mapping[str, str] | None = None) -> None:
    """Write the manifest of a folder whose files are complete.

    Args:
        artifact: The folder.
        made_from: Name of each input -> its ``Artifact.hash`` (or the hash of a specification section).

    Raises:
        ArtifactError: if the folder holds a file type that is not allowed in artifacts.
    """
    if bad := sorted(str(p) for p in _files(artifact.path) if p.suffix not in ALLOWED_SUFFIXES):
        raise ArtifactError(f"artifacts hold {sorted(ALLOWED_SUFFIXES)} only, found {bad[:5]}; write another format")
    body = {"kind": artifact.kind, "files": _hash_files(artifact.path), "made_from": dict(made_from or {})}
    write_json(artifact.path / MANIFEST, {**body, "hash": hash_json(body)})


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in ``path``.

    Raises:
        ArtifactError: if the file is missing or is not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ArtifactError(f"expected a JSON object in {path}: {error}") from error
    if not isinstance(value, dict):
        raise ArtifactError(f"expected a JSON object in {path}, found a {type(value).__name__}")
    return value


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as indented JSON, keys in the given order, creating parent folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def link_file(source: str | Path, target: str | Path) -> None:
    """The same file under another name, or a copy where that lies on another disk; it is never written again."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def batched(items: Iterable[ItemT], size: int) -> Iterator[tuple[ItemT, ...]]:
    """Tuples of ``size`` items, the last one shorter (``itertools.batched``, which Python 3.11 lacks)."""
    iterator = iter(items)
    while batch := tuple(islice(iterator, size)):
        yield batch


@dataclass(frozen=True, slots=True)
class RecordFolder(Artifact, Generic[RowT]):
    """A folder of Parquet parts that hold records of one type, read in batches, never whole."""

    record_type: ClassVar[type[Record]]

    @property
    def num_rows(self) -> int:
        """Rows in all parts, from the Parquet footers."""
        return sum(pq.read_metadata(part).num_rows for part in self.parts())

    def parts(self) -> list[Path]:
        """The Parquet parts in order."""
        return sorted(self.path.glob("part-*.parquet"))

    def batches(self, *, batch_rows: int = 4096, columns: list[str] | None = None) -> Iterator[pa.RecordBatch]:
        """Arrow batches of at most ``batch_rows`` rows, one part open at a time."""
        for part in self.parts():
            # Pre-buffering would read the whole part ahead.
            with pq.ParquetFile(part, pre_buffer=False) as file:
                yield from file.iter_batches(batch_size=batch_rows, columns=columns)

    def rows(self) -> Iterator[RowT]:
        """The records, in order."""
        for batch in self.batches():
            for row in batch.to_pylist():
                yield self.record_type.from_row(row)  # type: ignore[misc]

    def write(self, rows: Iterable[RowT], *, rows_per_part: int = 50_000, batch_rows: int = 4096) -> None:
        """Write ``rows`` as Parquet parts; holds at most ``batch_rows`` of them in memory. Does not seal."""
        self.path.mkdir(parents=True, exist_ok=True)
        schema = self.record_type.schema
        for index, part in enumerate(_chunks_of_batches(rows, rows_per_part, batch_rows)):
            with pq.ParquetWriter(self.path / f"part-{index:05d}.parquet", schema) as writer:
                for batch in part:
                    writer.write_batch(self.record_type.to_batch(batch))
        if not self.parts():
            pq.write_table(schema.empty_table(), self.path / "part-00000.parquet")


class PromptSet(RecordFolder[Prompt]):
    """The prompts of a run."""

    kind = "prompts"
    record_type = Prompt


class CompletionSet(RecordFolder[Completion]):
    """What became of every prompt at the teacher."""

    kind = "completions"
    record_type = Completion


class ValidatedSet(RecordFolder[ValidatedRow]):
    """Prompt and completion pairs with a verdict each."""

    kind = "validated"
    record_type = ValidatedRow


class QuarantineSet(RecordFolder[ValidatedRow]):
    """The rows that validation keeps from teaching; ``rows.jsonl`` and ``index.html`` are the same for people."""

    kind = "quarantine"
    record_type = ValidatedRow


class SplitSet(RecordFolder[SplitRow]):
    """The side on which each prompt falls."""

    kind = "splits"
    record_type = SplitRow


class TrajectorySet(RecordFolder[Trajectory]):
    """The student's attempts with feedback and improved attempts."""

    kind = "trajectories"
    record_type = Trajectory


class AnswerSet(Artifact):
    """``answers.parquet``: rows of a journal, all that one portion of a run's prompts was answered."""

    kind = "answers"


class JournalExcerpt(Artifact):
    """``journal.json``: root, number and dates of the journal entries that a run's completions came from."""

    kind = "journal_excerpt"


class ValidationResult(Artifact):
    """``result.json`` (Great Expectations result and the gate) and ``index.html`` (the data docs)."""

    kind = "validation"


class DriftReport(Artifact):
    """``drift.json`` (how far each measure moved from the last accepted run's) and ``index.html``."""

    kind = "drift"


class ProxyModel(Artifact):
    """``model/`` (weights, tokenizer) and ``fidelity.json`` (NLL and agreement before and after every stage)."""

    kind = "proxy"


class Targets(Artifact):
    """Sparse next-token distributions for every position of the teacher's text, and a weight a sample."""

    kind = "targets"


class TargetsPortion(Artifact):
    """The files of one worker of a target store, and ``portion.json``: what they add up to."""

    kind = "targets_portion"


class StudentModel(Artifact):
    """``seed-N/model/`` for every seed (weights, tokenizer) and ``training.json`` (curves, search, settings)."""

    kind = "student"

    def model_folders(self, seeds: Iterable[int]) -> list[Path]:
        """The model folder of each seed, in the order of ``seeds``."""
        return [self.path / f"seed-{seed}" / "model" for seed in seeds]


class Evaluation(Artifact):
    """``report.json`` and ``predictions.parquet``."""

    kind = "evaluation"


class Promotion(Artifact):
    """``promotion.json``: the decision, the version, the tracked run; and the report for people (``report.html``)."""

    kind = "promotion"


def _chunks_of_batches(
    rows: Iterable[RowT], rows_per_part: int, batch_rows: int
) -> Iterator[Iterator[tuple[RowT, ...]]]:
    batches = batched(rows, batch_rows)
    per_part = max(1, rows_per_part // batch_rows)
    for first in batches:
        yield chain([first], islice(batches, per_part - 1))


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / MANIFEST)


def _hash_files(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): _hash_file(p) for p in _files(folder)}


def _hash_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

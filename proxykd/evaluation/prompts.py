"""What the statistics need to know of the held-out prompts: which belong together, and which slices they fall into.

A slice is a named part of the prompts. Names read ``field=value``: ``task=arithmetic`` (the prompt's task) and
``turns=one`` or ``turns=several`` (messages of the user). A prompt may be in several.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.records import ValidatedRow

SCHEMA = pa.schema([("prompt_id", pa.string()), ("cluster", pa.string()), ("slices", pa.list_(pa.string()))])


@dataclass(frozen=True, slots=True)
class PromptTable:
    """The held-out prompts.

    Attributes:
        clusters: Prompt id -> what it is drawn together with; a prompt that is not listed is drawn alone.
        slices: Name -> the ids of its prompts.
    """

    clusters: Mapping[str, str] = field(default_factory=dict)
    slices: Mapping[str, frozenset[str]] = field(default_factory=dict)

    @classmethod
    def of_rows(cls, rows: Iterable[ValidatedRow]) -> "PromptTable":
        """The table of the prompts of some rows; the samples of a prompt share it."""
        clusters: dict[str, str] = {}
        slices: dict[str, set[str]] = {}
        for row in rows:
            clusters[row.prompt_id] = row.group or row.prompt_id
            for name in _slices_of(row):
                slices.setdefault(name, set()).add(row.prompt_id)
        return cls(clusters, {name: frozenset(slices[name]) for name in sorted(slices)})

    @classmethod
    def read(cls, path: Path) -> "PromptTable":
        """The table that ``write`` left."""
        clusters: dict[str, str] = {}
        slices: dict[str, set[str]] = {}
        for row in pq.read_table(path, schema=SCHEMA).to_pylist():
            clusters[row["prompt_id"]] = row["cluster"]
            for name in row["slices"]:
                slices.setdefault(name, set()).add(row["prompt_id"])
        return cls(clusters, {name: frozenset(slices[name]) for name in sorted(slices)})

    def write(self, path: Path) -> None:
        """Write one row a prompt."""
        names: dict[str, list[str]] = {prompt_id: [] for prompt_id in self.clusters}
        for name, members in self.slices.items():
            for prompt_id in members:
                names[prompt_id].append(name)
        columns = [list(self.clusters), list(self.clusters.values()), list(names.values())]
        pq.write_table(pa.table(columns, schema=SCHEMA), path)

    def only(self, prompt_ids: Sequence[str]) -> "PromptTable":
        """The same of some prompts; slices without any of them are left out."""
        wanted = frozenset(prompt_ids)
        slices = {name: members & wanted for name, members in self.slices.items()}
        clusters = {name: cluster for name, cluster in self.clusters.items() if name in wanted}
        return PromptTable(clusters, {name: members for name, members in slices.items() if members})

    def counts(self) -> dict[str, int]:
        """``report["slices"]``: name -> number of prompts."""
        return {name: len(members) for name, members in self.slices.items()}


def _slices_of(row: ValidatedRow) -> list[str]:
    num_turns = sum(message.role == "user" for message in row.messages)
    task = [f"task={row.task}"] if row.task else []
    return [*task, "turns=several" if num_turns > 1 else "turns=one"]

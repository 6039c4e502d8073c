"""What the statistics need to know of the held-out prompts: which belong together, and which slices they fall into.

A slice is a named part of the prompts. Names read ``field=value``: ``task=arithmetic``, ``turns=several``,
``length=long``, ``source=prompts.jsonl``; ``SlicesSpec`` says which fields there are. A prompt may be in several.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.config.slices import SlicesSpec
from proxykd.records import ValidatedRow, hash_text

_DEFAULT = SlicesSpec()
_SHOWN_CHARS = 32

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
    def of_rows(cls, rows: Iterable[ValidatedRow], spec: SlicesSpec = _DEFAULT) -> "PromptTable":
        """The table of the prompts of some rows; the samples of a prompt share it.

        Args:
            rows: In any order.
            spec: What divides them into slices.
        """
        clusters: dict[str, str] = {}
        lengths: dict[str, int] = {}
        values: dict[str, dict[str, set[str]]] = {name: {} for name in spec.by}
        for row in rows:
            if row.prompt_id in clusters:
                continue
            clusters[row.prompt_id] = row.group or row.prompt_id
            lengths[row.prompt_id] = length_of(row)
            for name in spec.by:
                if value := _VALUES[name](row) if name != "length" else "":
                    values[name].setdefault(value, set()).add(row.prompt_id)
        if "length" in values:
            values["length"] = _by_length(lengths, spec.length_bounds)
        found = {f"{name}={value}": kept for name in spec.by for value, kept in _largest(values[name], spec)}
        return cls(clusters, {name: frozenset(found[name]) for name in sorted(found)})

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


def length_of(row: ValidatedRow) -> int:
    """Characters of a prompt, its system message left out: that may be the same for all."""
    return sum(len(message.content) for message in row.messages if message.role != "system")


def _turns(row: ValidatedRow) -> str:
    return "several" if sum(message.role == "user" for message in row.messages) > 1 else "one"


def _source(row: ValidatedRow) -> str:
    """The source without the place in it."""
    name, _, place = row.source.rpartition(":")
    return name if name and place.isdigit() else row.source


def _system(row: ValidatedRow) -> str:
    """The first words of the system message; texts that begin alike differ by their hash."""
    text = " ".join(row.messages[0].content.split()) if row.messages[0].role == "system" else "none"
    return text if len(text) <= _SHOWN_CHARS else f"{text[:_SHOWN_CHARS]}... {hash_text(text)[:6]}"


_VALUES: Mapping[str, Callable[[ValidatedRow], str]] = {
    "task": lambda row: row.task,
    "turns": _turns,
    "source": _source,
    "group": lambda row: row.group,
    "system": _system,
    "reference": lambda row: "no" if row.reference is None else "yes",
}
"""Field -> its value for a prompt; "" = the prompt is in no slice of the field."""


def _by_length(lengths: Mapping[str, int], bounds: tuple[int, int] | None) -> dict[str, set[str]]:
    """Short, medium and long prompts; without bounds a third each, as far as equal lengths allow."""
    ascending = sorted(lengths.values())
    if bounds is None and ascending:
        bounds = ascending[(len(ascending) - 1) // 3], ascending[2 * (len(ascending) - 1) // 3]
    found: dict[str, set[str]] = {}
    for prompt_id, length in lengths.items():
        place = 2 if bounds is None else (length > bounds[0]) + (length > bounds[1])
        found.setdefault(("short", "medium", "long")[place], set()).add(prompt_id)
    return found


def _largest(values: Mapping[str, set[str]], spec: SlicesSpec) -> list[tuple[str, set[str]]]:
    return sorted(values.items(), key=lambda item: (-len(item[1]), item[0]))[: spec.most_values]

"""What the teacher's API told about its own distributions (top_logprobs), in the tokens of the proxy.

The API has a tokenizer of its own. Its tokens and the proxy's are laid along the bytes of the text:

    API       | Tom | has |  twenty | - | two |
    proxy     | Tom | has |  tw | enty | -two |        evidence at "Tom", " has", " tw" and "-two"; none at "enty"

Where a token of each begins at the same byte, both have read the same text, and the API's alternatives say something
about the proxy's next token:

    exact      the alternative's bytes are one token of the proxy: it gets the probability
    leading    they are several: the first of them gets it
    joined     the token that stands there holds several of the API's: it gets the product of their probabilities
    dropped    neither, as with half a character: its probability stays with the tokens not listed

Where the proxy's token begins inside one of the API's there is no evidence. An exact counterpart is still not quite the
same event (the API may go on within a word where the proxy would have taken a longer token), which is why evidence has
a finite weight. Everything is counted.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from proxykd.artifacts import CompletionSet, batched
from proxykd.data.tokenizing import Example, TokenizedCorpus
from proxykd.estimation.posterior import Evidence
from proxykd.exceptions import ArtifactError
from proxykd.models.token_bytes import TokenBytes, token_bytes_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BATCH_ROWS = 256
_MAX_CACHED = 2**18
_SCHEMA = pa.schema(
    [
        ("positions", pa.list_(pa.int32())),
        ("counts", pa.list_(pa.int32())),
        ("token_ids", pa.list_(pa.int32())),
        ("probs", pa.list_(pa.float32())),
    ]
)


class Told(NamedTuple):
    """The evidence about one text, flattened over its positions.

    Attributes:
        positions: Completion tokens with evidence, ascending.
        counts: Entries of each.
        token_ids: The proxy's tokens.
        probs: Their probabilities, > 0; those of a position add up to 1 at most.
    """

    positions: list[int]
    counts: list[int]
    token_ids: list[int]
    probs: list[float]


class EvidenceReader:
    """Turns the API's rows into the proxy's tokens, and counts what became of them.

    Args:
        tokens: The proxy's vocabulary as bytes.

    Attributes:
        counts: Of ``texts``, ``texts_told``, ``texts_cut`` (the API's tokens spell another text from some byte on),
            ``positions``, ``positions_told``, and of alternatives by what became of them.
        mass: Probability of the alternatives by what became of them, summed over positions.
    """

    def __init__(self, tokens: TokenBytes) -> None:
        self._tokens = tokens
        self._ids = {value: idx for idx, value in reversed(list(enumerate(tokens.values))) if value}
        self._known: dict[bytes, tuple[int, str]] = {}
        self.counts: Counter[str] = Counter()
        self.mass: dict[str, float] = defaultdict(float)

    def read(self, completion_ids: Sequence[int], rows: Sequence[Mapping[str, Any]] | None) -> Told:
        """The evidence about one text.

        Args:
            completion_ids: The proxy's tokens of it, end of sequence included.
            rows: ``Completion.logprobs``; None = the API told nothing.
        """
        told = Told([], [], [], [])
        starts, spelled = self._spell(completion_ids)
        self.counts.update(texts=1, positions=len(completion_ids))
        if not rows:
            return told
        chosen = [row["bytes"] for row in rows]
        text = b"".join(chosen)
        agreed = _common_prefix(text, spelled)
        self.counts.update(texts_told=1, texts_cut=int(agreed < max(len(text), len(spelled))))
        begins = np.cumsum([0, *map(len, chosen)]).tolist()
        # A token without bytes begins where the next one does, which is the one that counts.
        place_of = {begin: place for place, begin in enumerate(begins[:-1]) if chosen[place]}
        for position, (start, end) in enumerate(pairwise(starts)):
            place = place_of.get(start)
            if place is None or start == end or max(end, begins[place + 1]) > agreed:
                continue
            entries = self._entries(rows, place, completion_ids[position], end - start)
            if entries:
                told.positions.append(position)
                told.counts.append(len(entries))
                told.token_ids.extend(entries)
                told.probs.extend(entries.values())
        self.counts["positions_told"] += len(told.positions)
        return told

    def sums(self) -> dict[str, Any]:
        """``counts`` and ``mass``, for ``evidence_facts``."""
        return {"counts": dict(self.counts), "mass": dict(self.mass)}

    def _spell(self, completion_ids: Sequence[int]) -> tuple[list[int], bytes]:
        """Where each token begins in the text's bytes, the end of the last one too; the text."""
        lengths = [len(self._tokens.spelled[idx]) for idx in completion_ids]
        spelled, skipped = self._tokens.join(completion_ids), 0
        if self._tokens.has_dummy_prefix and spelled.startswith(b" "):
            spelled, skipped = spelled[1:], 1
        return np.maximum(np.cumsum([0, *lengths]) - skipped, 0).tolist(), spelled

    def _entries(self, rows: Sequence[Mapping[str, Any]], place: int, token_id: int, length: int) -> dict[int, float]:
        """Token id -> probability at one position."""
        row, entries = rows[place], dict[int, float]()
        alternatives: dict[bytes, float] = {one["bytes"]: one["logprob"] for one in row["top"]}
        alternatives.setdefault(row["bytes"], row["logprob"])
        for data, logprob in alternatives.items():
            if data == row["bytes"]:
                kind, logprob = self._standing(rows, place, length)
                idx = token_id
            else:
                idx, kind = self._counterpart(data)
            prob = math.exp(min(logprob, 0.0))
            self.counts[kind] += 1
            self.mass[kind] += prob
            if idx >= 0 and prob > 0.0:
                entries[idx] = entries.get(idx, 0.0) + prob
        # Rounded log-probabilities may add up to a little more than 1.
        excess = max(1.0, sum(entries.values()))
        return {idx: prob / excess for idx, prob in entries.items()}

    def _standing(self, rows: Sequence[Mapping[str, Any]], place: int, length: int) -> tuple[str, float]:
        """What the API said of the token that stands there, which may hold several of its own."""
        covered, logprob, first = 0, 0.0, len(rows[place]["bytes"])
        while covered < length:
            covered, logprob = covered + len(rows[place]["bytes"]), logprob + min(rows[place]["logprob"], 0.0)
            place += 1
        return "exact" if first == length else "leading" if first > length else "joined", logprob

    def _counterpart(self, data: bytes) -> tuple[int, str]:
        """The proxy's token for the API's; -1 = none."""
        if (found := self._known.get(data)) is None:
            if len(self._known) >= _MAX_CACHED:
                self._known.clear()
            found = self._known[data] = self._find(data)
        return found

    def _find(self, data: bytes) -> tuple[int, str]:
        if (exact := self._ids.get(data)) is not None:
            return exact, "exact"
        try:
            ids = self._tokens.backend.encode(data.decode(), add_special_tokens=False).ids
        except UnicodeDecodeError:
            ids = []
        leads = bool(ids) and bool(first := self._tokens.spelled[ids[0]]) and data.startswith(first)
        return (ids[0], "leading") if leads else (-1, "dropped")


def evidence_facts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For ``targets.json``: counts, and shares of the positions and of the API's probability.

    Args:
        parts: ``EvidenceReader.sums`` of each portion of the texts.
    """
    counts, mass = Counter[str](), dict[str, float]()
    for part in parts:
        counts.update(part["counts"])
        for name, value in part["mass"].items():
            mass[name] = mass.get(name, 0.0) + value
    total = sum(mass.values())
    return {
        **{f"num_{name}": count for name, count in sorted(counts.items())},
        "position_share": counts["positions_told"] / max(1, counts["positions"]),
        "mass_shares": {name: value / total for name, value in sorted(mass.items())} if total else {},
    }


@dataclass
class ApiEvidence:
    """The evidence about a corpus, in a memory-mapped file: one row an example, in the corpus's order.

    Attributes:
        path: The file.
    """

    path: Path
    _sums: dict[str, Any] = field(repr=False)

    def __post_init__(self) -> None:
        self._table = pa.ipc.open_file(pa.memory_map(str(self.path))).read_all()
        self._ends = np.cumsum([len(chunk) for chunk in self._table.column(0).chunks])

    @classmethod
    def build(
        cls, completions: CompletionSet, corpus: TokenizedCorpus, tokenizer: "PreTrainedTokenizerBase", *, path: Path
    ) -> "ApiEvidence":
        """Read both in step, a batch of rows in memory at a time.

        Args:
            completions: Rows in the order in which those of ``corpus`` were made from them.
            corpus: Texts in the proxy's tokens.
            tokenizer: The proxy's.
            path: File to write.

        Raises:
            ArtifactError: if a text of the corpus is not among the completions, or comes in another order.
            ModelError: if the tokenizer does not tell its tokens' bytes.
        """
        reader = EvidenceReader(token_bytes_of(tokenizer))
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            told = (
                reader.read(example.completion_ids.tolist(), rows) for example, rows in _in_step(corpus, completions)
            )
            for batch in batched(told, _BATCH_ROWS):
                columns = [
                    pa.array(column, kind.type) for column, kind in zip(zip(*batch, strict=True), _SCHEMA, strict=True)
                ]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_SCHEMA))
        return cls(path, reader.sums())

    def sums(self) -> dict[str, Any]:
        """For ``evidence_facts``."""
        return self._sums

    def of(self, indices: Sequence[int], lengths: Sequence[int], *, device: torch.device) -> Evidence:
        """The evidence at the completion tokens of some examples, one after the other.

        Args:
            indices: Places of the examples in the corpus.
            lengths: Completion tokens of each.
            device: Where to.
        """
        starts = np.cumsum([0, *lengths])[:-1]
        parts = [self._row(index) for index in indices]
        rows = np.concatenate(
            [np.zeros(0, np.int64), *(start + part[0] for start, part in zip(starts, parts, strict=True))]
        )
        counts, ids, probs = (
            np.concatenate([np.zeros(0, kind), *(part[at] for part in parts)])
            for at, kind in ((1, np.int64), (2, np.int64), (3, np.float32))
        )
        width = int(counts.max(initial=1))
        shape = len(rows), width
        is_used = np.arange(width) < counts[:, None]
        dense_ids, dense_probs = np.full(shape, -1, np.int64), np.zeros(shape, np.float32)
        dense_ids[is_used], dense_probs[is_used] = ids, probs
        return Evidence(*(torch.from_numpy(array).to(device) for array in (rows, dense_ids, dense_probs)))

    def _row(self, index: int) -> list[NDArray[Any]]:
        chunk = int(np.searchsorted(self._ends, index, side="right"))
        found = []
        for column in self._table.columns:
            array = column.chunk(chunk)
            row = index - int(self._ends[chunk]) + len(array)
            found.append(array.values.to_numpy()[array.offsets[row].as_py() : array.offsets[row + 1].as_py()])
        return found


def _in_step(
    corpus: TokenizedCorpus, completions: CompletionSet
) -> Iterator[tuple[Example, Sequence[Mapping[str, Any]] | None]]:
    """Each example with what the API told about it."""
    rows = (
        row
        for batch in completions.batches(batch_rows=_BATCH_ROWS, columns=["prompt_id", "sample_idx", "logprobs"])
        for row in zip(*(batch.column(name) for name in ("prompt_id", "sample_idx", "logprobs")), strict=True)
    )
    for example in corpus:
        key = example.prompt_id, example.sample_idx
        found = next((told for prompt_id, idx, told in rows if (prompt_id.as_py(), idx.as_py()) == key), None)
        if found is None:
            raise ArtifactError(
                f"expected the completion of prompt {key[0]}, sample {key[1]} after those before it, found none; the "
                "rows were made from other completions: validate them again"
            )
        yield example, found.as_py()


def _common_prefix(first: bytes, second: bytes) -> int:
    if first == second:
        return len(first)
    length = min(len(first), len(second))
    differs = np.frombuffer(first[:length], np.uint8) != np.frombuffer(second[:length], np.uint8)
    return int(differs.argmax()) if differs.any() else length

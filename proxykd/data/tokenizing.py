"""Rows -> token ids, in one memory-mapped Arrow file.

Prompt and completion are tokenised separately and concatenated, so that the boundary between them never depends on
the completion's first characters; the completion is plain text (a special token spelled out in it stays spelled
out) and ends with the end-of-sequence token unless it was cut. Reading an example copies nothing.

A row whose parts count differently in the loss (``WeightedRow``) becomes an example with a weight a token: that of the
part in which the token's first character lies, whatever tokenizer cuts the text, and wherever it is cut off.

This module does not know batches, padding or labels.
"""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, overload

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from proxykd.artifacts import batched
from proxykd.data.chat import render_prompt
from proxykd.data.segments import WeightedRow, token_weights
from proxykd.exceptions import ArtifactError, ModelError
from proxykd.records import Outcome, ValidatedRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MIN_COMPLETION_TOKENS = 8
"""A prompt that leaves less room than this is skipped, unless its whole completion fits."""

_BATCH_ROWS = 256
_SCHEMA = pa.schema(
    [
        ("prompt_id", pa.string()),
        ("sample_idx", pa.int32()),
        ("prompt_ids", pa.list_(pa.int32())),
        ("completion_ids", pa.list_(pa.int32())),
        ("stage", pa.int32()),
        ("weights", pa.list_(pa.float32())),
    ]
)
_NOWHERE = (0, 0)
_COUNTS = ("num_skipped", "num_empty", "num_cut", "num_weightless")


class Example(NamedTuple):
    """One prompt and one completion as token ids.

    Attributes:
        prompt_id: 16 hex digits.
        sample_idx: Of the completion; negative = it is none of the teacher's completions but a trajectory.
        prompt_ids: int32 [num_prompt_tokens], read-only.
        completion_ids: int32 [num_completion_tokens], read-only; ends with eos unless it was cut.
        stage: Which teacher wrote it; 0 = the first one that the student learns from.
        weights: Weight of each completion token in the NLL, float32 [num_completion_tokens], >= 0 and not all 0,
            read-only; None = each weighs 1.
    """

    prompt_id: str
    sample_idx: int
    prompt_ids: NDArray[np.int32]
    completion_ids: NDArray[np.int32]
    stage: int = 0
    weights: NDArray[np.float32] | None = None


class _Tokenized(NamedTuple):
    example: Example | None
    is_empty: bool
    is_cut: bool


class _Columns(NamedTuple):
    prompt_id: pa.StringArray
    sample_idx: pa.Int32Array
    prompt_starts: NDArray[np.int32]
    prompt_values: NDArray[np.int32]
    completion_starts: NDArray[np.int32]
    completion_values: NDArray[np.int32]
    stages: NDArray[np.int32]
    weight_starts: NDArray[np.int32]
    weight_values: NDArray[np.float32]


class TokenizedCorpus(Sequence[Example]):
    """Tokenised examples in a memory-mapped file.

    Attributes:
        path: The file.
        prompt_lengths: Tokens in each prompt, int32 [num_examples].
        completion_lengths: Tokens in each completion, eos included, int32 [num_examples].
        lengths: Tokens of both, int32 [num_examples].
        stages: Which teacher wrote each, int32 [num_examples].
        is_weighted: Whether the tokens of each have weights of their own, bool [num_examples].
        weight_sums: Weights of all completion tokens of each, float64 [num_examples]; their number where each weighs 1.
        num_skipped: Rows left out: their prompt leaves no room for a completion, or their completion is empty, or none
            of its tokens has a weight.
        num_empty: Those of them whose completion is empty.
        num_weightless: Those of them none of whose tokens, as far as there is room for them, has a weight.
        num_cut: Examples whose completion was cut to ``max_seq_tokens``; what the teacher did not finish is not cut.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        reader = _open_reader(path)
        self._batches = [_columns_of(reader.get_batch(idx)) for idx in range(reader.num_record_batches - 1)]
        counts = reader.get_batch_with_custom_metadata(reader.num_record_batches - 1).custom_metadata
        self.num_skipped, self.num_empty, self.num_cut, self.num_weightless = (
            int(counts[name.encode()]) for name in _COUNTS
        )
        self.prompt_lengths = _lengths([batch.prompt_starts for batch in self._batches])
        self.completion_lengths = _lengths([batch.completion_starts for batch in self._batches])
        self.lengths = self.prompt_lengths + self.completion_lengths
        self.stages = np.concatenate([np.zeros(0, np.int32), *(batch.stages for batch in self._batches)])
        self.is_weighted, sums = _weights_of(self._batches)
        self.weight_sums = np.where(self.is_weighted, sums, self.completion_lengths)
        self._ends = np.cumsum([len(batch.sample_idx) for batch in self._batches], dtype=np.int64)

    @classmethod
    def build(
        cls, rows: Iterable[ValidatedRow], tokenizer: "PreTrainedTokenizerBase", *, max_seq_tokens: int, path: Path
    ) -> "TokenizedCorpus":
        """Tokenise ``rows`` into ``path`` and open it; holds one batch of rows in memory.

        Args:
            rows: In the order in which the examples will have.
            tokenizer: Must have an end-of-sequence token; for rows with weights, a fast one.
            max_seq_tokens: Longest prompt plus completion. Longer completions are cut and have no eos then; a prompt
                that leaves fewer than ``MIN_COMPLETION_TOKENS`` is skipped and counted, and so is an empty completion,
                or one of which no token that is left has a weight.
            path: File to write; complete or not there at all.

        Raises:
            ModelError: if the tokenizer has no end-of-sequence token, or cannot tell where a token with a weight of
                its own stands.
        """
        if tokenizer.eos_token_id is None:
            raise ModelError("expected a tokenizer with an end-of-sequence token, found none; set its eos_token")
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f"{path.name}.partial")
        counts = dict.fromkeys(_COUNTS, 0)
        with pa.OSFile(str(partial), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            for batch in batched(rows, _BATCH_ROWS):
                found = list(_tokenize(batch, tokenizer, max_seq_tokens))
                kept = [one for one in found if one.example is not None and _is_weighed(one.example)]
                examples = [one.example for one in kept if one.example is not None]
                counts["num_weightless"] += sum(one.example is not None for one in found) - len(examples)
                counts["num_skipped"] += len(batch) - len(examples)
                counts["num_empty"] += sum(one.is_empty for one in found)
                counts["num_cut"] += sum(one.is_cut for one in kept)
                if examples:
                    writer.write_batch(_record_batch(examples))
            told = {name: str(count) for name, count in counts.items()}
            writer.write_batch(_record_batch([]), custom_metadata=told)
        os.replace(partial, path)
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> "TokenizedCorpus":
        """The corpus that ``build`` wrote to ``path``.

        Raises:
            ArtifactError: if ``path`` is missing or is no such file.
        """
        return cls(path)

    def __len__(self) -> int:
        return len(self.prompt_lengths)

    @overload
    def __getitem__(self, index: int) -> Example: ...

    @overload
    def __getitem__(self, index: slice) -> list[Example]: ...

    def __getitem__(self, index: int | slice) -> Example | list[Example]:
        if isinstance(index, slice):
            return [self[idx] for idx in range(*index.indices(len(self)))]
        idx = index + len(self) if index < 0 else index
        if not 0 <= idx < len(self):
            raise IndexError(f"example {index} of {len(self)}")
        batch_idx = int(np.searchsorted(self._ends, idx, side="right"))
        batch = self._batches[batch_idx]
        return _example(batch, idx - int(self._ends[batch_idx]) + len(batch.sample_idx))


def _open_reader(path: Path) -> pa.ipc.RecordBatchFileReader:
    try:
        return pa.ipc.open_file(pa.memory_map(str(path)))
    except (OSError, pa.ArrowInvalid) as error:
        raise ArtifactError(f"expected a tokenised corpus at {path}: {error}; build it again") from None


def _columns_of(batch: pa.RecordBatch) -> _Columns:
    prompts, completions, weights = (batch.column(name) for name in ("prompt_ids", "completion_ids", "weights"))
    return _Columns(
        batch.column("prompt_id"),
        batch.column("sample_idx"),
        prompts.offsets.to_numpy(),
        prompts.values.to_numpy(),
        completions.offsets.to_numpy(),
        completions.values.to_numpy(),
        batch.column("stage").to_numpy(),
        weights.offsets.to_numpy(),
        weights.values.to_numpy(),
    )


def _lengths(starts: list[NDArray[np.int32]]) -> NDArray[np.int32]:
    return np.concatenate([np.zeros(0, np.int32), *(np.diff(offsets) for offsets in starts)]).astype(np.int32)


def _weights_of(batches: list[_Columns]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """Whether each example has weights, and their sum."""
    is_weighted, sums = [np.zeros(0, np.bool_)], [np.zeros(0)]
    for batch in batches:
        totals = np.concatenate([np.zeros(1), np.cumsum(batch.weight_values, dtype=np.float64)])
        is_weighted.append(np.diff(batch.weight_starts) > 0)
        sums.append(np.diff(totals[batch.weight_starts]))
    return np.concatenate(is_weighted), np.concatenate(sums)


def _example(batch: _Columns, row: int) -> Example:
    prompt = slice(batch.prompt_starts[row], batch.prompt_starts[row + 1])
    completion = slice(batch.completion_starts[row], batch.completion_starts[row + 1])
    weights = batch.weight_values[batch.weight_starts[row] : batch.weight_starts[row + 1]]
    return Example(
        batch.prompt_id[row].as_py(),
        batch.sample_idx[row].as_py(),
        batch.prompt_values[prompt],
        batch.completion_values[completion],
        int(batch.stages[row]),
        weights if len(weights) else None,
    )


def _tokenize(
    rows: Sequence[ValidatedRow], tokenizer: "PreTrainedTokenizerBase", max_seq_tokens: int
) -> Iterator[_Tokenized]:
    prompts = [render_prompt(tokenizer, row.messages) for row in rows]
    prompt_ids = tokenizer(prompts, add_special_tokens=False).input_ids
    needs_offsets = any(isinstance(row, WeightedRow) for row in rows)
    if needs_offsets and not tokenizer.is_fast:
        raise ModelError(
            f"expected a fast tokenizer, which can tell where the tokens of a trajectory stand, got "
            f"{type(tokenizer).__name__}; give the model a tokenizer.json, or leave out student.trajectories"
        )
    completions = tokenizer(
        [row.text for row in rows],
        add_special_tokens=False,
        split_special_tokens=True,
        return_offsets_mapping=needs_offsets,
    )
    for idx, (row, prompt, completion) in enumerate(zip(rows, prompt_ids, completions.input_ids, strict=True)):
        # A text that the teacher did not finish does not teach where to end.
        whole = completion if row.outcome == Outcome.TRUNCATED else [*completion, tokenizer.eos_token_id]
        room = max_seq_tokens - len(prompt)
        example = None
        if prompt and completion and room >= min(len(whole), MIN_COMPLETION_TOKENS):
            cut = np.asarray(whole[:room], np.int32)
            weights = None
            if isinstance(row, WeightedRow):
                offsets = [*completions.offset_mapping[idx], _NOWHERE][: len(cut)]
                weights = token_weights(offsets, row.spans)
            example = Example(row.prompt_id, row.sample_idx, np.asarray(prompt, np.int32), cut, row.stage, weights)
        yield _Tokenized(example, not completion, example is not None and len(whole) > room)


def _is_weighed(example: Example) -> bool:
    return example.weights is None or bool(example.weights.any())


def _record_batch(examples: Sequence[Example]) -> pa.RecordBatch:
    columns = list(zip(*examples, strict=True)) or [()] * len(_SCHEMA)
    return pa.RecordBatch.from_arrays(
        [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)], schema=_SCHEMA
    )

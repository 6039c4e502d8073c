"""N-gram counts over the teacher's corpus, on disk: how often each token followed each context.

Counted are the tokens of completions, never those of prompts; a context may reach back into the prompt but never into
another example. At a position of a completion, with the k tokens before it as context (methods: Proxy-KD version 1),

    c(w) = #{counted positions with that context where w stands},   C = sum_w c(w)

for every k from 0 to ``order``. A context of k >= 2 tokens is kept if its last k - 1 tokens were seen at least twice:
what was seen once has one continuation, which a longer context cannot refine.

Counting sorts positions (``ngram_counting``), in chunks that share the token before them, so that memory depends on
the size of a chunk and of the most frequent token's share, not on the corpus; the text itself lies in a mapped file
meanwhile. The result does not depend on the order of the examples.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.artifacts import batched
from proxykd.data.tokenizing import Example
from proxykd.estimation.ngram_files import ArrayFile, describe, new_folder, open_array, read_description
from proxykd.exceptions import ArtifactError, InputError

CHUNK_POSITIONS = 2**21
"""Positions that one thread sorts at a time, unless a single token precedes more."""

_THREADS = 2
_BATCH_EXAMPLES = 1024
_MAX_ROWS = 2**32 - 1
_ARRAYS = ("roots", "contexts", "entries", "unigrams", "ranked", "examples")


class Trie(NamedTuple):
    """The arrays that a lookup walks through (records and lists as in ``ngram_counting``).

    Attributes:
        roots: Context of order 1 that a token makes, int64 [vocab]; -1 = never seen.
        contexts: Records, uint32 [num_contexts, 4].
        entries: Lists, uint32 [num_entries, 2].
        unigrams: Occurrences of each token, int64 [vocab].
        ranked: Tokens that occur, the most frequent first, int32 [num_distinct].
    """

    roots: NDArray[np.int64]
    contexts: NDArray[np.uint32]
    entries: NDArray[np.uint32]
    unigrams: NDArray[np.int64]
    ranked: NDArray[np.int32]


class _Text(NamedTuple):
    tokens: NDArray[np.int32]
    spans: NDArray[np.int64]
    examples: NDArray[np.uint64]


class _Chunk(NamedTuple):
    contexts: NDArray[np.uint32]
    entries: NDArray[np.uint32]
    num_roots: int


@dataclass(frozen=True, slots=True, eq=False)
class NgramCounts:
    """Counts that any number of processes may read.

    Attributes:
        order: Tokens of the longest context.
        num_tokens: Positions counted.
        num_examples: Examples counted.
        trie: Contexts and what follows them.
    """

    order: int
    num_tokens: int
    num_examples: int
    trie: Trie
    _examples: NDArray[np.uint64]

    @classmethod
    def build(
        cls, examples: Iterable[Example], order: int, folder: Path, *, chunk_positions: int = CHUNK_POSITIONS
    ) -> "NgramCounts":
        """Count ``examples`` into ``folder`` and open it.

        Args:
            examples: In any order; read once.
            order: Tokens of the longest context, >= 0.
            folder: Replaced once everything is counted; complete or not there at all.
            chunk_positions: Positions sorted at a time; about 60 bytes of memory each, on two threads.

        Raises:
            InputError: if no token is counted, a token id is negative, or the corpus is too large for the format.
        """
        if order < 0:
            raise InputError(f"expected an order >= 0, got {order}")
        with new_folder(folder) as partial:
            _count(examples, order, partial, chunk_positions)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> "NgramCounts":
        """The counts that ``build`` wrote; every byte is compared with its checksum once.

        Raises:
            ArtifactError: if a file is missing, cut short, changed or of another format.
        """
        description = read_description(folder)
        try:
            arrays = {name: open_array(folder, name, description["arrays"][name]) for name in _ARRAYS}
            facts = (int(description[name]) for name in ("order", "num_tokens", "num_examples"))
            return cls(*facts, Trie(*(arrays[name] for name in Trie._fields)), arrays["examples"])
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"expected n-gram counts in {folder}, missing is {error}; count them again") from None

    def is_counted(self, example: Example) -> bool:
        """Whether ``example`` is one of those counted.

        Raises:
            InputError: if the same prompt id and sample index were counted with another text.
        """
        name, text = _fingerprint(example)
        rows = self._examples
        low, high = (int(np.searchsorted(rows[:, 0], name, side)) for side in ("left", "right"))
        if low < high and text not in rows[low:high, 1]:
            raise InputError(
                f"expected prompt {example.prompt_id}, sample {example.sample_idx} as it was counted, got other tokens; "
                "count and look up the same corpus"
            )
        return low < high


def _count(examples: Iterable[Example], order: int, folder: Path, chunk_positions: int) -> None:
    from proxykd.estimation.ngram_counting import count_tokens

    raw = folder / "tokens"
    text = _write_text(examples, order, raw)
    vocab_size = int(text.tokens.max(initial=-1)) + 1
    unigrams, previous = np.zeros(vocab_size, np.int64), np.zeros(vocab_size, np.int64)
    count_tokens(text.tokens, text.spans, unigrams, previous)
    num_tokens = int(unigrams.sum())
    if not num_tokens:
        raise InputError("expected completions to count, found none; give the prior a corpus with texts")
    if max(len(text.tokens), num_tokens) > _MAX_ROWS:
        raise InputError(f"expected at most {_MAX_ROWS} tokens, got {len(text.tokens)}; count a part of the corpus")
    bits = max(1, (vocab_size - 1).bit_length())
    roots = np.full(vocab_size, -1, np.int64)
    contexts = ArrayFile(folder / "contexts.npy", "<u4", (4,))
    entries = ArrayFile(folder / "entries.npy", "<u4", (2,))
    bounds = list(_chunk_bounds(previous, chunk_positions, 2 ** (64 - 2 * bits))) if order else []
    for chunk in _in_parallel(text, bounds, previous, order, bits):
        _append(chunk, contexts, entries, roots)
    arrays = {"contexts": contexts.close(), "entries": entries.close()}
    ranked = np.lexsort((np.arange(vocab_size), -unigrams))[: np.count_nonzero(unigrams)]
    for name, array, dtype in (
        ("roots", roots, "<i8"),
        ("unigrams", unigrams, "<i8"),
        ("ranked", ranked, "<i4"),
        ("examples", text.examples, "<u8"),
    ):
        file = ArrayFile(folder / f"{name}.npy", dtype, array.shape[1:])
        file.append(array)
        arrays[name] = file.close()
    raw.unlink()
    facts = {"order": order, "vocab_size": vocab_size, "num_tokens": num_tokens, "num_examples": len(text.spans)}
    describe(folder, facts, arrays)


def _write_text(examples: Iterable[Example], order: int, path: Path) -> _Text:
    """Every completion with the last ``order`` tokens before it, one after another in a mapped file."""
    spans, names, end = [], [], 0
    with path.open("wb") as file:
        for batch in batched(examples, _BATCH_EXAMPLES):
            tails = [example.prompt_ids[max(0, len(example.prompt_ids) - order) :] for example in batch]
            starts = np.array([len(tail) + 1 for tail in tails], np.int64)
            lengths = np.array([len(example.completion_ids) for example in batch], np.int64)
            ends = end + np.cumsum(starts + lengths)
            spans.append(np.stack([ends - lengths, ends], 1))
            names.append(np.array([_fingerprint(example) for example in batch], np.uint64))
            end = int(ends[-1])
            parts = [
                part for pair in zip(tails, batch, strict=True) for part in (_BREAK, pair[0], pair[1].completion_ids)
            ]
            tokens = np.concatenate(parts).astype(np.int32)
            if np.count_nonzero(tokens < 0) > len(batch):
                raise InputError("expected token ids >= 0 in the corpus, got a negative one; tokenise it again")
            file.write(tokens.tobytes())
    if not end:
        raise InputError("expected examples to count, found none; give the prior a corpus with texts")
    rows = np.concatenate(names)
    mapped = np.asarray(np.memmap(path, np.int32, "r"))
    return _Text(mapped, np.concatenate(spans), rows[np.lexsort((rows[:, 1], rows[:, 0]))])


_BREAK = np.array([-1], np.int32)


def _fingerprint(example: Example) -> tuple[int, int]:
    """64 bits of the example's name, and of its tokens."""
    name = blake2b(f"{example.prompt_id}/{example.sample_idx}".encode(), digest_size=8)
    text = blake2b(np.int64(len(example.prompt_ids)).tobytes(), digest_size=8)
    text.update(np.ascontiguousarray(example.prompt_ids, np.int32))
    text.update(np.ascontiguousarray(example.completion_ids, np.int32))
    return int.from_bytes(name.digest(), "little"), int.from_bytes(text.digest(), "little")


def _chunk_bounds(previous: NDArray[np.int64], chunk_positions: int, largest: int) -> Iterator[tuple[int, int]]:
    """Ranges of tokens that precede about ``chunk_positions`` counted positions each."""
    if previous.max() > largest:
        raise InputError(
            f"expected every token to precede at most {largest} others, one precedes {previous.max()}; "
            "count a part of the corpus"
        )
    size, low = 0, 0
    for token, count in enumerate(previous.tolist()):
        if size and size + count > min(chunk_positions, largest):
            yield low, token
            size, low = 0, token
        size += count
    if size:
        yield low, len(previous)


def _in_parallel(
    text: _Text, bounds: list[tuple[int, int]], previous: NDArray[np.int64], order: int, bits: int
) -> Iterator[_Chunk]:
    """The chunks in the order of ``bounds``; the compiled code runs beside other threads."""
    waiting: deque[Future[_Chunk]] = deque()
    with ThreadPoolExecutor(_THREADS) as pool:
        for low, high in bounds:
            size = int(previous[low:high].sum())
            waiting.append(pool.submit(_count_chunk, text, low, high, size, order, bits))
            if len(waiting) > _THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _count_chunk(text: _Text, low: int, high: int, size: int, order: int, bits: int) -> _Chunk:
    """Contexts whose last token lies in ``low .. high - 1``, order by order, and a last record that closes them."""
    from proxykd.estimation.ngram_counting import extend_contexts, select_positions

    positions = np.empty(size, np.uint32)
    select_positions(text.tokens, text.spans, low, high, positions)
    ends, blocks, lists, num_contexts, num_entries, num_roots = np.array([size]), [], [], 0, 0, 0
    parents = np.zeros(1, np.intp)
    for distance in range(1, order + 1):
        positions = positions[: ends[-1]] if len(ends) else positions[:0]
        contexts, entries = np.empty((len(positions), 4), np.uint32), np.empty((2 * len(positions), 2), np.uint32)
        children, next_ends = np.zeros(len(ends), np.int64), np.empty(len(positions), np.int64)
        counts = extend_contexts(text.tokens, distance, bits, positions, ends, contexts, entries, children, next_ends)
        contexts, entries, ends = (
            contexts[: counts[0]].copy(),
            entries[: counts[1]].copy(),
            next_ends[: counts[2]].copy(),
        )
        contexts[:, 2] += np.uint32(num_entries)
        if blocks:
            of_each = np.zeros(len(blocks[-1]), np.int64)
            of_each[parents] = children
            blocks[-1][:, 3] = num_contexts + np.cumsum(of_each) - of_each
        parents = np.flatnonzero(contexts[:, 1] > 1)
        num_roots = num_roots or len(contexts)
        num_contexts, num_entries = num_contexts + len(contexts), num_entries + len(entries)
        blocks.append(contexts)
        lists.append(entries)
    blocks[-1][:, 3] = num_contexts
    blocks.append(np.array([[0, 0, num_entries, num_contexts]], np.uint32))
    return _Chunk(np.concatenate(blocks), np.concatenate(lists), num_roots)


def _append(chunk: _Chunk, contexts: ArrayFile, entries: ArrayFile, roots: NDArray[np.int64]) -> None:
    if contexts.num_rows + len(chunk.contexts) > _MAX_ROWS or entries.num_rows + len(chunk.entries) > _MAX_ROWS:
        raise InputError(f"expected at most {_MAX_ROWS} contexts, found more; lower the order or count fewer texts")
    roots[chunk.contexts[: chunk.num_roots, 0]] = contexts.num_rows + np.arange(chunk.num_roots)
    chunk.contexts[:, 2] += np.uint32(entries.num_rows)
    chunk.contexts[:, 3] += np.uint32(contexts.num_rows)
    contexts.append(chunk.contexts)
    entries.append(chunk.entries)

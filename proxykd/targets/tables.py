"""The fitted model of a coded store: what is likely where, and the code lengths that follow from it.

Fitted once, on the first samples, and kept beside the shards: how often each token stands in a row (the ranking of the
vocabulary), which tokens stand in the rows after each token of the text (lists), and a static table of slots for every
context of the coder. A store written by several workers may share one.
"""

import hashlib
import json
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxykd.exceptions import ArtifactError
from proxykd.targets.kernels import (
    END,
    END_VALUE,
    ESCAPE,
    ESCAPE_BITS,
    ESCAPED,
    GAP_TABLES,
    GAPS,
    LARGEST,
    LEFT_BUCKETS,
    LIST_ZONES,
    NUM_CONTEXTS,
    NUM_SYMBOLS,
    RANK_ZONES,
    SCALE_BITS,
    TABLE_SHIFT,
)

VERSION = 2
_MAGIC = b"PXTABLE1"


@dataclass(frozen=True)
class Tables:
    """The model's arrays.

    Attributes:
        token_of: int32 [vocab]: rank -> token id, most frequent first.
        list_starts: int64 [vocab + 2]: where the list of each context begins; context ``vocab`` is the beginning.
        list_ids: int32 [entries].
        list_zones: uint8 [entries]: -2 log2 of the probability, rounded.
        table_of: uint8 [contexts]: which of the tables codes a context.
        widths: int32 [tables, symbols]: slots of each symbol, 2**SCALE_BITS a table.
    """

    token_of: NDArray[np.int32]
    list_starts: NDArray[np.int64]
    list_ids: NDArray[np.int32]
    list_zones: NDArray[np.uint8]
    table_of: NDArray[np.uint8]
    widths: NDArray[np.int32]

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return len(self.token_of)

    @cached_property
    def model(self) -> tuple[NDArray[Any], ...]:
        """What ``write_kernels`` calls model: the entries' tokens and contexts, where lists begin in them, ranks.

        An entry is a candidate: first the vocabulary by rank, then the list of each context with an end mark, which no
        row names; its context, the first of gaps, is nobody else's.
        """
        size, lengths = self.vocab_size, np.diff(self.list_starts)
        owners = np.repeat(np.arange(size + 1), lengths)
        places = np.arange(len(self.list_ids)) + size + owners
        tokens = np.zeros(size + len(self.list_ids) + size + 2, np.int32)
        contexts = np.full(len(tokens), GAPS, np.int32)
        tokens[:size], tokens[places] = self.token_of, self.list_ids
        left = self.list_starts[owners + 1] - np.arange(len(self.list_ids))
        buckets = np.minimum(np.frexp(left.astype(np.float64))[1].astype(np.int64), LEFT_BUCKETS - 1)
        contexts[:size] = GAPS + (LIST_ZONES + rank_zones(np.arange(size))) * LEFT_BUCKETS
        contexts[places] = GAPS + self.list_zones.astype(np.int64) * LEFT_BUCKETS + buckets
        rank_of = np.empty_like(self.token_of)
        rank_of[self.token_of] = np.arange(size, dtype=np.int32)
        return tokens, contexts, self.list_starts[:-1] + size + np.arange(size + 1), rank_of

    @cached_property
    def reader(self) -> tuple[NDArray[Any], ...]:
        """What ``read_kernels.read_rows`` calls reader: entries with their tables, where lists begin, slots.

        A slot holds all that decoding a number takes: width, place within it, number of plain bits, what to add.
        """
        tokens, contexts, list_starts, _ = self.model
        entries = (self.table_of[contexts].astype(np.uint32) << TABLE_SHIFT) | tokens.astype(np.uint32)
        symbol = np.arange(NUM_SYMBOLS, dtype=np.int64)
        num_bits = np.where(symbol < 16, 0, (symbol - 16) // 4 + 2)
        base = np.where(symbol < 16, symbol, (4 + (symbol & 3)) << num_bits)
        num_bits[END:], base[END:] = (0, ESCAPE_BITS), (END_VALUE, ESCAPED)
        whole = np.stack([np.repeat(symbol, widths) for widths in self.widths])
        within = np.arange(1 << SCALE_BITS) - np.take_along_axis(self._starts, whole, 1)
        widths = np.take_along_axis(self.widths, whole, 1).astype(np.int64)
        slots = widths | (within.astype(np.int64) << 11) | (num_bits[whole] << 21) | (base[whole] << 26)
        return entries, list_starts, slots.ravel()

    @cached_property
    def coder(self) -> tuple[NDArray[Any], ...]:
        """What ``write_kernels.pack`` takes: the table of each context, starts and widths of the symbols' slots."""
        return self.table_of.copy(), self._starts, self.widths.copy()

    @cached_property
    def _starts(self) -> NDArray[np.int32]:
        return (np.cumsum(self.widths, axis=1) - self.widths).astype(np.int32)

    def to_bytes(self) -> bytes:
        """The tables as a file: magic, version, length and CRC-32 of what follows, then the deflated arrays."""
        arrays = {name: getattr(self, name) for name in self.__dataclass_fields__}
        described = {name: [str(array.dtype), *array.shape] for name, array in arrays.items()}
        head = json.dumps(described).encode()
        body = zlib.compress(len(head).to_bytes(4, "little") + head + b"".join(a.tobytes() for a in arrays.values()), 6)
        return _MAGIC + VERSION.to_bytes(4, "little") + len(body).to_bytes(8, "little") + _crc(body) + body

    @classmethod
    def from_bytes(cls, data: bytes, *, path: Path) -> "Tables":
        """The tables that ``to_bytes`` wrote.

        Raises:
            ArtifactError: if the file is cut short, damaged or of another version; ``path`` names it.
        """
        if data[:8] != _MAGIC:
            raise ArtifactError(f"expected the tables of a target store in {path}, found another file")
        if (version := int.from_bytes(data[8:12], "little")) != VERSION:
            raise ArtifactError(
                f"expected tables of version {VERSION} in {path}, found {version}; write the targets again"
            )
        body = data[24:]
        if len(body) != int.from_bytes(data[12:20], "little") or _crc(body) != data[20:24]:
            raise ArtifactError(f"the tables in {path} are cut short or damaged; copy the store again or write it anew")
        raw = zlib.decompress(body)
        end = 4 + int.from_bytes(raw[:4], "little")
        arrays = {}
        for name, (dtype, *shape) in json.loads(raw[4:end]).items():
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            arrays[name] = np.frombuffer(raw[end : end + size], dtype).reshape(shape)
            end += size
        tables = cls(**arrays)
        tables._check(path)
        return tables

    def _check(self, path: Path) -> None:
        """The compiled loops index by these numbers without looking: none may lead outside."""
        size, entries = self.vocab_size, len(self.list_ids)
        ends = self.list_starts[[0, -1]].tolist() if len(self.list_starts) == size + 2 else None
        sound = (
            0 < size <= LARGEST
            and ends == [0, entries]
            and bool((np.diff(self.list_starts) >= 0).all())
            and np.array_equal(np.sort(self.token_of), np.arange(size))
            and len(self.list_zones) == entries
            and int(self.list_ids.min(initial=0)) >= 0
            and int(self.list_ids.max(initial=0)) < size
            and int(self.list_zones.max(initial=0)) < LIST_ZONES
            and self.table_of.shape == (NUM_CONTEXTS,)
            and self.widths.shape == (GAPS + GAP_TABLES, NUM_SYMBOLS)
            and int(self.table_of.max()) < len(self.widths)
            and np.array_equal(self.table_of[:GAPS], np.arange(GAPS))
            and int(self.widths.min()) >= 0
            and bool((self.widths.sum(1) == 1 << SCALE_BITS).all())
            and bool((self.widths[:, ESCAPE] > 0).all())
        )
        if not sound:
            raise ArtifactError(f"the tables in {path} contradict themselves; write the targets again")


def rank_zones(ranks: NDArray[np.int64]) -> NDArray[np.int64]:
    """2 log2(rank + 1), rounded down to a half: two zones an octave, RANK_ZONES in all."""
    values = np.asarray(ranks, np.int64) + 1
    exponents = np.frexp(values.astype(np.float64))[1].astype(np.int64) - 1
    zones = 2 * exponents + np.where(exponents > 0, (values >> np.maximum(exponents - 1, 0)) & 1, 0)
    return np.minimum(zones, RANK_ZONES - 1)


def table_file(data: bytes) -> str:
    """The file's name, which is a digest of its content; every shard coded with it says so."""
    return f"tables-{hashlib.blake2b(data, digest_size=12).hexdigest()}.tables"


def _crc(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")

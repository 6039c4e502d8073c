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
    COARSE_BITS,
    NUM_SYMBOLS,
    SCALE_BITS,
)

VERSION = 1
_MAGIC = b"PXTABLE1"


@dataclass(frozen=True)
class Tables:
    """The model's arrays.

    Attributes:
        token_of: int32 [vocab]: rank -> token id, most frequent first.
        list_starts: int64 [vocab + 2]: where the list of each context begins; context ``vocab`` is the beginning.
        list_ids: int32 [entries].
        list_zones: uint8 [entries]: -2 log2 of the probability, rounded.
        boost: uint8 [RANK_ZONES]: the zone in lists of a previous row's token of that rank zone.
        widths: int32 [contexts, symbols]: slots of each symbol, 2**SCALE_BITS a context.
    """

    token_of: NDArray[np.int32]
    list_starts: NDArray[np.int64]
    list_ids: NDArray[np.int32]
    list_zones: NDArray[np.uint8]
    boost: NDArray[np.uint8]
    widths: NDArray[np.int32]

    @property
    def vocab_size(self) -> int:
        """Tokens in the vocabulary."""
        return len(self.token_of)

    @cached_property
    def model(self) -> tuple[NDArray[Any], ...]:
        """What ``write_kernels`` calls model."""
        rank_of = np.empty_like(self.token_of)
        rank_of[self.token_of] = np.arange(self.vocab_size, dtype=np.int32)
        return self.list_starts, self.list_ids, self.list_zones, rank_of, self.token_of, self.boost

    @cached_property
    def coder(self) -> tuple[NDArray[Any], ...]:
        """What ``read_kernels.read_rows`` calls coder: symbol at every slot, widths and starts."""
        symbols = np.arange(NUM_SYMBOLS, dtype=np.uint8)
        symbol_at = np.stack([np.repeat(symbols, widths)[:: 1 << (SCALE_BITS - COARSE_BITS)] for widths in self.widths])
        slots = (self.widths.astype(np.uint32) << 16) | self.starts.astype(np.uint32)
        return symbol_at.ravel(), slots.ravel()

    @cached_property
    def starts(self) -> NDArray[np.int32]:
        """int32 [contexts, symbols]: the first slot of each symbol."""
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
        return cls(**arrays)


def table_file(data: bytes) -> str:
    """The file's name, which is a digest of its content; every shard coded with it says so."""
    return f"tables-{hashlib.blake2b(data, digest_size=12).hexdigest()}.tables"


def _crc(body: bytes) -> bytes:
    return zlib.crc32(body).to_bytes(4, "little")

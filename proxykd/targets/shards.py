"""Files of checksummed blocks: the container of every format.

    shard   magic, version, a JSON header with its CRC-32, then blocks
    block   u32 size of the body, u32 CRC-32 of size and body, body
    body    i32 positions, i32 sample index, f64 log-likelihood, u16 length of the prompt id, prompt id, payload

A block is one sample and says whose: the index can be made from the shards alone, and a shard whose writer was killed
is whole up to its last whole block.
"""

import json
import mmap
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from proxykd.exceptions import ArtifactError

VERSION = 1
_MAGIC = b"PXSHARD1"
_HEAD = struct.Struct("<8sIII")
_PRELUDE = struct.Struct("<II")
_BODY = struct.Struct("<iidH")


class Block(NamedTuple):
    """One sample in a shard.

    Attributes:
        prompt_id: With ``sample_idx`` its key.
        sample_idx: See ``prompt_id``.
        sequence_logprob: Log-likelihood of the text, nats.
        length: Positions.
        offset: Where the block begins in the file.
        end: Where it ends.
        payload: The bytes of its format.
    """

    prompt_id: str
    sample_idx: int
    sequence_logprob: float
    length: int
    offset: int
    end: int
    payload: bytes


def shard_header(header: dict[str, Any]) -> bytes:
    """The first bytes of a shard."""
    body = json.dumps(header, sort_keys=True).encode()
    return _HEAD.pack(_MAGIC, VERSION, len(body), zlib.crc32(body)) + body


def block_bytes(prompt_id: str, sample_idx: int, sequence_logprob: float, length: int, payload: bytes) -> bytes:
    """A block as it stands in a shard."""
    name = prompt_id.encode()
    body = _BODY.pack(length, sample_idx, sequence_logprob, len(name)) + name + payload
    return _PRELUDE.pack(len(body), _crc(len(body), body)) + body


def _crc(size: int, body: bytes) -> int:
    return zlib.crc32(body, zlib.crc32(size.to_bytes(4, "little")))


class Shard:
    """A shard, memory-mapped for reading.

    Attributes:
        path: The file.
        header: Its JSON header.
        size: Bytes in the file when it was opened.

    Raises:
        ArtifactError: if the file is missing, is no shard, or its header is damaged or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with path.open("rb") as file:
                self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"expected a shard of targets in {path}: {error}; estimate them again") from error
        self.size = len(self._data)
        self.header, self._start = self._read_header()

    def _read_header(self) -> tuple[dict[str, Any], int]:
        if self.size < _HEAD.size or self._data[:8] != _MAGIC:
            raise ArtifactError(f"expected a shard of targets in {self.path}, found another file; estimate them again")
        _, version, length, crc = _HEAD.unpack_from(self._data)
        if version != VERSION:
            raise ArtifactError(
                f"expected shards of version {VERSION}, found {version} in {self.path}; estimate the targets again"
            )
        body = self._data[_HEAD.size : _HEAD.size + length]
        if zlib.crc32(body) != crc:
            raise ArtifactError(f"the header of {self.path} is damaged; copy the store again or estimate it anew")
        return json.loads(body), _HEAD.size + length

    def block(self, offset: int) -> Block:
        """The block at an offset.

        Raises:
            ArtifactError: if there is no whole, undamaged block.
        """
        if 0 < offset <= self.size - _PRELUDE.size:
            size, crc = _PRELUDE.unpack_from(self._data, offset)
            begin = offset + _PRELUDE.size
            if _BODY.size <= size <= self.size - begin:
                body = self._data[begin : begin + size]
                if _crc(size, body) == crc:
                    return _parse(body, offset, begin + size)
        raise ArtifactError(
            f"expected a whole block at byte {offset} of {self.path}, found damage (its checksum or its end is wrong); "
            "copy the store again or estimate the targets anew"
        )

    def blocks(self, end: int | None = None) -> Iterator[Block]:
        """All blocks in order, those before byte ``end`` if it is given.

        Raises:
            ArtifactError: at the first that is not whole.
        """
        offset = self._start
        while offset < (self.size if end is None else end):
            block = self.block(offset)
            yield block
            offset = block.end

    def whole_end(self) -> int:
        """Where the last whole block ends, counted from the front: what lies beyond was never finished."""
        end = self._start
        try:
            for block in self.blocks():
                end = block.end
        except ArtifactError:
            return end
        return end


def _parse(body: bytes, offset: int, end: int) -> Block:
    length, sample_idx, logprob, size = _BODY.unpack_from(body)
    text_end = _BODY.size + size
    return Block(body[_BODY.size : text_end].decode(), sample_idx, logprob, length, offset, end, body[text_end:])

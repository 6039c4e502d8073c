"""What of SPDY/3.1 ``kubectl port-forward`` speaks: streams of bytes on one connection, and their compressed headers.

Reference: SPDY Protocol - Draft 3.1 (Belshe and Peon), sections 2.2 (frames), 2.6 (control frames), 2.6.10 (headers).
"""

import struct
import threading
import zlib
from collections.abc import Mapping
from typing import BinaryIO, NamedTuple

SYN_STREAM, SYN_REPLY, RST_STREAM, PING = 1, 2, 3, 6
DATA = 0
FIN = 0x01
_VERSION, _CONTROL = 3, 0x8000
_METHODS = "options head post put delete trace"
_HEADERS = (
    "accept accept-charset accept-encoding accept-language accept-ranges age allow authorization cache-control "
    "connection content-base content-encoding content-language content-length content-location content-md5 "
    "content-range content-type date etag expect expires from host if-match if-modified-since if-none-match if-range "
    "if-unmodified-since last-modified location max-forwards pragma proxy-authenticate proxy-authorization range "
    "referer retry-after server te trailer transfer-encoding upgrade user-agent vary via warning www-authenticate "
    "method get status"
)
_WORDS = (*_METHODS.split(), *_HEADERS.split(), "200 OK", "version", "HTTP/1.1", "url", "public", "set-cookie",
          "keep-alive", "origin")  # fmt: skip
_REST = (
    "100101201202205206300302303304305306307402405406407408409410411412413414415416417502504505"
    "203 Non-Authoritative Information204 No Content301 Moved Permanently400 Bad Request401 Unauthorized403 Forbidden"
    "404 Not Found500 Internal Server Error501 Not Implemented503 Service UnavailableJan Feb Mar Apr May Jun Jul Aug "
    "Sept Oct Nov Dec 00:00:00 Mon, Tue, Wed, Thu, Fri, Sat, Sun, GMTchunked,text/html,image/png,image/jpg,image/gif,"
    "application/xml,application/xhtml+xml,text/plain,text/javascript,publicprivatemax-age=gzip,deflate,sdch"
    "charset=utf-8charset=iso-8859-1,utf-,*,enq=0."
)
DICTIONARY = b"".join(struct.pack(">I", len(word)) + word.encode() for word in _WORDS) + _REST.encode()
"""With which both sides begin to compress headers."""


class Frame(NamedTuple):
    """Of a stream.

    Attributes:
        kind: ``DATA``, or the type of a control frame.
        stream: The stream's number; a ping's own.
        flags: ``FIN`` = the sender has no more for this stream.
        content: Bytes, or what follows the number in a control frame.
    """

    kind: int
    stream: int
    flags: int
    content: bytes


class Connection:
    """One side of a connection; may be written to from several threads."""

    def __init__(self, reading: BinaryIO, writing: BinaryIO) -> None:
        self._reading, self._writing = reading, writing
        self._lock = threading.Lock()
        self._inflate, self._deflate = zlib.decompressobj(zdict=DICTIONARY), zlib.compressobj(zdict=DICTIONARY)

    def read(self) -> Frame | None:
        """The next frame; None = the other side has gone."""
        head = self._reading.read(8)
        if len(head) < 8:
            return None
        first, second, sizes = struct.unpack(">HHI", head)
        content = self._reading.read(sizes & 0xFFFFFF)
        flags = sizes >> 24
        if not first & _CONTROL:
            return Frame(DATA, (first << 16 | second) & 0x7FFFFFFF, flags, content)
        number = struct.unpack(">I", content[:4])[0] & 0x7FFFFFFF if len(content) >= 4 else 0
        return Frame(second, number, flags, content[4:])

    def headers(self, opened: Frame) -> dict[str, str]:
        """Of a ``SYN_STREAM``: each has to be read, in order, as they are compressed as one."""
        plain = self._inflate.decompress(opened.content[6:])
        texts, at = list[str](), 4
        while at < len(plain):
            (size,) = struct.unpack_from(">I", plain, at)
            texts.append(plain[at + 4 : at + 4 + size].decode())
            at += 4 + size
        return dict(zip(texts[::2], texts[1::2], strict=True))

    def reply(self, stream: int, headers: Mapping[str, str]) -> None:
        """Accept a stream."""
        pairs = [text.encode() for pair in headers.items() for text in pair]
        plain = struct.pack(">I", len(headers)) + b"".join(struct.pack(">I", len(one)) + one for one in pairs)
        with self._lock:
            content = self._deflate.compress(plain) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
            self._write(SYN_REPLY, stream, 0, content)

    def send(self, stream: int, content: bytes, *, is_last: bool = False) -> None:
        """Bytes of a stream."""
        with self._lock:
            self._put(struct.pack(">II", stream, (FIN if is_last else 0) << 24 | len(content)) + content)

    def pong(self, ping: Frame) -> None:
        """The answer to a ping."""
        with self._lock:
            self._write(PING, ping.stream, 0, b"")

    def _write(self, kind: int, stream: int, flags: int, content: bytes) -> None:
        size = flags << 24 | (4 + len(content))
        self._put(struct.pack(">HHII", _CONTROL | _VERSION, kind, size, stream) + content)

    def _put(self, frame: bytes) -> None:
        self._writing.write(frame)
        self._writing.flush()

"""What the journal holds: answers beside what was asked, and calls whose price is not known."""

import json
from dataclasses import fields
from typing import NamedTuple

from proxykd.records import hash_text
from proxykd.teacher.replies import Reply

_PARTS = tuple(part.name for part in fields(Reply))


class Entry(NamedTuple):
    """An answer, or the reason why there is none.

    Attributes:
        key: Hash of the request.
        reply: What came of it.
        is_final: False = the next run asks again.
        request: What was asked, canonical JSON whose SHA-256 is ``key``; "" = not kept.
    """

    key: str
    reply: Reply
    is_final: bool
    request: str = ""


class Attempt(NamedTuple):
    """A call that was announced before it left, with the most that it can be billed for.

    Attributes:
        attempt_id: Unique.
        key: Hash of the request.
        prompt_tokens: Upper bound.
        completion_tokens: Upper bound.
    """

    attempt_id: str
    key: str
    prompt_tokens: int
    completion_tokens: int


class Row(NamedTuple):
    """A row as it is on disk.

    Attributes:
        seq: Its number; later rows have higher ones.
        key: Hash of the request.
        request: What was asked, canonical JSON; "" = not kept.
        reply: What came, JSON.
        is_final: 0 or 1.
        answered_at: Seconds since 1970 UTC.
        checksum: Over the columns from ``key`` to ``answered_at``.
    """

    seq: int
    key: str
    request: str
    reply: str
    is_final: int
    answered_at: float
    checksum: str

    @property
    def is_intact(self) -> bool:
        """Whether the row is what was written: the checksum is right, and the key is that of the request."""
        content = self.key, self.request, self.reply, self.is_final, self.answered_at
        return self.checksum == checksum_of(*content) and (not self.request or self.key == hash_text(self.request))

    def entry(self) -> Entry:
        """The row as the engine knows it.

        Raises:
            ValueError, TypeError: if the reply cannot be read.
        """
        return Entry(self.key, Reply(**json.loads(self.reply)), bool(self.is_final), self.request)

    def as_attempt(self) -> Attempt:
        """The row as a call that was paid for and whose answer is lost: a token a byte of what was asked and came."""
        num_bytes = [len(text.encode("utf-8", "surrogateescape")) for text in (self.request, self.reply)]
        return Attempt(f"dropped {self.seq} {self.key}", self.key, *num_bytes)


def dump_reply(reply: Reply) -> str:
    """A reply as JSON; ``dataclasses.asdict``, which copies deeply, takes three times as long."""
    return json.dumps({name: getattr(reply, name) for name in _PARTS})


def checksum_of(key: str, request: str, reply: str, is_final: int, answered_at: float) -> str:
    """64 hex digits over the columns of a row; their lengths are part of it, so that no text can move between them."""
    return hash_text(f"{key} {len(request)} {len(reply)} {is_final} {answered_at!r} {request}{reply}")

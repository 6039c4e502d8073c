"""Two tokenisations of the same texts, aligned by the bytes of the texts.

A token boundary is a position in the text's UTF-8 bytes. Where both tokenizers have a boundary at the same byte, both
models have read the same text, so that the proxy's next distribution there says something about the student's:

    proxy     | The | qu | ick | fox |          boundaries  0 3 6 9 13
    student   | The | quick    | fo | x |       boundaries  0 3 9 12 13
    groups    [The:The] [qu ick:quick] [fox:fo x]

A group is a minimal stretch between common boundaries. Both texts are cut where the shorter tokenisation ends.

Token bytes that spell the text (after a tokenizer's dummy prefix) give every boundary. A tokenizer that rewrites its
text (lower case, NFKC, dropped spaces) tells boundaries through its character offsets; those inside a rewritten
character are no boundaries. The work is linear in the bytes and done for many texts at once.

References:
    GOLD (``trl.experimental.gold`` of TRL 1.16) groups tokens of byte-level tokenizers in the same way.
"""

from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.exceptions import ShapeError
from proxykd.models.token_bytes import TokenBytes


class Boundaries(NamedTuple):
    """Where the tokens of several texts begin and end, one text after the other.

    Attributes:
        starts: Byte of its text at which each token begins, int64 [tokens]; -1 = inside a rewritten character.
        ends: Byte at which it ends, int64 [tokens], never falling within a text; an end-of-sequence token ends one
            byte after its text.
        counts: Tokens of each text, int64 [texts].
        num_rewritten: Texts that their token bytes do not spell.
    """

    starts: NDArray[np.int64]
    ends: NDArray[np.int64]
    counts: NDArray[np.int64]
    num_rewritten: int


class Alignment(NamedTuple):
    """How the student's tokens of several texts lie on the proxy's.

    Attributes:
        source: Proxy token that begins at the same byte as each student token, int64 [student tokens], counted over
            all texts; -1 = none does.
        stop: First proxy token that ends at or after the end of each student token, int64 [student tokens]; -1 where
            ``source`` is, or where the proxy's text is cut before.
    """

    source: NDArray[np.int64]
    stop: NDArray[np.int64]


class Groups(NamedTuple):
    """Minimal stretches between common boundaries, in the order of the texts.

    Attributes:
        proxy: First token and the one after the last, int64 [groups, 2].
        student: The same of the student, int64 [groups, 2].
    """

    proxy: NDArray[np.int64]
    student: NDArray[np.int64]


class Coverage(NamedTuple):
    """Characters of the texts by how they are aligned; sums, so that batches can be added up.

    Attributes:
        one_to_one: In groups of one proxy token and one student token.
        grouped: In larger groups.
        unaligned: In no group: rewritten, or after the end of the shorter tokenisation.
        num_texts: Texts counted.
        num_rewritten: Of those, texts that the token bytes do not spell, of the tokenizer that has more of them.
    """

    one_to_one: int
    grouped: int
    unaligned: int
    num_texts: int
    num_rewritten: int

    def plus(self, other: "Coverage") -> "Coverage":
        """Both together."""
        return Coverage(*(one + two for one, two in zip(self, other, strict=True)))

    @property
    def shares(self) -> tuple[float, float, float]:
        """Shares of the characters aligned one to one, in groups and not at all; 0 where there are none."""
        total = max(self.one_to_one + self.grouped + self.unaligned, 1)
        return self.one_to_one / total, self.grouped / total, self.unaligned / total


NO_COVERAGE = Coverage(0, 0, 0, 0, 0)


def find_boundaries(
    vocabulary: TokenBytes, token_ids: Sequence[NDArray[np.int32]], texts: Sequence[bytes]
) -> Boundaries:
    """Where the tokens of some texts lie in their bytes.

    Args:
        vocabulary: Of the tokenizer that made the tokens.
        token_ids: Tokens of each text, which may be cut; an end-of-sequence token may end them.
        texts: UTF-8 bytes of the texts.

    Raises:
        ShapeError: if there are not as many texts as lists of tokens.
    """
    if len(token_ids) != len(texts):
        raise ShapeError(f"expected as many texts as lists of tokens, got {len(texts)} and {len(token_ids)}")
    counts = np.array([len(ids) for ids in token_ids], np.int64)
    flat = np.concatenate([np.zeros(0, np.int32), *token_ids])
    lengths = vocabulary.lengths[flat].astype(np.int64)
    lengths[flat == vocabulary.eos_id] = 1
    firsts = np.concatenate([[0], np.cumsum(counts)])
    cumulated = np.concatenate([[0], np.cumsum(lengths)])
    base = np.repeat(cumulated[firsts[:-1]], counts)
    starts, ends = cumulated[:-1] - base, cumulated[1:] - base
    num_rewritten = 0
    for row, text in enumerate(texts):
        part = slice(firsts[row], firsts[row + 1])
        written = vocabulary.join(flat[part].tolist())
        if text.startswith(written):
            continue
        if written[:1] == b" " and text.startswith(written[1:]):
            starts[part], ends[part] = np.maximum(starts[part] - 1, 0), np.maximum(ends[part] - 1, 0)
            continue
        starts[part], ends[part] = _from_offsets(vocabulary, flat[part], text)
        num_rewritten += 1
    return Boundaries(starts, ends, counts, num_rewritten)


def _from_offsets(
    vocabulary: TokenBytes, token_ids: NDArray[np.int32], text: bytes
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Starts and ends by the tokenizer's own character offsets; where it now says otherwise, nothing but byte 0."""
    characters = text.decode()
    encoding = vocabulary.backend.encode(characters, add_special_tokens=False)
    num_plain = len(token_ids) - int(len(token_ids) > 0 and token_ids[-1] == vocabulary.eos_id)
    starts, ends = np.full(len(token_ids), -1, np.int64), np.zeros(len(token_ids), np.int64)
    starts[:1] = 0
    if encoding.ids[:num_plain] != token_ids[:num_plain].tolist():
        return starts, ends
    byte_at = np.concatenate([[0], np.cumsum([len(character.encode()) for character in characters])])
    offsets = byte_at[np.array(encoding.offsets, np.int64).reshape(-1, 2)]
    ends[:num_plain] = np.maximum.accumulate(offsets[:num_plain, 1])
    # Between two tokens of one rewritten character there is no boundary of the text.
    is_boundary = offsets[1:num_plain, 0] >= ends[: max(num_plain - 1, 0)]
    starts[1:num_plain] = np.where(is_boundary, ends[: max(num_plain - 1, 0)], -1)
    if num_plain < len(token_ids):
        # Trailing characters that the tokenizer dropped belong to what came before the end.
        starts[-1], ends[-1] = len(text), len(text) + 1
    return starts, ends


def align(proxy: Boundaries, student: Boundaries, texts: Sequence[bytes]) -> Alignment:
    """Lay the student's tokens on the proxy's.

    Of several tokens that begin at one byte (a token without bytes, then another) the first counts.

    Raises:
        ShapeError: if the boundaries are not those of as many texts.
    """
    if not len(proxy.counts) == len(student.counts) == len(texts):
        raise ShapeError(
            f"expected boundaries of {len(texts)} texts, got {len(proxy.counts)} of the proxy and "
            f"{len(student.counts)} of the student"
        )
    bases, size = _bases(texts)
    token_at = np.full(size, -1, np.int64)
    proxy_base = np.repeat(bases, proxy.counts)
    known = np.flatnonzero(proxy.starts >= 0)[::-1]
    token_at[(proxy.starts + proxy_base)[known]] = known
    student_base = np.repeat(bases, student.counts)
    starts = np.where(student.starts >= 0, student.starts + student_base, size - 1)
    source = token_at[starts]
    source[1:][starts[1:] == starts[:-1]] = -1
    proxy_ends = proxy.ends + proxy_base
    stop = np.searchsorted(proxy_ends, student.ends + student_base)
    row_ends = np.repeat(np.cumsum(proxy.counts), student.counts)
    return Alignment(source, np.where((source >= 0) & (stop < row_ends), np.maximum(stop, source), -1))


def find_groups(proxy: Boundaries, student: Boundaries, alignment: Alignment) -> Groups:
    """The minimal stretches between common boundaries; a last one that does not end in one is left out."""
    first_student = np.flatnonzero(alignment.source >= 0)
    first_proxy = alignment.source[first_student]
    rows = np.repeat(np.arange(len(student.counts)), student.counts)[first_student]
    last_student, last_proxy = np.cumsum(student.counts)[rows], np.cumsum(proxy.counts)[rows]
    is_inner = np.append(rows[1:] == rows[:-1], False) if len(rows) else np.zeros(0, bool)
    next_student = np.where(is_inner, np.append(first_student[1:], 0), last_student)
    next_proxy = np.where(is_inner, np.append(first_proxy[1:], 0), last_proxy)
    is_closed = is_inner | (student.ends[next_student - 1] == proxy.ends[next_proxy - 1])
    pairs = np.stack([first_proxy, next_proxy], 1), np.stack([first_student, next_student], 1)
    return Groups(pairs[0][is_closed], pairs[1][is_closed])


def measure_coverage(proxy: Boundaries, student: Boundaries, groups: Groups, texts: Sequence[bytes]) -> Coverage:
    """How many characters of the texts lie in which kind of group; an end-of-sequence token is none."""
    bases, size = _bases(texts)
    content = np.zeros(size, np.uint8)
    padded = np.frombuffer(b"".join(chain.from_iterable((text, b"\x80\x80") for text in texts)), np.uint8)
    content[: len(padded)] = (padded & 0xC0) != 0x80
    before = np.concatenate([[0], np.cumsum(content, dtype=np.int64)])
    base = np.repeat(bases, student.counts)
    starts = before[(student.starts + base)[groups.student[:, 0]]]
    ends = before[(student.ends + base)[groups.student[:, 1] - 1]]
    is_pair = (np.diff(groups.proxy, axis=1) == 1)[:, 0] & (np.diff(groups.student, axis=1) == 1)[:, 0]
    pairs, all_groups = int((ends - starts)[is_pair].sum()), int((ends - starts).sum())
    num_rewritten = max(proxy.num_rewritten, student.num_rewritten)
    return Coverage(pairs, all_groups - pairs, int(before[-1]) - all_groups, len(texts), num_rewritten)


def _bases(texts: Sequence[bytes]) -> tuple[NDArray[np.int64], int]:
    """Where each text begins if all lie in one array, two bytes apart, and the size of the array."""
    sizes = np.array([len(text) + 2 for text in texts], np.int64)
    return np.cumsum(sizes) - sizes, int(sizes.sum()) + 1

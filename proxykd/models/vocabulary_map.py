"""Which student token a proxy token becomes.

    shared        a student token of the same bytes; the end-of-sequence tokens become each other
    first token   for the others, the token with which the student's tokenizer begins their bytes: whoever expects
                  " world" next expects " wor" next where the student spells it " wor" + "ld"

At the start of a text, where one tokenizer puts a space before it and the other does not, the same comparison is made
without that space.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from proxykd.models.token_bytes import TokenBytes


@dataclass(frozen=True, slots=True)
class VocabularyMap:
    """Proxy token id -> student token id.

    Attributes:
        shared: Student token of the same bytes, int32 [proxy vocab + 1]; -1 = none. The last entry is -1, so that an
            unused slot (id -1) stays one.
        first: ``shared``, and where there is none the first token of the student's spelling; -1 = none either.
        shared_at_start: ``shared`` for the first position of a text.
        first_at_start: ``first`` for the first position of a text.
        student_unshared: Student tokens that no proxy token shares, int32 [unshared].
    """

    shared: NDArray[np.int32]
    first: NDArray[np.int32]
    shared_at_start: NDArray[np.int32]
    first_at_start: NDArray[np.int32]
    student_unshared: NDArray[np.int32]

    @classmethod
    def build(cls, proxy: TokenBytes, student: TokenBytes) -> "VocabularyMap":
        """Compare two vocabularies; takes about a second for 250,000 tokens."""
        shared, first = _maps(proxy, student, at_start=False)
        if proxy.has_dummy_prefix == student.has_dummy_prefix:
            at_start = shared, first
        else:
            at_start = _maps(proxy, student, at_start=True)
        has_twin = np.zeros(len(student.values) + 1, bool)
        has_twin[shared] = True
        return cls(shared, first, *at_start, np.flatnonzero(~has_twin[:-1]).astype(np.int32))

    def facts(self, proxy: TokenBytes) -> dict[str, float]:
        """Shares of the proxy's vocabulary, control tokens left out: ``shared`` and ``first_token``."""
        is_text = np.array([value is not None for value in proxy.values])
        total = max(int(is_text.sum()), 1)
        num_shared = int((self.shared[:-1][is_text] >= 0).sum())
        num_first = int((self.first[:-1][is_text] >= 0).sum()) - num_shared
        return {"shared": num_shared / total, "first_token": num_first / total}


def _maps(proxy: TokenBytes, student: TokenBytes, *, at_start: bool) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    own = [_stripped(value, at_start and proxy.has_dummy_prefix) for value in proxy.values]
    # Of several student tokens with the same bytes (a byte token and a plain one) the last is the plain one.
    known = {
        value: idx
        for idx, one in enumerate(student.values)
        if (value := _stripped(one, at_start and student.has_dummy_prefix))
    }
    shared = np.array([known.get(value, -1) if value else -1 for value in own] + [-1], np.int32)
    shared[proxy.eos_id] = student.eos_id
    first = shared.copy()
    missing = [idx for idx, value in enumerate(own) if value and shared[idx] < 0]
    values = [own[idx] or b"" for idx in missing]
    first[missing] = _first_tokens(values, student, known)
    return shared, first


def _stripped(value: bytes | None, is_prefixed: bool) -> bytes | None:
    """A token's bytes without the dummy prefix; None for a token that cannot begin a text."""
    if not is_prefixed or value is None:
        return value
    return value[1:] if value.startswith(b" ") else None


def _first_tokens(values: list[bytes], student: TokenBytes, known: Mapping[bytes, int]) -> NDArray[np.int32]:
    """The token with which the student's spelling of some bytes begins; -1 = it cannot spell them."""
    texts = [value.decode(errors="replace") for value in values]
    encoded = student.backend.encode_batch_fast(texts, add_special_tokens=False)
    found = [_first_of(value, encoding, student, known) for value, encoding in zip(values, encoded, strict=True)]
    return np.array(found, np.int32)


def _first_of(value: bytes, encoding: Any, student: TokenBytes, known: Mapping[bytes, int]) -> int:
    ids = encoding.ids
    if ids and student.join(ids) == value and student.spelled[ids[0]] in known:
        return int(ids[0])
    # Part of a character, or a spelling that holds at the start of a text only: the longest token that fits.
    return next((known[value[:end]] for end in range(len(value), 0, -1) if value[:end] in known), -1)


def shared_mass(
    token_ids: NDArray[np.int32], logprobs: NDArray[np.float32], mapping: NDArray[np.int32]
) -> tuple[float, float]:
    """Probability on tokens that a map knows, and on all listed tokens, summed over positions.

    Args:
        token_ids: Proxy tokens, int32 [length, k]; -1 = unused.
        logprobs: Theirs, float32 [length, k].
        mapping: As in ``VocabularyMap``, int32 [proxy vocab + 1].
    """
    probs = np.exp(logprobs, dtype=np.float64)
    return float(probs[mapping[token_ids] >= 0].sum()), float(probs.sum())

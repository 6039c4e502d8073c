"""Targets over the proxy's tokens -> targets over the student's tokens, at the student's positions.

At a student position that begins at the same byte as a proxy token both models have read the same text. There:

    label       the text goes on with the student's token s, which the proxy spells t_1 .. t_u (or begins with t_1):
                s gets p(t_1) p(t_2 | t_1) .. p(t_u | ..), and what is left of p(t_1) joins the tail; where one of these
                probabilities was not kept, s and t_1 join the tail
    others      a token goes to its twin of the same bytes, else by ``unshared`` to the token with which the student
                spells it, or to the tail
    tail        the proxy's tail and all that joined it

No mass is lost, and a bucket never claims to know more than the proxy said. A student position inside a proxy token
has no target: one vacuous bucket of mass 1 and the weight 0, so that it learns from its hard label alone.

Differs from GOLD: a group of several tokens is not merged into its first distribution times the probabilities of the
later tokens, which adds up to less than 1 and names the proxy's first piece where the student has a longer token.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.config.cross_tokenizer import CrossTokenizerSpec
from proxykd.models.vocabulary_map import VocabularyMap
from proxykd.targets.reader import SparseTarget


class SampleAlignment(NamedTuple):
    """One sample's student positions on its proxy positions.

    Attributes:
        proxy_ids: The proxy's tokens, int32 [proxy length].
        student_ids: The student's, int32 [length].
        source: Proxy position at the same byte, int32 [length]; -1 = none.
        stop: Proxy position whose token covers the end of the student's, int32 [length]; -1 = none.
    """

    proxy_ids: NDArray[np.int32]
    student_ids: NDArray[np.int32]
    source: NDArray[np.int32]
    stop: NDArray[np.int32]


class _Rows(NamedTuple):
    """Aligned rows on their way: probabilities by mapped token, and the mass that has joined the tail."""

    mapped: NDArray[np.int64]
    probs: NDArray[np.float64]
    tail: NDArray[np.float64]


def translate(
    target: SparseTarget, alignment: SampleAlignment, vocabulary: VocabularyMap, spec: CrossTokenizerSpec
) -> SparseTarget:
    """A proxy's target in the student's tokens.

    Args:
        target: Over the proxy's tokens, one row for each of ``alignment.proxy_ids``.
        alignment: Of the sample.
        vocabulary: From the proxy's tokens to the student's.
        spec: What becomes of tokens without a twin.

    Returns:
        One row a student token, ``position_weights`` 1 at rows with a target and 0 at the others.
    """
    length, width = len(alignment.student_ids), target.token_ids.shape[1]
    known = np.flatnonzero(alignment.source >= 0)
    sources = alignment.source[known]
    ids = target.token_ids[sources]
    mapped, is_unshared = _map_tokens(ids, sources, vocabulary, spec)
    rows = _Rows(
        mapped.astype(np.int64),
        np.exp(target.logprobs[sources], dtype=np.float64),
        np.exp(target.tail_logprob[sources], dtype=np.float64),
    )
    rows, is_label = _assign_labels(rows, target, alignment, known)
    merged_ids, merged, tail = _merge(rows)
    token_ids = np.full((length, width), -1, np.int32)
    logprobs = np.full((length, width), -np.inf, np.float32)
    tails, weights = np.zeros(length, np.float32), np.zeros(length, np.float32)
    token_ids[known] = merged_ids
    with np.errstate(divide="ignore"):
        logprobs[known], tails[known] = np.log(merged), np.log(tail)
    weights[known] = 1.0
    unshared = None
    if is_unshared is not None:
        unshared = np.zeros((length, width), np.float32)
        unshared[known] = np.where(is_unshared & ~is_label, rows.probs, 0.0)
    return SparseTarget(token_ids, logprobs, tails, target.weight, position_weights=weights, unshared_probs=unshared)


def _map_tokens(
    ids: NDArray[np.int32], sources: NDArray[np.int32], vocabulary: VocabularyMap, spec: CrossTokenizerSpec
) -> tuple[NDArray[np.int32], NDArray[np.bool_] | None]:
    """The student's token for each listed one, -1 = none; and, for transport, which have no twin."""
    is_named = spec.unshared == "first_token"
    mapping = vocabulary.first if is_named else vocabulary.shared
    at_start = vocabulary.first_at_start if is_named else vocabulary.shared_at_start
    mapped = mapping[ids]
    if at_start is not mapping:
        is_start = sources == 0
        mapped[is_start] = at_start[ids[is_start]]
    return mapped, None if is_named else (mapped < 0) & (ids >= 0)


def _assign_labels(
    rows: _Rows, target: SparseTarget, alignment: SampleAlignment, known: NDArray[np.int64]
) -> tuple[_Rows, NDArray[np.bool_]]:
    """Rows in which the text's own next token has what the proxy gave to the whole of it, and where it stood."""
    is_label = target.token_ids == alignment.proxy_ids[:, None]
    is_kept = is_label.any(axis=1)
    with np.errstate(invalid="ignore"):
        logprobs = np.where(is_kept, np.where(is_label, target.logprobs, 0.0).sum(axis=1, dtype=np.float64), 0.0)
    total, num_lost = np.cumsum(logprobs), np.cumsum(~is_kept)
    sources, stops, labels = alignment.source[known], alignment.stop[known], alignment.student_ids[known]
    is_whole = (stops >= 0) & is_kept[sources] & (num_lost[stops] == num_lost[sources])
    later = np.where(is_whole, np.exp(total[stops] - total[sources], where=is_whole, out=np.zeros(len(known))), 0.0)
    slots = is_label[sources]
    moved = np.where(slots, rows.probs * (1.0 - later[:, None]), 0.0).sum(axis=1)
    # A label whose probability is not known in full is in the tail, and so is all that was mapped to it.
    mapped = np.where(~is_whole[:, None] & (rows.mapped == labels[:, None]), -1, rows.mapped)
    mapped = np.where(slots, np.where(is_whole, labels, -1)[:, None], mapped)
    probs = np.where(slots, rows.probs * later[:, None], rows.probs)
    return _Rows(mapped, probs, rows.tail + moved), slots


def _merge(rows: _Rows) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Token ids (-1 last), their probabilities with equal ids added up, and the tail with all that has no id."""
    num_rows, width = rows.mapped.shape
    tail = rows.tail + np.where(rows.mapped < 0, rows.probs, 0.0).sum(axis=1)
    keys = np.where(rows.mapped < 0, np.iinfo(np.int64).max, rows.mapped)
    order = np.argsort(keys, axis=1)
    keys, probs = np.take_along_axis(keys, order, 1), np.take_along_axis(rows.probs, order, 1)
    is_used = keys < np.iinfo(np.int64).max
    is_new = np.ones_like(is_used)
    is_new[:, 1:] = keys[:, 1:] != keys[:, :-1]
    slots = np.cumsum(is_new, axis=1) - 1 + width * np.arange(num_rows)[:, None]
    sums = np.bincount(slots[is_used], weights=probs[is_used], minlength=num_rows * width)
    merged = np.asarray(sums, np.float64)
    ids = np.full(num_rows * width, -1, np.int64)
    ids[slots[is_used]] = keys[is_used]
    return ids.reshape(num_rows, width), merged.reshape(num_rows, width), np.asarray(tail)

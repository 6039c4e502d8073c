"""What a target is, what is wrong with one, and the plain format, in which nothing is rounded.

Format ``plain-2``, one block a sample: token ids, uint16 where the vocabulary has fewer than 65,536 tokens and else
int32; ``logprobs`` and ``tail_logprob`` float32. What is read equals what was written, bit for bit. A position takes
``k (2 + 4) + 4`` bytes with a small vocabulary, ``k (4 + 4) + 4`` with a large one. The other format,
``coded-2``, is in ``coding``.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.exceptions import ArtifactError, ShapeError

PLAIN = "plain-2"
CODED = "coded-2"
FORMATS = (PLAIN, CODED)
MASS_TOLERANCE = 1e-3


class Positions(NamedTuple):
    """Sparse distributions at consecutive positions.

    Attributes:
        token_ids: int32 [length, k], distinct within a row; -1 = no token, last in the row.
        logprobs: float32 [length, k], nats, -inf allowed; -inf where there is no token.
        tail_logprob: float32 [length], log of the mass outside the k tokens; -inf where there is none.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    tail_logprob: NDArray[np.float32]


def check_positions(positions: Positions, *, top_k: int, vocab_size: int) -> Positions:
    """The same positions with the types that the formats take.

    Raises:
        ShapeError: if the shapes do not agree, an id lies outside the vocabulary or comes twice, padding is not at the
            end, or a row is no distribution: not a number, or a mass that is not 1 within ``MASS_TOLERANCE``.
    """
    ids = np.ascontiguousarray(positions.token_ids, np.int32)
    logprobs = np.ascontiguousarray(positions.logprobs, np.float32)
    tail = np.ascontiguousarray(positions.tail_logprob, np.float32)
    if ids.ndim != 2 or ids.shape != logprobs.shape or ids.shape[:1] != tail.shape or ids.shape[1] > top_k:
        raise ShapeError(
            f"expected token_ids and logprobs [length, <= {top_k}] and tail_logprob [length], got {ids.shape}, "
            f"{logprobs.shape} and {tail.shape}"
        )
    if ids.shape[1] < top_k:
        wider = ((0, 0), (0, top_k - ids.shape[1]))
        ids = np.pad(ids, wider, constant_values=-1)
        logprobs = np.pad(logprobs, wider, constant_values=-np.inf)
    if ids.size and not -1 <= ids.min() <= ids.max() < vocab_size:
        raise ShapeError(f"expected token ids in 0 .. {vocab_size - 1} or -1, got {ids.min()} .. {ids.max()}")
    _check_rows(ids, logprobs, tail)
    return Positions(ids, logprobs, tail)


def _check_rows(ids: NDArray[np.int32], logprobs: NDArray[np.float32], tail: NDArray[np.float32]) -> None:
    unused = ids < 0
    if (unused[:, :-1] & ~unused[:, 1:]).any() or not np.isneginf(logprobs[unused]).all():
        raise ShapeError("expected unused slots (-1) last in a row, with logprobs of -inf; found others")
    ordered = np.sort(ids, axis=1)
    if ((ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)).any():
        raise ShapeError("expected distinct token ids in a row, found one twice; add their probabilities up")
    with np.errstate(over="ignore"):
        mass = np.exp(logprobs, dtype=np.float64).sum(1) + np.exp(tail, dtype=np.float64)
    if not (wrong := ~(np.abs(mass - 1.0) <= MASS_TOLERANCE)).any():
        return
    row = int(wrong.argmax())
    raise ShapeError(
        f"expected the probabilities of position {row} and their tail to add up to 1, got {mass[row]}; check that the "
        "scores are finite and normalised"
    )


def encode_plain(positions: Positions, *, vocab_size: int) -> bytes:
    """The bytes of one sample; ``positions`` as ``check_positions`` gives them."""
    ids = positions.token_ids.astype(np.uint16 if vocab_size < 2**16 else np.int32)
    return ids.tobytes() + positions.logprobs.tobytes() + positions.tail_logprob.tobytes()


def decode_plain(data: bytes, length: int, *, top_k: int, vocab_size: int) -> Positions:
    """The positions that ``encode_plain`` made bytes of.

    Raises:
        ArtifactError: if there are too few bytes or too many.
    """
    dtype = np.dtype(np.uint16 if vocab_size < 2**16 else np.int32)
    cells = length * top_k
    ends = np.cumsum([cells * dtype.itemsize, cells * 4, length * 4])
    if len(data) != ends[-1]:
        raise ArtifactError(
            f"expected {ends[-1]} bytes for {length} positions, found {len(data)}; copy the store again"
        )
    raw = np.frombuffer(data[: ends[0]], dtype).reshape(length, top_k)
    ids = raw.astype(np.int32)
    if dtype == np.uint16:
        ids[raw == 2**16 - 1] = -1
    logprobs = np.frombuffer(data[ends[0] : ends[1]], np.float32).reshape(length, top_k).copy()
    return Positions(ids, logprobs, np.frombuffer(data[ends[1] :], np.float32).copy())

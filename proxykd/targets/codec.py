"""How the targets of consecutive positions become arrays, and back.

Format ``plain-1``, one row a position: ``token_ids`` uint16 where the vocabulary allows, else int32; ``logprobs`` and
``tail_logprob`` float32. Nothing is rounded: what is read equals what was written, bit for bit. A position takes
``k (2 + 4) + 4`` bytes with a vocabulary of up to 65,536 tokens, ``k (4 + 4) + 4`` with a larger one.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.exceptions import ShapeError

FORMAT = "plain-1"
_UNUSED = 2**16 - 1  # -1 in 16 bits
ARRAYS = ("token_ids", "logprobs", "tail_logprob")


class Positions(NamedTuple):
    """Sparse distributions at consecutive positions.

    Attributes:
        token_ids: int32 [length, k], distinct within a row; -1 = unused, always last.
        logprobs: float32 [length, k], nats, -inf allowed.
        tail_logprob: float32 [length], log of the mass outside the k tokens; -inf where there is none.
    """

    token_ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]
    tail_logprob: NDArray[np.float32]


def encode(positions: Positions, *, vocab_size: int) -> dict[str, NDArray[np.generic]]:
    """Arrays with one row a position.

    Raises:
        ShapeError: if the shapes do not agree or an id lies outside the vocabulary.
    """
    ids = positions.token_ids
    if ids.shape != positions.logprobs.shape or ids.shape[:1] != positions.tail_logprob.shape:
        raise ShapeError(
            f"expected token_ids and logprobs [length, k] and tail_logprob [length], got {ids.shape}, "
            f"{positions.logprobs.shape} and {positions.tail_logprob.shape}"
        )
    if ids.size and not -1 <= ids.min() <= ids.max() < vocab_size:
        raise ShapeError(f"expected token ids in -1 .. {vocab_size - 1}, got {ids.min()} .. {ids.max()}")
    return {
        "token_ids": ids.astype(np.uint16 if vocab_size <= _UNUSED else np.int32),
        "logprobs": positions.logprobs.astype(np.float32),
        "tail_logprob": positions.tail_logprob.astype(np.float32),
    }


def decode(arrays: dict[str, NDArray[np.generic]]) -> Positions:
    """The positions from rows of the arrays that ``encode`` made."""
    ids = arrays["token_ids"].astype(np.int32)
    return Positions(
        np.where(ids == _UNUSED, -1, ids) if arrays["token_ids"].dtype == np.uint16 else ids,
        arrays["logprobs"].astype(np.float32),
        arrays["tail_logprob"].astype(np.float32),
    )

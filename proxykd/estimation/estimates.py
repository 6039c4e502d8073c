"""Estimated distributions of a batch of positions, dense or sparse, and how tokens are drawn from them.

Both kinds are scores in columns; a sparse one also says which token each column of a row stands for. What reduces an
estimate works on columns and need not know which kind it has.
"""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from proxykd.data.tokenizing import Example

# Probabilities are accumulated in float64, in chunks of so many.
_CHUNK_SCORES = 2**22


class SparseProbs(NamedTuple):
    """Probabilities of some tokens at each position.

    Attributes:
        token_ids: long [n, m], distinct within a row; -1 = no token, always last in the row.
        probs: float32 [n, m], >= 0; 0 where there is no token.
    """

    token_ids: Tensor
    probs: Tensor


class PriorRows(NamedTuple):
    """A prior at each position.

    Attributes:
        probs: Its mean; each row has mass 1.
        observed: How often its context was seen, int64 [n]; 0 = never, the row is the token that stands there.
        orders: Tokens of that context, int64 [n]; -1 = none.
    """

    probs: SparseProbs
    observed: Tensor
    orders: Tensor


class Estimate(NamedTuple):
    """Distributions over the next token.

    Attributes:
        scores: Log-probabilities up to one constant a row, float32 [n, m], -inf allowed, one of them finite a row.
        token_ids: The token of each column, long [n, m], -1 where the score is -inf for want of one; None = the column.
        concentration: Of the Dirichlet posterior whose mean it is, float64 [n]; None = it is taken as it is.
    """

    scores: Tensor
    token_ids: Tensor | None
    concentration: Tensor | None = None


def densify(estimate: Estimate, vocab_size: int) -> Tensor:
    """Its scores over the whole vocabulary, float32 [n, vocab]; the same tensor where it is dense."""
    if estimate.token_ids is None:
        return estimate.scores
    dense = estimate.scores.new_full((len(estimate.scores), vocab_size + 1), -torch.inf)
    # The last column takes the padding.
    ids = torch.where(estimate.token_ids >= 0, estimate.token_ids, vocab_size)
    return dense.scatter_(1, ids, torch.where(estimate.token_ids >= 0, estimate.scores, -torch.inf))[:, :vocab_size]


def tokens_at(estimate: Estimate, columns: Tensor) -> Tensor:
    """The token ids of some columns, long [n, k] -> long [n, k]."""
    return columns if estimate.token_ids is None else estimate.token_ids.gather(1, columns)


def merge_tokens(token_ids: Tensor, probs: Tensor) -> SparseProbs:
    """Add up the entries of a row that name one token, likeliest first.

    Args:
        token_ids: long [n, m], repetitions allowed; -1 = no token.
        probs: float [n, m]; 0 where there is no token.

    Returns:
        As few columns as the fullest row needs, at least one unless m is 0.
    """
    if not token_ids.shape[1]:
        return SparseProbs(token_ids, probs)
    ids, order = token_ids.sort(dim=1)
    is_first = torch.ones_like(ids, dtype=torch.bool)
    is_first[:, 1:] = ids[:, 1:] != ids[:, :-1]
    slots = is_first.cumsum(dim=1) - 1
    mass = torch.zeros_like(probs).scatter_add_(1, slots, probs.gather(1, order))
    names = torch.full_like(ids, -1).scatter_(1, slots, ids)
    # Padding, likeliest or not, goes last.
    mass, order = mass.masked_fill_(names < 0, -1.0).sort(dim=1, descending=True, stable=True)
    names = names.gather(1, order)
    width = max(1, int((names >= 0).sum(dim=1).max()) if len(names) else 1)
    return SparseProbs(names[:, :width], mass[:, :width].clamp_min(0.0))


def draw_columns(scores: Tensor, points: Tensor) -> Tensor:
    """The column into which each point of [0, 1) falls, where every column is as wide as its probability.

    Args:
        scores: float [n, m], as in ``Estimate``.
        points: float64 [n, N].

    Returns:
        long [n, N]; a column of probability 0 is never drawn.
    """
    drawn = torch.empty(points.shape, dtype=torch.long, device=scores.device)
    for rows in row_chunks(scores):
        cumulated = scores[rows].double().softmax(dim=-1).cumsum_(dim=-1)
        drawn[rows] = torch.searchsorted(cumulated, points[rows] * cumulated[:, -1:], right=True)
    # A product may round up to the whole.
    return torch.minimum(drawn, last_possible(scores)[:, None]) if drawn.numel() else drawn


def last_possible(scores: Tensor) -> Tensor:
    """The last column of each row whose score is not -inf, long [n]; 0 where all are."""
    places = torch.arange(scores.shape[1], device=scores.device)
    return torch.where(scores > -torch.inf, places, 0).amax(dim=1)


def row_chunks(scores: Tensor) -> Iterator[slice]:
    """Slices of rows of about four million scores each."""
    rows = max(1, _CHUNK_SCORES // max(1, scores.shape[1]))
    return (slice(start, start + rows) for start in range(0, len(scores), rows))


class Uniforms:
    """Random numbers in [0, 1) that depend on the seed, their purpose and the text alone, not on its batch.

    Args:
        seed: Of the run.
        purpose: What they are for; two purposes get independent numbers.
    """

    def __init__(self, seed: int, purpose: str) -> None:
        self._prefix = f"{seed}/{purpose}"

    def of(self, examples: Sequence[Example], columns: int, *, device: torch.device) -> Tensor:
        """float64 [num_completion_tokens of all examples, columns]."""
        blocks = [self._generator(one).random((len(one.completion_ids), columns)) for one in examples]
        return torch.from_numpy(np.concatenate(blocks)).to(device)

    def _generator(self, example: Example) -> np.random.Generator:
        identity = f"{self._prefix}/{example.prompt_id}/{example.sample_idx}".encode()
        key = int.from_bytes(hashlib.blake2b(identity, digest_size=16).digest(), "little")
        return np.random.Generator(np.random.Philox(key=key))

"""The loss on tokens without a twin: the proxy's and the student's, compared by their sorted probabilities.

At every position with a target, the probabilities of the proxy's listed tokens that the student does not have are
compared with those of the student's tokens that the proxy does not have (``transport.sorted_transport``). What the
proxy did not list is unknown and left out, so the term is a lower bound of the one over whole vocabularies.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from proxykd.reductions import masked_total
from proxykd.student.objective import TargetBatch
from proxykd.transport import sorted_transport

_CHUNK_SCORES = 2**24


class UnsharedTerm(NamedTuple):
    """Which tokens are compared, and how much that counts.

    Attributes:
        token_ids: The student's tokens that the proxy does not have, long [unshared].
        weight: Beside the divergence, >= 0.
    """

    token_ids: Tensor
    weight: float


def unshared_total(logits: Tensor, targets: TargetBatch, term: UnsharedTerm) -> Tensor:
    """The weighted term, summed over positions.

    Args:
        logits: The student's scores, float [n, vocab]; carries the gradient.
        targets: With ``unshared_probs``; without, the term is 0.
        term: Tokens and weight.

    Returns:
        float32 scalar, >= 0.
    """
    probs = targets.unshared_probs
    if probs is None or not len(term.token_ids):
        return logits.new_zeros((), dtype=torch.float32)
    ids = term.token_ids.to(logits.device)
    used = torch.nonzero(targets.weights > 0).squeeze(1)
    chunks = torch.split(used, max(1, _CHUNK_SCORES // logits.shape[1]))
    parts = [_distances(logits[rows], probs[rows], ids, targets.weights[rows]) for rows in chunks]
    return term.weight * torch.stack(parts).sum()


def _distances(logits: Tensor, probs: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    scores = logits.float()
    own = (scores.index_select(1, ids) - scores.logsumexp(dim=-1, keepdim=True)).exp()
    return masked_total(sorted_transport(probs, own), weights=weights).weighted_sum

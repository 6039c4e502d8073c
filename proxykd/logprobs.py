"""Log-probabilities of tokens and of sequences: pure functions, float32, the mask always an argument."""

import torch
from torch import Tensor

from proxykd.exceptions import ShapeError


def token_logprobs(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-probability of each label under the softmax of its logits, in nats.

    Args:
        logits: Unnormalised scores, float [..., vocab]; -inf = impossible token.
        labels: Token ids, long [...].

    Returns:
        float32 [...], <= 0; -inf where the label is an impossible token, NaN where all tokens are.

    Raises:
        ShapeError: if the leading shapes differ.
    """
    if logits.shape[:-1] != labels.shape:
        raise ShapeError(
            f"expected logits [*labels, vocab], got {tuple(logits.shape)} for labels {tuple(labels.shape)}"
        )
    scores = logits.float()
    return scores.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - scores.logsumexp(dim=-1)


def sequence_logprobs(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Sum of the token log-probabilities of each row: log p(y | x).

    Args:
        logprobs: Float [batch, seq]; values outside the mask do not count, not even -inf or NaN.
        mask: Bool [batch, seq], true = counts.

    Returns:
        float32 [batch]; 0 for a row without a counted token.

    Raises:
        ShapeError: if the shapes differ.
    """
    if logprobs.shape != mask.shape:
        raise ShapeError(f"expected a mask shaped like logprobs {tuple(logprobs.shape)}, got {tuple(mask.shape)}")
    return torch.where(mask, logprobs.float(), 0.0).sum(dim=-1)


def mean_logprobs(logprobs: Tensor, mask: Tensor) -> Tensor:
    """Mean of the token log-probabilities of each row: log p(y | x) / len(y).

    Args:
        logprobs: Float [batch, seq].
        mask: Bool [batch, seq], true = counts.

    Returns:
        float32 [batch], <= 0; 0 for a row without a counted token.

    Raises:
        ShapeError: if the shapes differ.
    """
    return sequence_logprobs(logprobs, mask) / mask.sum(dim=-1).clamp(min=1)

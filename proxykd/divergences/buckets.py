"""The student's side of every sparse divergence, and of the NLL: one pass over its scores, one gradient.

``bucketed_logprobs`` takes the log-probabilities of k tokens, of everything else together, and of the label from the
scores, so that all terms of a loss share one normaliser and one gradient buffer.

This module knows tensors only: no padding of sequences (callers pass the positions that count), no reduction, no
temperature.
"""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from proxykd.exceptions import ShapeError

# Rows are taken in chunks of so many scores: on a CPU they stay in the cache, on a GPU they bound the extra memory.
_CHUNK_SCORES_CPU = 2**19
_CHUNK_SCORES_GPU = 2**27


class BucketedLogprobs(NamedTuple):
    """A distribution over k tokens and one tail bucket, and the label's log-probability under the same normaliser.

    Attributes:
        token_logprobs: float [n, k], nats; -inf in an unused slot.
        tail_logprob: float [n], log of the mass outside the k tokens; -inf where there is none.
        label_logprobs: float [n], log-probability of the label, which may or may not be one of the k tokens.
    """

    token_logprobs: Tensor
    tail_logprob: Tensor
    label_logprobs: Tensor


def bucketed_logprobs(logits: Tensor, token_ids: Tensor, labels: Tensor) -> BucketedLogprobs:
    """Log-probabilities of k tokens, of everything else together, and of the label, from one pass over the scores.

    The tail is summed over the tokens outside the k, never taken as 1 - sum_k q_k, so that it keeps its relative
    precision however small it is. The backward pass writes one dense gradient, whatever k is.

    Args:
        logits: Unnormalised scores, float [n, vocab], one of them finite in each row.
        token_ids: int64 [n, k], distinct within a row; k may be 0 (then the tail holds everything). -1 marks an unused
            slot: its log-probability is -inf, it takes nothing from the tail and its gradient is dropped.
        labels: int64 [n].

    Returns:
        float32 tensors (float64 for float64 scores) that carry gradients to ``logits``.

    Raises:
        ShapeError: if the shapes do not fit each other.
    """
    rows = logits.shape[:1]
    if logits.ndim != 2 or token_ids.ndim != 2 or token_ids.shape[:1] != rows or labels.shape != rows:
        raise ShapeError(
            f"expected logits [n, vocab], token_ids [n, k] and labels [n], got {tuple(logits.shape)}, "
            f"{tuple(token_ids.shape)} and {tuple(labels.shape)}"
        )
    return BucketedLogprobs(*_Bucketed.apply(logits, token_ids, labels))  # type: ignore[no-untyped-call]


def accumulate_dtype(values: Tensor) -> torch.dtype:
    """float64 for float64 values, else float32."""
    return torch.float64 if values.dtype == torch.float64 else torch.float32


def _row_chunks(logits: Tensor) -> Iterator[slice]:
    num_rows, vocab_size = logits.shape
    scores = _CHUNK_SCORES_CPU if logits.device.type == "cpu" else _CHUNK_SCORES_GPU
    rows = max(1, scores // vocab_size)
    for start in range(0, num_rows, rows):
        yield slice(start, start + rows)


class _Bucketed(torch.autograd.Function):
    """Closed-form gradient of ``bucketed_logprobs``.

    With G the sum of all incoming gradients, q the student's probabilities and g_tail the tail's gradient:

        d/dz_v = q_v (g_tail / q_tail - G)     outside the k tokens
        d/dz_j = g_j - q_j G                   at the k tokens
        d/dz_y   additionally + g_label        at the label

    An unused slot (id -1) borrows token 0 for indexing, with a mass and a gradient of 0. The tokens' masses are taken
    out by subtracting each from itself, which leaves an exact 0.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, token_ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        dtype = accumulate_dtype(logits)
        log_normalizer = logits.new_empty(len(logits), dtype=dtype)
        log_tail = torch.empty_like(log_normalizer)
        is_unused, slots = token_ids < 0, token_ids.clamp_min(0)
        for rows in _row_chunks(logits):
            scores, ids = logits[rows].to(dtype), slots[rows]
            peak = scores.amax(dim=-1, keepdim=True)
            mass = (scores - peak).exp_()
            token_mass = mass.gather(1, ids).masked_fill_(is_unused[rows], 0.0)
            tail_mass = mass.scatter_add_(1, ids, -token_mass).sum(dim=-1)
            log_normalizer[rows] = peak.squeeze(-1) + (token_mass.sum(dim=-1) + tail_mass).log()
            log_tail[rows] = peak.squeeze(-1) + tail_mass.log()
        token_logprobs = logits.gather(1, slots).to(dtype) - log_normalizer[:, None]
        token_logprobs.masked_fill_(is_unused, -torch.inf)
        label_logprobs = logits.gather(1, labels[:, None]).to(dtype).squeeze(1) - log_normalizer
        tail_logprob = log_tail - log_normalizer
        ctx.save_for_backward(logits, token_ids, labels, log_normalizer, token_logprobs, tail_logprob)
        return token_logprobs, tail_logprob, label_logprobs

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        logits, token_ids, labels, log_normalizer, token_logprobs, tail_logprob = ctx.saved_tensors
        is_unused, slots = token_ids < 0, token_ids.clamp_min(0)
        token_grad, tail_grad, label_grad = grads[0].masked_fill(is_unused, 0.0), grads[1], grads[2]
        total = token_grad.sum(dim=-1) + tail_grad + label_grad
        tail_coef = tail_grad / tail_logprob.exp().clamp_min(torch.finfo(tail_logprob.dtype).tiny) - total
        token_values = token_grad - token_logprobs.exp() * total[:, None]
        result = torch.empty_like(logits)
        for rows in _row_chunks(logits):
            dense, ids = (logits[rows].to(log_normalizer.dtype) - log_normalizer[rows, None]).exp_(), slots[rows]
            dense.scatter_add_(1, ids, -dense.gather(1, ids).masked_fill_(is_unused[rows], 0.0))
            dense.mul_(tail_coef[rows, None]).scatter_add_(1, ids, token_values[rows])
            result[rows] = dense.scatter_add_(1, labels[rows, None], label_grad[rows, None])
        return result, None, None

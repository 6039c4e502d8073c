"""What the student minimises: the NLL of the teacher's text plus alpha times the weighted KL from the proxy.

    L = 1/N sum_(x,y) sum_t [ -log q(y_t) + alpha w(x, y) KL(p_t || q_t) ]                  (Proxy-KD, Eq. 11)

N is the number of completion tokens in the batch, so both terms are means over tokens; p_t is the proxy's stored
distribution over k tokens and a tail, q_t the student's, both given x and the teacher's y_<t. With alpha = 0 or
without targets the same function is plain supervised fine-tuning, number for number.

References:
    Chen et al., Knowledge Distillation of Black-Box Large Language Models, arXiv:2401.07013, Eq. (7), (8), (10), (11).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxykd.divergences import BucketedLogprobs, bucketed_forward_kl, bucketed_logprobs
from proxykd.factored_logits import FactoredLogits
from proxykd.fused import fused_loss
from proxykd.reductions import masked_total
from proxykd.targets.reader import SparseTarget


class TargetBatch(NamedTuple):
    """Targets of all completion tokens of a batch, row after row.

    Attributes:
        token_ids: long [n, k], distinct within a row; -1 marks an unused slot, last in its row.
        logprobs: float32 [n, k]; -inf in an unused slot.
        tail_logprob: float32 [n]; -inf where the tokens hold all the mass.
        weights: float32 [n], the weight of the sample that the token belongs to.
    """

    token_ids: Tensor
    logprobs: Tensor
    tail_logprob: Tensor
    weights: Tensor


class ObjectiveTotals(NamedTuple):
    """Sums over the tokens of a (micro-)batch; to be divided by the number of tokens of the whole batch.

    Attributes:
        loss: nll + alpha * weighted_kl; carries the gradient.
        nll: Sum of -log q(y_t), nats; detached.
        kl: Sum of KL(p_t || q_t) without weights, nats; detached; 0 without targets.
        weighted_kl: Sum of w KL(p_t || q_t), nats; detached; 0 without targets.
        num_tokens: Completion tokens, int64.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    weighted_kl: Tensor
    num_tokens: Tensor


def student_objective(
    logits: Tensor | FactoredLogits,
    labels: Tensor,
    targets: TargetBatch | None,
    *,
    alpha: float,
    scale: float = 1.0,
) -> ObjectiveTotals:
    """The student's loss and its parts, summed over tokens.

    Args:
        logits: Scores that predict each completion token: float [n, vocab], or the product that they come from, which
            is then never multiplied out for all tokens at once (``proxykd.fused``), with the same results.
        labels: The teacher's tokens, long [n].
        targets: The proxy's distributions at the same n positions; None = hard labels only.
        alpha: >= 0, weight of the weighted KL against the NLL; 0 = hard labels only.
        scale: What the caller will multiply the loss by before the backward pass; saves time, changes nothing.

    Raises:
        ShapeError: if the shapes do not fit each other.
    """
    used = None if alpha == 0.0 else targets
    token_ids = labels.new_empty(len(labels), 0) if used is None else used.token_ids
    if isinstance(logits, Tensor):
        return _totals(bucketed_logprobs(logits, token_ids, labels), used, alpha=alpha)

    def objective(student: tuple[BucketedLogprobs, ...], rows: slice) -> tuple[Tensor, Tensor]:
        part = None if used is None else TargetBatch(*(values[rows] for values in used))
        loss, *sums = _totals(student[0], part, alpha=alpha)
        return loss, torch.stack([values.to(loss.dtype) for values in sums[:3]])

    loss, (nll, kl, weighted_kl) = fused_loss(logits, [token_ids], labels, objective, scale=scale)
    return ObjectiveTotals(loss, nll, kl, weighted_kl, torch.tensor(len(labels), device=labels.device))


def _totals(student: BucketedLogprobs, targets: TargetBatch | None, *, alpha: float) -> ObjectiveTotals:
    nll = masked_total(-student.label_logprobs)
    if targets is None:
        zero = torch.zeros_like(nll.weighted_sum)
        return ObjectiveTotals(nll.weighted_sum, nll.weighted_sum.detach(), zero, zero, nll.num_values)
    kl = bucketed_forward_kl(student, targets.logprobs, targets.tail_logprob)
    weighted_kl = masked_total(kl, weights=targets.weights).weighted_sum
    loss = nll.weighted_sum + alpha * weighted_kl
    return ObjectiveTotals(loss, nll.weighted_sum.detach(), kl.detach().sum(), weighted_kl.detach(), nll.num_values)


def collate_targets(targets: Sequence[SparseTarget], *, device: torch.device) -> TargetBatch:
    """Put the targets of several samples one after the other, as ``completion_logits`` does with their positions.

    Samples with fewer slots than the widest get unused ones (id -1, log-probability -inf).
    """
    width = max(target.token_ids.shape[1] for target in targets)
    lengths = [len(target.tail_logprob) for target in targets]
    weights = np.repeat(np.array([target.weight for target in targets], np.float32), lengths)
    return TargetBatch(
        torch.from_numpy(_stack([target.token_ids for target in targets], width, -1)).to(device, torch.long),
        torch.from_numpy(_stack([target.logprobs for target in targets], width, -np.inf)).to(device),
        torch.from_numpy(np.concatenate([target.tail_logprob for target in targets])).to(device),
        torch.from_numpy(weights).to(device),
    )


def _stack(parts: Sequence[NDArray[Any]], width: int, fill: float) -> NDArray[Any]:
    """Rows of all parts, each filled up to ``width`` columns."""
    if all(part.shape[1] == width for part in parts):
        return np.concatenate(parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts])

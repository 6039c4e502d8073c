"""Scores over a vocabulary as the product that they come from: hidden states times head weight, not multiplied out.

What ``proxykd.fused`` takes in place of logits [n, vocab]. This module knows tensors only; which tensors a model's head
is made of is ``proxykd.models.heads``' business.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear


class FactoredLogits(NamedTuple):
    """Scores that have not been multiplied out: ``cap(scale * (sum_i inputs_i @ weights_i.T + bias))``.

    A plain head is one pair; a low-rank adapter on it is a second pair, (hidden @ A.T * scaling, B), so that neither
    the merged weight nor the frozen weight's gradient ever exists.

    Attributes:
        inputs: float [n, d_i] each; the first are the hidden states.
        weights: float [rows, d_i] each, rows >= ``vocab_size``; plain tensors, or DTensors, which are gathered.
        bias: float [rows]; None = none.
        scale: Multiplies the scores (``logit_scale`` and the like).
        softcap: > 0: scores become ``softcap * tanh(scores / softcap)``; None = as they are.
        vocab_size: Tokens that exist. Rows of the weights beyond it are padding: they have no probability and get no
            gradient. None = all rows.
    """

    inputs: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    vocab_size: int | None = None

    def tempered(self, temperature: float) -> "FactoredLogits":
        """The scores divided by a temperature > 0; a softcap divides with them."""
        if temperature == 1.0:
            return self
        softcap = None if self.softcap is None else self.softcap / temperature
        return self._replace(scale=self.scale / temperature, softcap=softcap)

    def dense(self) -> Tensor:
        """The logits, float [n, vocab], by plain differentiable operations: the reference of ``fused_loss``."""
        pairs = zip(self.inputs, map(gather_weight, self.weights), strict=True)
        products = [linear(rows, weight[: self.vocab_size]) for rows, weight in pairs]
        scores = sum(products[1:], products[0])
        if self.bias is not None:
            scores = scores + gather_weight(self.bias)[: self.vocab_size]
        scores = scores * self.scale
        return scores if self.softcap is None else self.softcap * torch.tanh(scores / self.softcap)


def gather_weight(weight: Tensor) -> Tensor:
    """The whole of a weight that may be sharded, differentiable.

    A sharded parameter (DTensor, FSDP2) is gathered from all processes, and its gradient is the mean of theirs, sharded
    again, as FSDP reduces every other parameter's. Every process must call it at the same point. Anything else is
    returned as it is.
    """
    if not hasattr(weight, "full_tensor"):
        return weight
    from torch.distributed.tensor import Partial

    mesh = weight.device_mesh  # type: ignore[attr-defined]
    gathered = weight.full_tensor(grad_placements=[Partial()] * mesh.ndim)
    return _ScaledGradient.apply(gathered, 1.0 / mesh.size())  # type: ignore[no-untyped-call, no-any-return]


class _ScaledGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None

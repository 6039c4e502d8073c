"""From hidden states and head weight to loss and gradients, without the logits of all positions at once.

The scores of n positions over a vocabulary of V tokens are a product, ``logits = cap(inputs @ weight.T + bias)``, of
which a loss over sparse targets uses k + 2 numbers a position: the log-probabilities of the k tokens, of all others
together, and of the label (``BucketedLogprobs``). ``fused_loss`` takes the positions in chunks. Of each chunk it

1. multiplies the scores out into one buffer [chunk, V], which every chunk shares;
2. turns them, in place, into log-probabilities and probabilities, and reads the k + 2 numbers off them;
3. lets the objective, any differentiable function of these numbers, say the loss and its gradient towards them;
4. turns the probabilities, in place, into the loss's gradient towards the scores, in closed form;
5. multiplies it into the gradients of inputs and weight.

Gradients are therefore ready when the forward pass ends, the logits are computed once, and a position costs the
6 H V operations (three matrix products) that a dense head costs: nothing is recomputed. Gradient of a position's loss
towards its scores, with q the probabilities, g_j and g_tail those towards token j's and the tail's log-probability,
g_y the label's, and G their sum:

    d/dz_v = q_v (g_tail / q_tail - G)     outside the k tokens
    d/dz_j = g_j - q_j G                   at the k tokens
    d/dz_y   additionally + g_y            at the label

With several sets of tokens (a posterior's and a prior's) the tails of all sets that leave v out count in the first
line. Whatever the dtype of inputs and weight, normalisers, losses and the sum over chunks of the weight's gradient are
float32 (float64 for float64). This module knows tensors only: no models, no reduction but the objective's own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from proxykd.divergences import BucketedLogprobs
from proxykd.exceptions import ShapeError
from proxykd.factored_logits import FactoredLogits, gather_weight

# Size of the one buffer of scores: 552 rows of V = 151,936. Shorter chunks make slower matrix products.
_CHUNK_BYTES_CPU = 5 * 2**26
_CHUNK_BYTES_GPU = 2**29

# Scales that differ by no more than the rounding of one float32 are one scale.
_SAME_SCALE = 2**-22

# Products in lower precision are added to the float32 gradient in tiles of so many bytes.
_TILE_BYTES = 2**25

Objective = Callable[[tuple[BucketedLogprobs, ...], slice], tuple[Tensor, Tensor]]
"""The student's side of some rows, once for each set of tokens, and which rows they are -> their loss, summed, and
any sums to report, [t]. Rows must not depend on each other."""


def fused_loss(
    logits: FactoredLogits,
    token_ids: Sequence[Tensor],
    labels: Tensor,
    objective: Objective,
    *,
    scale: float = 1.0,
    chunk_bytes: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The objective's loss over all positions, differentiable once towards inputs, weights and bias.

    Under autocast the products run in its dtype, as a linear layer's would. A tensor that does not require a gradient
    costs none: with a frozen weight the largest of the three products is left out.

    Args:
        logits: The scores of n positions; one score of each position must be finite. n = 0 is allowed.
        token_ids: At least one set of tokens, int64 [n, k] each, distinct within a row; -1 marks an unused slot; k may
            be 0.
        labels: int64 [n].
        objective: Called once for each chunk.
        scale: What the caller will multiply the loss by before the backward pass, 1 / number of tokens say; not 0.
            Gradients are made ready for it, which saves a pass over them; any other factor is right too.
        chunk_bytes: Size of the buffer of scores in the precision of the sums; None = 320 MiB on a CPU, 512 MiB on a
            GPU. A softcap needs a second one and the rows of a chunk are halved; products in lower precision add half
            of it again. At least one row is taken at a time.

    Returns:
        The loss, a float32 scalar (float64 for float64 inputs), and the objective's other sums, detached.

    Raises:
        ShapeError: if shapes do not fit each other, or a token lies outside the vocabulary.
    """
    dtype = _product_dtype(logits)
    inputs = [(rows * logits.scale if logits.scale != 1.0 else rows).to(dtype) for rows in logits.inputs]
    weights = [gather_weight(weight) for weight in logits.weights]
    bias = None if logits.bias is None else gather_weight(logits.bias) * logits.scale
    vocab_size = len(weights[0]) if logits.vocab_size is None else logits.vocab_size
    sets = [ids.long() for ids in token_ids]
    _check(inputs, weights, bias, vocab_size, sets, labels)
    tensors = (*inputs, *weights) if bias is None else (*inputs, *weights, bias)
    needs_grad = tuple(tensor.requires_grad and torch.is_grad_enabled() for tensor in tensors)
    plan = _Plan(
        sets, labels, objective, vocab_size, logits.softcap, len(inputs), dtype, needs_grad, scale, chunk_bytes
    )
    return _Fused.apply(plan, *tensors)  # type: ignore[no-untyped-call, no-any-return]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What ``_Fused`` needs besides the tensors that may want gradients: inputs, weights, perhaps a bias."""

    token_ids: list[Tensor]
    labels: Tensor
    objective: Objective
    vocab_size: int
    softcap: float | None
    num_pairs: int
    dtype: torch.dtype
    needs_grad: tuple[bool, ...]
    scale: float
    chunk_bytes: int | None

    def row_chunks(self, device: torch.device, dtype: torch.dtype) -> list[slice]:
        """Chunks of nearly equal size, at least one."""
        chunk_bytes = self.chunk_bytes or (_CHUNK_BYTES_CPU if device.type == "cpu" else _CHUNK_BYTES_GPU)
        row_bytes = self.vocab_size * dtype.itemsize * (1 if self.softcap is None else 2)
        num_rows = len(self.labels)
        num_chunks = -(-num_rows // max(1, chunk_bytes // row_bytes)) or 1
        size = max(1, -(-num_rows // num_chunks))
        return [slice(start, min(start + size, num_rows)) for start in range(0, max(1, num_rows), size)]


class _Fused(torch.autograd.Function):
    """Gradients are computed going forward and handed out, once, going backward."""

    @staticmethod
    def forward(ctx: Any, plan: _Plan, *tensors: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(tensors[0].device.type, enabled=False):
            work = _Work(plan, tensors)
            parts = [work.run(rows) for rows in plan.row_chunks(tensors[0].device, work.sum_dtype)]
        losses, reports = zip(*parts, strict=True)
        report = torch.stack(reports).sum(dim=0)
        ctx.mark_non_differentiable(report)
        ctx.gradients, ctx.scale = work.gradients(tensors), plan.scale
        return torch.stack(losses).sum(), report

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise RuntimeError("expected one backward pass through a fused loss, got another; compute the loss again")
        factor = float(grads[0]) / ctx.scale
        if abs(factor - 1.0) > _SAME_SCALE:
            for gradient in gradients:
                if gradient is not None:
                    gradient.mul_(factor)
        return (None, *gradients)


class _Work:
    """The buffers that all chunks share."""

    def __init__(self, plan: _Plan, tensors: Sequence[Tensor]) -> None:
        pairs, vocab = plan.num_pairs, plan.vocab_size
        self.plan = plan
        self.inputs = tensors[:pairs]
        self.weights = [weight.detach()[:vocab].to(plan.dtype) for weight in tensors[pairs : 2 * pairs]]
        self.bias = tensors[2 * pairs].detach()[:vocab] if len(tensors) > 2 * pairs else None
        self.sum_dtype = torch.float64 if plan.dtype == torch.float64 else torch.float32
        chunk = plan.row_chunks(tensors[0].device, self.sum_dtype)[0]
        shape, device = (chunk.stop - chunk.start, vocab), tensors[0].device
        self.scores = torch.empty(shape, dtype=self.sum_dtype, device=device)
        is_low = plan.dtype != self.sum_dtype
        self.products = torch.empty(shape, dtype=plan.dtype, device=device) if is_low else self.scores
        self.squares = None if plan.softcap is None else torch.empty_like(self.scores)
        self.sums = [self._empty_gradient(idx, tensor) for idx, tensor in enumerate(tensors)]

    def _empty_gradient(self, idx: int, tensor: Tensor) -> Tensor | None:
        if not self.plan.needs_grad[idx]:
            return None
        is_input = idx < self.plan.num_pairs
        total = torch.empty(tensor.shape, dtype=tensor.dtype if is_input else self.sum_dtype, device=tensor.device)
        if not is_input:
            total[self.plan.vocab_size :] = 0.0
        return total

    def gradients(self, tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """One for each tensor, in its dtype; the sums are given away."""
        sums, self.sums = self.sums, []
        return [None if total is None else total.to(t.dtype) for total, t in zip(sums, tensors, strict=True)]

    def run(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Loss and report of a chunk; its share of the gradients is added."""
        scores = self._multiply_out(rows)
        ids = [token_ids[rows] for token_ids in self.plan.token_ids]
        probs = _Probs.of(scores, ids, self.plan.labels[rows])
        loss, report, grads = _differentiate(self.plan.objective, probs, rows, any(self.plan.needs_grad))
        if grads is not None:
            probs.become_gradient([grad * self.plan.scale for grad in grads])
            if self.squares is not None:
                scores.addcmul_(scores, self.squares[: len(scores)], value=-1.0)
            self._add_gradients(scores, rows)
        return loss, report

    def _multiply_out(self, rows: slice) -> Tensor:
        num_rows = rows.stop - rows.start
        products, scores = self.products[:num_rows], self.scores[:num_rows]
        for idx, (inputs, weight) in enumerate(zip(self.inputs, self.weights, strict=True)):
            torch.addmm(products, inputs[rows], weight.t(), beta=min(idx, 1), out=products)
        if products is not scores:
            scores.copy_(products)
        if self.bias is not None:
            scores.add_(self.bias)
        if self.squares is not None and self.plan.softcap is not None:
            scores.div_(self.plan.softcap).tanh_()
            torch.mul(scores, scores, out=self.squares[:num_rows])
            scores.mul_(self.plan.softcap)
        return scores

    def _add_gradients(self, gradient: Tensor, rows: slice) -> None:
        """Step 5: the chunk's gradient towards the scores, into those of inputs, weights and bias."""
        is_first, pairs = rows.start == 0, self.plan.num_pairs
        if len(self.sums) > 2 * pairs and (bias_sum := self.sums[2 * pairs]) is not None:
            part = gradient.sum(dim=0)
            bias_sum[: len(part)] = part if is_first else bias_sum[: len(part)] + part
        factor = gradient
        if self.products.dtype != gradient.dtype:
            factor = self.products[: len(gradient)]
            factor.copy_(gradient)
        for inputs, weight, input_sum, weight_sum in zip(
            self.inputs, self.weights, self.sums[:pairs], self.sums[pairs : 2 * pairs], strict=True
        ):
            if input_sum is not None:
                torch.mm(factor, weight, out=input_sum[rows])
            if weight_sum is not None:
                _add_product(weight_sum[: self.plan.vocab_size], factor, inputs[rows], is_first=is_first)


@dataclass(frozen=True, slots=True)
class _Probs:
    """A chunk's scores, turned into probabilities in place, those of the listed tokens taken out.

    Attributes:
        rest: float [c, V], probabilities, 0 at every listed token.
        token_ids: int64 [c, k] for each set, unused slots pointing at token 0.
        is_unused: bool [c, k] for each set.
        inside: for each set and each other one, bool [c, k]: whether the other one has its tokens.
        labels: int64 [c].
        student: What the objective sees, for each set.
    """

    rest: Tensor
    token_ids: list[Tensor]
    is_unused: list[Tensor]
    inside: list[list[Tensor]]
    labels: Tensor
    student: tuple[BucketedLogprobs, ...]

    @classmethod
    def of(cls, scores: Tensor, token_ids: list[Tensor], labels: Tensor) -> "_Probs":
        """Step 2. The tail is summed, not subtracted from 1, so that a small one keeps its relative precision."""
        is_unused, ids = [one < 0 for one in token_ids], [one.clamp_min(0) for one in token_ids]
        inside = [[_contains(other, one) for other in token_ids] for one in token_ids]
        torch.log_softmax(scores, dim=-1, out=scores)
        logprobs = [
            scores.gather(1, one).masked_fill_(unused, -torch.inf) for one, unused in zip(ids, is_unused, strict=True)
        ]
        label_logprobs = scores.gather(1, labels[:, None]).squeeze(1)
        scores.exp_()
        for one, unused in zip(ids, is_unused, strict=True):
            # Each subtracted from itself: an exact 0, and no harm to token 0 in unused slots.
            scores.scatter_add_(1, one, scores.gather(1, one).masked_fill_(unused, 0.0).neg_())
        rest_prob, probs = scores.sum(dim=-1), [values.exp() for values in logprobs]
        student = []
        for idx, values in enumerate(logprobs):
            others = (_prob_outside(probs, inside, other, idx) for other in range(len(ids)) if other != idx)
            student.append(BucketedLogprobs(values, sum(others, rest_prob).log(), label_logprobs))
        return cls(scores, ids, is_unused, inside, labels, tuple(student))

    def become_gradient(self, grads: list[Tensor]) -> None:
        """Step 4: overwrite the probabilities with the gradient towards the scores.

        Args:
            grads: Towards ``token_logprobs`` and ``tail_logprob`` of each set in turn, and the label's at the end.
        """
        token_grads = [grad.masked_fill(unused, 0.0) for grad, unused in zip(grads[:-1:2], self.is_unused, strict=True)]
        tail_grads, label_grad = grads[1:-1:2], grads[-1]
        total = sum((grad.sum(dim=-1) for grad in token_grads), label_grad) + sum(tail_grads)
        tails = [own.tail_logprob.detach().exp().clamp_min(torch.finfo(total.dtype).tiny) for own in self.student]
        pulls = [grad / tail for grad, tail in zip(tail_grads, tails, strict=True)]
        self.rest.mul_((sum(pulls) - total)[:, None])
        for idx, (ids, grad) in enumerate(zip(self.token_ids, token_grads, strict=True)):
            coef = -total[:, None]
            for other, pull in enumerate(pulls):
                if other != idx:
                    coef = coef + pull[:, None] * ~self.inside[idx][other]
            share = self.student[idx].token_logprobs.detach().exp() * coef
            for earlier in range(idx):
                share.masked_fill_(self.inside[idx][earlier], 0.0)
            self.rest.scatter_add_(1, ids, share + grad)
        self.rest.scatter_add_(1, self.labels[:, None], label_grad[:, None])


def _contains(others: Tensor, token_ids: Tensor) -> Tensor:
    """Which of some tokens [c, k] are among others [c, m] of their row, bool [c, k]."""
    return (token_ids[:, :, None] == others[:, None, :]).any(dim=-1)


def _prob_outside(probs: list[Tensor], inside: list[list[Tensor]], other: int, idx: int) -> Tensor:
    """Probability [c] of another set's tokens that are neither in set ``idx`` nor in a set counted before it."""
    values = probs[other].masked_fill(inside[other][idx], 0.0)
    for earlier in range(other):
        values = values.masked_fill(inside[other][earlier], 0.0)
    return values.sum(dim=-1)


def _differentiate(
    objective: Objective, probs: _Probs, rows: slice, needs_grad: bool
) -> tuple[Tensor, Tensor, list[Tensor] | None]:
    """Step 3: loss and report of a chunk, and the loss's gradient towards the few numbers it is made of."""
    if not needs_grad:
        return *objective(probs.student, rows), None
    label = probs.student[0].label_logprobs.requires_grad_()
    student = tuple(
        BucketedLogprobs(one.token_logprobs.requires_grad_(), one.tail_logprob.requires_grad_(), label)
        for one in probs.student
    )
    with torch.enable_grad():
        loss, report = objective(student, rows)
    leaves = [leaf for one in student for leaf in one[:2]] + [label]
    if not loss.requires_grad:
        return loss, report.detach(), [torch.zeros_like(leaf) for leaf in leaves]
    grads = torch.autograd.grad(loss, leaves, allow_unused=True, materialize_grads=True)
    return loss.detach(), report.detach(), list(grads)


def _add_product(total: Tensor, gradient: Tensor, inputs: Tensor, *, is_first: bool) -> None:
    """``total += gradient.T @ inputs`` in the precision of ``total``; ``total`` is uninitialised before the first."""
    if gradient.dtype == total.dtype:
        torch.addmm(total, gradient.t(), inputs, beta=0 if is_first else 1, out=total)
        return
    step = max(1, _TILE_BYTES // max(1, inputs.shape[1] * inputs.element_size()))
    for start in range(0, len(total), step):
        product = gradient[:, start : start + step].t() @ inputs
        tile = total[start : start + step]
        tile.copy_(product) if is_first else tile.add_(product)


def _product_dtype(logits: FactoredLogits) -> torch.dtype:
    """What a linear layer would compute in: autocast's dtype where it is on, else the head weight's."""
    weight = logits.weights[0]
    if weight.dtype != torch.float64 and torch.is_autocast_enabled(weight.device.type):
        return torch.get_autocast_dtype(weight.device.type)
    return weight.dtype


def _check(
    inputs: list[Tensor],
    weights: list[Tensor],
    bias: Tensor | None,
    vocab_size: int,
    token_ids: list[Tensor],
    labels: Tensor,
) -> None:
    num_rows, num_weights = labels.shape[0], len(weights[0])
    fit = len(inputs) == len(weights) and len(token_ids) > 0 and labels.ndim == 1
    for rows, weight in zip(inputs, weights, strict=False):
        fit = fit and rows.ndim == weight.ndim == 2 and rows.shape == (num_rows, weight.shape[1])
        fit = fit and len(weight) == num_weights
    fit = fit and (bias is None or bias.shape == (num_weights,)) and 0 < vocab_size <= num_weights
    if not (fit and all(ids.ndim == 2 and len(ids) == num_rows for ids in token_ids)):
        raise ShapeError(
            "expected inputs [n, d] for weights [rows, d], a bias [rows], vocab_size <= rows, sets of token_ids [n, k] "
            f"and labels [n], got inputs {_shapes(inputs)}, weights {_shapes(weights)}, bias "
            f"{_shapes([] if bias is None else [bias])}, vocab_size={vocab_size}, token_ids {_shapes(token_ids)} and "
            f"labels {_shapes([labels])}"
        )
    highest = max((int(ids.max()) for ids in (*token_ids, labels) if ids.numel()), default=0)
    if highest >= vocab_size or (num_rows and int(labels.min()) < 0):
        raise ShapeError(f"expected token_ids below the vocabulary's {vocab_size} and labels from 0, got {highest}")


def _shapes(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]

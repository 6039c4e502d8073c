"""What the student minimises: the NLL of the teacher's text plus weighted divergences from the targets.

    L = 1/N sum_(x,y) sum_t [ -v_t log q(y_t) + alpha w D(p_t, q_t) + prior_alpha w' D'(p'_t, q_t) ]

v_t is 1 at every token of the teacher's texts, and what the corrections gave it at a token of a trajectory
(``data.segments``), which has no D. N = sum v_t over the batch: the number of its completion tokens where there are no
trajectories, so that all terms are means over tokens; p_t is the stored
distribution over k tokens and a tail, q_t the student's, both given x and the teacher's y_<t; p'_t is the prior's,
where the estimator keeps it beside the posterior's. With D = KL(p || q) and no prior it is Eq. (11) of Proxy-KD; with
alpha = 0 or without targets, plain supervised fine-tuning, number for number.

Targets at a temperature T: sparse targets cannot be tempered once they are stored, because the tail at T depends on
how its tokens shared their mass. They are therefore made at T and carry it; the student's scores are divided by the
same T, and the term is multiplied by T^2 (by T for the total variation, which is of first order in the scores) so that
its gradient keeps its size as T grows. The NLL stays at 1.

References:
    Chen et al., Knowledge Distillation of Black-Box Large Language Models, arXiv:2401.07013, Eq. (7), (8), (10), (11);
    its first version for the prior's term. Hinton et al., arXiv:1503.02531, section 2, for T^2.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple, assert_never

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxykd.config.objective import (
    AdaptiveKlSpec,
    DivergenceSpec,
    ForwardKlSpec,
    GeneralizedJsdSpec,
    ObjectiveSpec,
    ReverseKlSpec,
    SkewKlSpec,
    SkewReverseKlSpec,
    TotalVariationSpec,
)
from proxykd.divergences import (
    BucketedLogprobs,
    Divergence,
    bucketed_divergence,
    bucketed_forward_kl,
    bucketed_logprobs,
    outcomes,
)
from proxykd.exceptions import ConfigError
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
        weights: float32 [n], the weight of the sample that the token belongs to, and of its position.
        temperature: > 0; what the targets were tempered with.
        unshared_probs: float32 [n, k], as in ``SparseTarget``; None = there are none.
    """

    token_ids: Tensor
    logprobs: Tensor
    tail_logprob: Tensor
    weights: Tensor
    temperature: float = 1.0
    unshared_probs: Tensor | None = None

    def rows(self, rows: slice) -> "TargetBatch":
        """Some of the rows; ``unshared_probs`` stay behind."""
        ids, logprobs, tail = self.token_ids[rows], self.logprobs[rows], self.tail_logprob[rows]
        return TargetBatch(ids, logprobs, tail, self.weights[rows], self.temperature)


class ObjectiveTotals(NamedTuple):
    """Sums over the tokens of a (micro-)batch; to be divided by the number of tokens of the whole batch.

    Attributes:
        loss: The weighted terms together; carries the gradient.
        nll: Sum of -v_t log q(y_t), nats; detached.
        kl: Sum of KL(p_t || q_t) without weights, nats, whatever the divergence is; detached; 0 without targets.
        divergence: Sum of D(p_t, q_t) without weights; detached; 0 without targets.
        weighted_divergence: Sum of w D(p_t, q_t), times T^2 (T); detached; 0 without targets.
        prior_divergence: Sum of D'(p'_t, q_t) without weights; detached; 0 without a prior.
        num_tokens: Completion tokens, int64.
    """

    loss: Tensor
    nll: Tensor
    kl: Tensor
    divergence: Tensor
    weighted_divergence: Tensor
    prior_divergence: Tensor
    num_tokens: Tensor


class TermTotals(NamedTuple):
    """One divergence term, summed over tokens.

    Attributes:
        weighted: Sum of w D, times T^2 (T); carries the gradient.
        divergence: Sum of D; detached.
        kl: Sum of KL(p || q), nats; detached.
    """

    weighted: Tensor
    divergence: Tensor
    kl: Tensor


def student_objective(
    logits: Tensor | FactoredLogits,
    labels: Tensor,
    targets: TargetBatch | None,
    *,
    alpha: float,
    prior: TargetBatch | None = None,
    objective: ObjectiveSpec | None = None,
    weights: Tensor | None = None,
    scale: float = 1.0,
) -> ObjectiveTotals:
    """The student's loss and its parts, summed over tokens.

    NLL and the terms whose targets have no temperature come out of one pass over factored scores (over scores that are
    multiplied out, each term takes a pass); targets at a temperature cost one more.

    Args:
        logits: Scores that predict each completion token: float [n, vocab], or the product that they come from, which
            is then never multiplied out for all tokens at once (``proxykd.fused``), with the same results.
        labels: The teacher's tokens, long [n].
        targets: The estimated distributions at the same n positions; None = hard labels only.
        alpha: >= 0, weight of the weighted divergence against the NLL; 0 = hard labels only.
        prior: The prior's distributions at the same positions; None = no such term.
        objective: Which divergences, and the prior's weight; None = the forward KL alone.
        weights: Of each token in the NLL, float32 [n], >= 0; None = each weighs 1. The targets have their own.
        scale: What the caller will multiply the loss by before the backward pass, not 0; saves time, changes nothing.

    Raises:
        ShapeError: if the shapes do not fit each other.
        ConfigError: if a divergence would be infinite on these targets.
    """
    spec = objective or ObjectiveSpec()
    terms: list[_Term] = []
    if targets is not None and alpha > 0.0:
        terms.append(_Term(targets, alpha, spec.divergence, is_prior=False))
    if prior is not None and spec.prior_alpha > 0.0:
        terms.append(_Term(prior, spec.prior_alpha, spec.prior_divergence, is_prior=True))
    passes: dict[float, list[_Term]] = {1.0: []}
    for term in terms:
        if term.spec.needs_full_support:
            _check_support(term.targets, term.spec.kind, _vocab_size(logits))
        passes.setdefault(term.targets.temperature, []).append(term)
    text = _Text(labels, weights)
    parts = [_one_pass(logits, text, temperature, group, scale) for temperature, group in passes.items()]
    loss = torch.stack([loss for loss, _ in parts]).sum()
    nll, kl, divergence, weighted, prior_divergence = torch.stack([sums for _, sums in parts]).sum(dim=0)
    num_tokens = torch.tensor(len(labels), device=labels.device)
    return ObjectiveTotals(loss, nll, kl, divergence, weighted, prior_divergence, num_tokens)


def divergence_totals(student: BucketedLogprobs, targets: TargetBatch, spec: DivergenceSpec) -> TermTotals:
    """One divergence term from k + 2 numbers a position, summed over tokens.

    Args:
        student: The student at the targets' tokens and temperature.
        targets: The distributions to learn.
        spec: Which divergence.

    Raises:
        ShapeError: if the shapes do not fit each other.
    """
    values = bucketed_divergence(student, targets.logprobs, targets.tail_logprob, build_divergence(spec))
    detached = kl = values.detach()
    if spec.kind != "forward_kl":
        with torch.no_grad():
            kl = bucketed_forward_kl(student, targets.logprobs, targets.tail_logprob)
    scale = targets.temperature ** (1 if spec.kind == "total_variation" else 2)
    weighted = masked_total(values, weights=targets.weights).weighted_sum
    return TermTotals(weighted if scale == 1.0 else weighted * scale, detached.sum(), kl.sum())


def build_divergence(spec: DivergenceSpec, *, has_tail_bucket: bool = True) -> Divergence:
    """The function that a specification names, its parameters bound.

    Args:
        spec: Which divergence.
        has_tail_bucket: For k tokens and a tail bucket; False = for the whole vocabulary.
    """
    match spec:
        case ForwardKlSpec():
            return outcomes.forward_kl
        case ReverseKlSpec():
            return outcomes.reverse_kl
        case GeneralizedJsdSpec():
            return partial(outcomes.generalized_jsd, beta=spec.beta)
        case SkewKlSpec():
            return partial(outcomes.skew_kl, skew=spec.skew)
        case SkewReverseKlSpec():
            return partial(outcomes.skew_reverse_kl, skew=spec.skew)
        case TotalVariationSpec():
            return outcomes.total_variation
        case AdaptiveKlSpec():
            return partial(outcomes.adaptive_kl, tail_mass=spec.tail_mass, has_tail_bucket=has_tail_bucket)
        case _:
            assert_never(spec)


def collate_targets(targets: Sequence[SparseTarget], *, device: torch.device, temperature: float = 1.0) -> TargetBatch:
    """Put the targets of several samples one after the other, as ``completion_logits`` does with their positions.

    Samples with fewer slots than the widest get unused ones (id -1, log-probability -inf).

    Args:
        targets: One a sample.
        device: Where they go.
        temperature: What the targets were tempered with.
    """
    width = max(target.token_ids.shape[1] for target in targets)
    lengths = [len(target.tail_logprob) for target in targets]
    weights = np.repeat(np.array([target.weight for target in targets], np.float32), lengths)
    if any(target.position_weights is not None for target in targets):
        ones = (np.ones(length, np.float32) for length in lengths)
        weights *= np.concatenate(
            [
                one if target.position_weights is None else target.position_weights
                for target, one in zip(targets, ones, strict=True)
            ]
        )
    return TargetBatch(
        torch.from_numpy(_stack([target.token_ids for target in targets], width, -1)).to(device, torch.long),
        torch.from_numpy(_stack([target.logprobs for target in targets], width, -np.inf)).to(device),
        torch.from_numpy(np.concatenate([target.tail_logprob for target in targets])).to(device),
        torch.from_numpy(weights).to(device),
        temperature,
        _collate_unshared(targets, width, device),
    )


class _Text(NamedTuple):
    labels: Tensor
    weights: Tensor | None

    def nll(self, student: BucketedLogprobs, rows: slice) -> Tensor:
        """Weighted sum over some of the rows; a token that weighs 0 counts nothing, whatever its score is."""
        values = -student.label_logprobs
        if self.weights is None:
            return masked_total(values).weighted_sum
        weights = self.weights[rows]
        return masked_total(values, weights > 0.0, weights=weights).weighted_sum


class _Term(NamedTuple):
    targets: TargetBatch
    coef: float
    spec: DivergenceSpec
    is_prior: bool

    def totals(self, student: BucketedLogprobs, rows: slice) -> TermTotals:
        """Of some of the rows."""
        return divergence_totals(student, self.targets.rows(rows), self.spec)


def _one_pass(
    logits: Tensor | FactoredLogits, text: _Text, temperature: float, terms: list[_Term], scale: float
) -> tuple[Tensor, Tensor]:
    """Loss and sums (nll, kl, divergence, weighted_divergence, prior_divergence) of the terms at one temperature."""
    labels = text.labels
    token_ids = [term.targets.token_ids for term in terms] or [labels.new_empty(len(labels), 0)]

    def sum_up(students: tuple[BucketedLogprobs, ...], rows: slice) -> tuple[Tensor, Tensor]:
        nll = text.nll(students[0], rows)
        loss = nll if temperature == 1.0 else torch.zeros_like(nll)
        sums = [loss.detach(), *torch.zeros(4, dtype=nll.dtype, device=nll.device)]
        for student, term in zip(students, terms, strict=False):
            totals = term.totals(student, rows)
            loss = loss + term.coef * totals.weighted
            if term.is_prior:
                sums[4] = totals.divergence
            else:
                sums[1:4] = totals.kl, totals.divergence, totals.weighted.detach()
        return loss, torch.stack([values.to(loss.dtype) for values in sums])

    if isinstance(logits, FactoredLogits):
        return fused_loss(logits.tempered(temperature), token_ids, labels, sum_up, scale=scale)
    scores = logits if temperature == 1.0 else logits / temperature
    return sum_up(tuple(bucketed_logprobs(scores, ids, labels) for ids in token_ids), slice(None))


def _vocab_size(logits: Tensor | FactoredLogits) -> int:
    if isinstance(logits, Tensor):
        return logits.shape[-1]
    return len(logits.weights[0]) if logits.vocab_size is None else logits.vocab_size


def _check_support(targets: TargetBatch, kind: str, vocab_size: int) -> None:
    """Refuse targets that exclude a token which every student allows."""
    is_allowed = targets.logprobs > -torch.inf
    is_cut = (targets.tail_logprob == -torch.inf) & (is_allowed.sum(dim=-1) < vocab_size)
    is_excluded = ((targets.token_ids >= 0) & ~is_allowed).any(dim=-1)
    if num_bad := int((is_cut | is_excluded).sum()):
        raise ConfigError(
            f"expected targets that allow every token, as student.objective with kind={kind} needs them, found "
            f"{num_bad} of {len(is_cut)} positions that exclude some, where it is infinite; keep a tail bucket "
            "(top-k targets), or choose forward_kl, generalized_jsd, skew_kl, skew_reverse_kl or total_variation"
        )


def _collate_unshared(targets: Sequence[SparseTarget], width: int, device: torch.device) -> Tensor | None:
    if all(target.unshared_probs is None for target in targets):
        return None
    parts = [target.unshared_probs for target in targets]
    empty = [np.zeros(target.token_ids.shape, np.float32) for target in targets]
    filled = [one if part is None else part for part, one in zip(parts, empty, strict=True)]
    return torch.from_numpy(_stack(filled, width, 0.0)).to(device)


def _stack(parts: Sequence[NDArray[Any]], width: int, fill: float) -> NDArray[Any]:
    """Rows of all parts, each filled up to ``width`` columns."""
    if all(part.shape[1] == width for part in parts):
        return np.concatenate(parts)
    return np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts])

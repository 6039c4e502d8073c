"""Divergences between two distributions over the same outcomes: the formulas, once, for every form of the inputs.

With p the teacher and q the student:

    forward_kl        KL(p || q)                                        covers all that the teacher says
    reverse_kl        KL(q || p)                                        keeps to what the teacher is sure of
    generalized_jsd   beta KL(p || m) + (1 - beta) KL(q || m),  m = beta p + (1 - beta) q
    skew_kl           KL(p || a p + (1 - a) q)
    skew_reverse_kl   KL(q || (1 - a) p + a q)
    total_variation   1/2 sum |p - q|
    adaptive_kl       forward and reverse KL, weighted by where the two distributions differ

An outcome is a token of the vocabulary (``dense_divergence``), or one of k tokens or "any other"
(``bucketed_divergence``). All but the last are f-divergences: merging outcomes never makes them larger, so that the
bucketed form is a lower bound of the dense one. ``adaptive_kl`` is none: its weights depend on the outcomes.

Every function takes (student_logprobs, teacher_logprobs), float [..., outcomes], normalised along the last axis, with
-inf for an outcome of probability 0, and returns float [...], un-reduced, in nats. A term that is infinite makes the
value infinite and leaves the gradient alone, which is then that of the other terms and finite.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from proxykd.exceptions import ConfigError

Divergence = Callable[[Tensor, Tensor], Tensor]
"""(student_logprobs, teacher_logprobs), both [..., outcomes] -> [...]."""


def forward_kl(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(teacher || student).

    Args:
        student_logprobs: float [..., outcomes].
        teacher_logprobs: float [..., outcomes].

    Returns:
        float [...], >= 0; 0 where the distributions coincide; inf where the student excludes what the teacher allows.

    References:
        Chen et al., Knowledge Distillation of Black-Box Large Language Models, arXiv:2401.07013, Eq. (8).
    """
    return _relative_entropy(teacher_logprobs, student_logprobs)


def reverse_kl(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """KL(student || teacher).

    Args:
        student_logprobs: float [..., outcomes].
        teacher_logprobs: float [..., outcomes].

    Returns:
        float [...], >= 0; 0 where the distributions coincide; inf where the student allows what the teacher excludes.

    References:
        Gu et al., MiniLLM: Knowledge Distillation of Large Language Models, arXiv:2306.08543, Eq. (1).
    """
    return _relative_entropy(student_logprobs, teacher_logprobs)


def generalized_jsd(student_logprobs: Tensor, teacher_logprobs: Tensor, *, beta: float) -> Tensor:
    """Generalised Jensen-Shannon divergence, ``beta KL(p || m) + (1 - beta) KL(q || m)``, m = beta p + (1 - beta) q.

    Divided by beta it tends to the forward KL as beta tends to 0; divided by 1 - beta, to the reverse KL as beta tends
    to 1. At 0 and 1 themselves, where the formula gives 0, it is these two, undivided.

    Args:
        student_logprobs: float [..., outcomes].
        teacher_logprobs: float [..., outcomes].
        beta: In [0, 1].

    Returns:
        float [...], >= 0; 0 where the distributions coincide. Between 0 and 1 at most the entropy of (beta, 1 - beta),
        hence at most log 2, whatever either side excludes.

    Raises:
        ConfigError: if beta lies outside [0, 1].

    References:
        Agarwal et al., On-Policy Distillation of Language Models (GKD), arXiv:2306.13649, Eq. (1).
    """
    if not 0.0 <= beta <= 1.0:
        raise ConfigError(f"expected beta in [0, 1], got {beta}; 0 is the forward KL, 1 the reverse KL")
    if beta in (0.0, 1.0):
        return (reverse_kl if beta else forward_kl)(student_logprobs, teacher_logprobs)
    mixture = _log_mixture(teacher_logprobs, student_logprobs, weight=beta)
    teacher, student = _relative_entropy(teacher_logprobs, mixture), _relative_entropy(student_logprobs, mixture)
    return beta * teacher + (1.0 - beta) * student


def skew_kl(student_logprobs: Tensor, teacher_logprobs: Tensor, *, skew: float) -> Tensor:
    """``KL(p || skew p + (1 - skew) q)``: a forward KL whose gradient stays bounded where the student says no.

    Args:
        student_logprobs: float [..., outcomes].
        teacher_logprobs: float [..., outcomes].
        skew: In [0, 1); 0 is the forward KL.

    Returns:
        float [...], >= 0, at most -log(skew); 0 where the distributions coincide.

    Raises:
        ConfigError: if skew lies outside [0, 1).

    References:
        Ko et al., DistiLLM, arXiv:2402.03898, section 3.1; DistiLLM-2, arXiv:2503.07067.
    """
    _check_skew(skew)
    if skew == 0.0:
        return forward_kl(student_logprobs, teacher_logprobs)
    return _relative_entropy(teacher_logprobs, _log_mixture(teacher_logprobs, student_logprobs, weight=skew))


def skew_reverse_kl(student_logprobs: Tensor, teacher_logprobs: Tensor, *, skew: float) -> Tensor:
    """``KL(q || (1 - skew) p + skew q)``: a reverse KL that stays finite where the teacher says no.

    Args:
        student_logprobs: float [..., outcomes].
        teacher_logprobs: float [..., outcomes].
        skew: In [0, 1); 0 is the reverse KL.

    Returns:
        float [...], >= 0, at most -log(skew); 0 where the distributions coincide.

    Raises:
        ConfigError: if skew lies outside [0, 1).

    References:
        Ko et al., DistiLLM, arXiv:2402.03898, section 3.1; DistiLLM-2, arXiv:2503.07067.
    """
    return skew_kl(teacher_logprobs, student_logprobs, skew=skew)


def total_variation(student_logprobs: Tensor, teacher_logprobs: Tensor) -> Tensor:
    """``1/2 sum |p - q|``: the mass that would have to move to turn one distribution into the other.

    Args:
        student_logprobs: float [..., outcomes].
        teacher_logprobs: float [..., outcomes].

    Returns:
        float [...] in [0, 1], a probability and not nats; 0 where the distributions coincide, 1 where they exclude
        each other. The gradient at an outcome with p = q is taken as 0.
    """
    return (teacher_logprobs.exp() - student_logprobs.exp()).abs().sum(dim=-1) / 2.0


def adaptive_kl(
    student_logprobs: Tensor, teacher_logprobs: Tensor, *, tail_mass: float, has_tail_bucket: bool = False
) -> Tensor:
    """Forward KL and reverse KL, each weighted by the share of ``sum |p - q|`` in the part that it fits well.

    The outcomes are split by the teacher's mass: the tail is made of the least likely ones, as long as they hold at
    most ``tail_mass`` together, the head of all others. With g the gap ``sum |p - q|`` of either part, a constant for
    the gradient:

        (g_head KL(p || q) + g_tail KL(q || p)) / (g_head + g_tail)

    It is not an f-divergence: the split, and with it the value, may grow or shrink when outcomes are merged.

    Differs from the paper: outcomes that the teacher holds equally likely stay on one side (the head, where they
    do not all fit into the tail), so that the order of the vocabulary has no say.

    Args:
        student_logprobs: float [..., outcomes].
        teacher_logprobs: float [..., outcomes].
        tail_mass: In [0, 1].
        has_tail_bucket: Whether the last outcome stands for all tokens that are not listed. It then counts as less
            likely than any other, whatever it holds: for top-k targets each listed token is then on the same side as
            over the whole vocabulary.

    Returns:
        float [...], >= 0; 0 where the distributions coincide; inf where the reverse or the forward KL is and its
        weight is not 0.

    Raises:
        ConfigError: if tail_mass lies outside [0, 1].

    References:
        Wu et al., Rethinking Kullback-Leibler Divergence in Knowledge Distillation for Large Language Models,
        arXiv:2404.02657, section 4.
    """
    if not 0.0 <= tail_mass <= 1.0:
        raise ConfigError(f"expected tail_mass in [0, 1], got {tail_mass}; it is a share of the teacher's mass")
    with torch.no_grad():
        probs = teacher_logprobs.exp()
        gaps = (probs - student_logprobs.exp()).abs()
        tail = gaps.masked_fill(~_is_least_likely(probs, tail_mass, has_tail_bucket), 0.0).sum(dim=-1)
        total = gaps.sum(dim=-1)
        reverse_share = torch.where(total > 0.0, tail / total, 0.5)
    forward = _relative_entropy(teacher_logprobs, student_logprobs)
    reverse = _relative_entropy(student_logprobs, teacher_logprobs)
    return _weighted(1.0 - reverse_share, forward) + _weighted(reverse_share, reverse)


def _relative_entropy(first: Tensor, second: Tensor) -> Tensor:
    """KL(first || second); terms of 0 and infinite terms are taken out before a log could reach the gradient."""
    is_zero = first == -torch.inf
    is_infinite = (second == -torch.inf) & ~is_zero
    is_plain = ~(is_zero | is_infinite)
    log_ratio = first.masked_fill(~is_plain, 0.0) - second.masked_fill(~is_plain, 0.0)
    finite = (first.exp() * log_ratio).sum(dim=-1)
    return finite + torch.where(is_infinite.any(dim=-1), torch.inf, 0.0)


def _log_mixture(first: Tensor, second: Tensor, *, weight: float) -> Tensor:
    """``log(weight first + (1 - weight) second)`` for 0 < weight < 1."""
    is_zero = (first == -torch.inf) & (second == -torch.inf)
    first, second = first.masked_fill(is_zero, 0.0), second.masked_fill(is_zero, 0.0)
    mixture = torch.logaddexp(first + math.log(weight), second + math.log1p(-weight))
    return mixture.masked_fill(is_zero, -torch.inf)


def _is_least_likely(probs: Tensor, mass: float, has_tail_bucket: bool) -> Tensor:
    """Bool [..., outcomes]: whether all outcomes that are no likelier than this one hold at most ``mass`` together."""
    keys = probs.clone()
    if has_tail_bucket:
        keys[..., -1] = -1.0
    ranked, order = keys.sort(dim=-1)
    cumulative = probs.gather(-1, order).cumsum(dim=-1, dtype=torch.float64)
    last_equal = torch.searchsorted(ranked, ranked, right=True) - 1
    fits = cumulative.gather(-1, last_equal) <= mass
    return torch.empty_like(fits).scatter_(-1, order, fits)


def _weighted(weight: Tensor, value: Tensor) -> Tensor:
    """Their product, 0 where the weight is 0, also for an infinite value."""
    return torch.where(weight > 0.0, weight * value, 0.0)


def _check_skew(skew: float) -> None:
    if not 0.0 <= skew < 1.0:
        raise ConfigError(f"expected skew in [0, 1), got {skew}; 0 is the plain KL, 0.1 the usual choice")

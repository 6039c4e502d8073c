"""From an estimated distribution to the few tokens of it that are stored: three reductions.

With t the distribution and s what is kept of it:

    top_k       the k likeliest tokens as they are, and one tail bucket for the rest. Not a distribution over tokens:
                the student learns the bucket's mass and nothing about what is in it.
    sampled     N draws from t:  s_v = c_v / N   (RS-KD). E[s] = t and sum s = 1.
    threshold   tokens with t_v >= c are kept, each other one is taken with probability t_v / c and gets s_v = c; c is
                the number for which exactly k tokens come out. E[s] = t and sum s = 1, in every single case.

The gradient of sum_v s_v (-log q_v) with respect to the student's logits is (sum s) q - s: linear in s, so an unbiased
target gives an unbiased gradient. Top-k without its tail does not: it scales kept tokens up, or forgets the rest.

Differs from the paper: RS-KD also draws from t at another temperature and weighs by the ratio. Such a target has mass 1
on average only, and dividing by its sum would bias it; ``threshold`` keeps rare tokens as well, with mass 1.

References:
    Anshumann et al., Sparse Logit Sampling: Accelerating Knowledge Distillation in LLMs, arXiv:2503.16870 (RS-KD).
    Fearnhead and Clifford, On-line inference for hidden Markov models via particle filters, JRSS B 65(4), 2003
    (threshold resampling: least expected squared error among unbiased targets of k tokens).
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from proxykd.config.estimation import ReductionSpec, SampledSpec, ThresholdSpec, TopKSpec
from proxykd.data.tokenizing import Example
from proxykd.divergences import bucketed_logprobs
from proxykd.estimation.estimates import (
    Estimate,
    SparseProbs,
    Uniforms,
    draw_columns,
    last_possible,
    merge_tokens,
    row_chunks,
    tokens_at,
)


class SparseRows(NamedTuple):
    """What is kept of n distributions.

    Attributes:
        token_ids: long [n, k], distinct within a row; -1 = unused, always last.
        logprobs: float32 [n, k], nats; -inf where unused.
        tail_logprob: float32 [n], log of the mass outside the k tokens; -inf = there is none.
    """

    token_ids: Tensor
    logprobs: Tensor
    tail_logprob: Tensor


class Reduction(Protocol):
    """Estimate -> what is kept of it, k tokens at most, of mass 1."""

    def __call__(self, estimate: Estimate, examples: Sequence[Example]) -> SparseRows:
        """The rows of ``examples``, one after the other."""


def build_reduction(spec: ReductionSpec, *, vocab_size: int, seed: int) -> Reduction:
    """The reduction that a specification names.

    Args:
        spec: Which, and how many tokens.
        vocab_size: Bounds the tokens kept.
        seed: Of the run; what is drawn depends on it and on the text alone.
    """
    width = min(spec.max_tokens, vocab_size)
    if isinstance(spec, TopKSpec):
        return TopK(width)
    if isinstance(spec, ThresholdSpec):
        return Threshold(width, Uniforms(seed, "threshold"))
    return Sampled(spec, width, Uniforms(seed, "reduction"))


class TopK:
    """The ``k`` likeliest tokens and a tail bucket."""

    def __init__(self, k: int) -> None:
        self._k = k

    def __call__(self, estimate: Estimate, examples: Sequence[Example]) -> SparseRows:
        """The rows of ``examples``, one after the other."""
        return top_k(estimate, self._k)


class Sampled:
    """Shares of drawn tokens."""

    def __init__(self, spec: SampledSpec, width: int, uniforms: Uniforms) -> None:
        self._spec, self._width, self._uniforms = spec, width, uniforms

    def __call__(self, estimate: Estimate, examples: Sequence[Example]) -> SparseRows:
        """The rows of ``examples``, one after the other."""
        spec, device = self._spec, estimate.scores.device
        if spec.scheme == "systematic":
            start = self._uniforms.of(examples, 1, device=device)
            points = (start + torch.arange(spec.draws, device=device)) / spec.draws
        else:
            points = self._uniforms.of(examples, spec.draws, device=device)
        return sampled(estimate, points, self._width)


class Threshold:
    """``k`` tokens, unbiased and of mass 1."""

    def __init__(self, k: int, uniforms: Uniforms) -> None:
        self._k, self._uniforms = k, uniforms

    def __call__(self, estimate: Estimate, examples: Sequence[Example]) -> SparseRows:
        """The rows of ``examples``, one after the other."""
        return threshold(estimate, self._uniforms.of(examples, 1, device=estimate.scores.device), self._k)


def top_k(estimate: Estimate, k: int) -> SparseRows:
    """The k likeliest tokens with their log-probabilities, and the log of the mass of all others."""
    columns = estimate.scores.topk(min(k, estimate.scores.shape[1]), dim=-1).indices
    kept = bucketed_logprobs(estimate.scores, columns, columns.new_zeros(len(columns)))
    return _padded(tokens_at(estimate, columns), kept.token_logprobs, kept.tail_logprob, k)


def sampled(estimate: Estimate, points: Tensor, width: int) -> SparseRows:
    """Each token's share of the draws.

    Args:
        estimate: t.
        points: Where in [0, 1) each draw falls, float64 [n, N].
        width: Columns of the result; N or the vocabulary, whichever is less.

    Returns:
        Rows of mass 1 without a tail.
    """
    columns = draw_columns(estimate.scores, points)
    shares = torch.full(points.shape, 1.0 / points.shape[1], dtype=torch.float64, device=points.device)
    return _without_tail(merge_tokens(tokens_at(estimate, columns), shares), width)


def threshold(estimate: Estimate, starts: Tensor, k: int) -> SparseRows:
    """An unbiased target of k tokens and of mass 1.

    With t sorted downwards, the h likeliest are kept as they are, h the first number for which no other one exceeds
    c = (mass of the others) / (k - h). The others, laid end to end, are read at k - h points c apart, the first of
    them at a random place: a token is as wide as its probability, at most c, and so is hit with probability t_v / c.

    Args:
        estimate: t.
        starts: Uniform numbers in [0, 1), float64 [n, 1].
        k: Most tokens kept.
    """
    parts = [_threshold(Estimate(estimate.scores[rows], None), starts[rows], k) for rows in row_chunks(estimate.scores)]
    columns, probs = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
    ids = torch.where(probs > 0.0, tokens_at(estimate, columns), -1)
    return _without_tail(merge_tokens(ids, probs), k)


def _threshold(estimate: Estimate, starts: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Columns [n, 2 width] and their probabilities, 0 where a slot is unused."""
    probs = estimate.scores.double().softmax(dim=-1)
    width = min(k, probs.shape[1])
    likely, columns = probs.topk(width, dim=-1)
    rest = (1.0 - likely.cumsum(dim=-1)).clamp_min(0.0) + likely  # mass of all but the first h, at index h
    spaces = rest / torch.arange(width, 0, -1, device=probs.device)
    # Up to rounding the last one always fits: one token is left to draw, and it stands for all that remain.
    fits = likely <= spaces * (1.0 + 1e-12)
    fits[:, -1] = True
    num_kept = fits.int().argmax(dim=-1, keepdim=True)
    is_kept = torch.arange(width, device=probs.device) < num_kept
    kept = torch.where(is_kept, likely, 0.0)
    others = probs.scatter(1, columns, torch.where(is_kept, 0.0, likely))
    cumulated = others.cumsum(dim=-1)
    num_drawn = width - num_kept
    space = cumulated[:, -1:] / num_drawn
    order = torch.arange(width, device=probs.device)
    points = (starts + order) * space
    # A product may round up to the whole.
    drawn = torch.minimum(torch.searchsorted(cumulated, points, right=True), last_possible(others.log())[:, None])
    return torch.cat([columns, drawn], dim=1), torch.cat([kept, torch.where(order < num_drawn, space, 0.0)], dim=1)


def _without_tail(merged: SparseProbs, width: int) -> SparseRows:
    tail = torch.full((len(merged.probs),), -torch.inf, device=merged.probs.device)
    return _padded(merged.token_ids, merged.probs.log().float(), tail, width)


def _padded(token_ids: Tensor, logprobs: Tensor, tail_logprob: Tensor, width: int) -> SparseRows:
    """Exactly ``width`` columns; a token of mass 0 is none."""
    ids = torch.where(logprobs > -torch.inf, token_ids, -1)
    missing = (0, width - ids.shape[1])
    return SparseRows(pad(ids, missing, value=-1), pad(logprobs, missing, value=-torch.inf), tail_logprob)

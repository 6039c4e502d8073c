"""Reductions: unbiased ones are, exactly and by Monte Carlo; the biased one is seen to be; mass, padding, edges."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from proxykd.config.estimation import SampledSpec, ThresholdSpec
from proxykd.data.tokenizing import Example
from proxykd.divergences import bucketed_forward_kl, bucketed_logprobs
from proxykd.estimation.estimates import Estimate
from proxykd.estimation.sparse_targets import SparseRows, build_reduction, sampled, threshold, top_k

TRUTH = torch.tensor([0.42, 0.25, 0.16, 0.09, 0.05, 0.03], dtype=torch.float64)
VOCAB = len(TRUTH)
Reduce = Callable[[Estimate, Tensor], SparseRows]


def estimate_of(probs: Tensor, rows: int = 1) -> Estimate:
    # Unnormalised on purpose: a constant a row must not matter.
    return Estimate((probs.log() + 3.0).float().expand(rows, -1).contiguous(), None)


def dense(rows: SparseRows, vocab: int = VOCAB) -> Tensor:
    """What is kept, as probabilities over the vocabulary."""
    found = torch.zeros(len(rows.token_ids), vocab + 1, dtype=torch.float64)
    ids = torch.where(rows.token_ids >= 0, rows.token_ids, vocab)
    return found.scatter_add_(1, ids, rows.logprobs.double().exp())[:, :vocab]


def gradient(rows: SparseRows, logits: Tensor) -> Tensor:
    """Of the student's sum_v s_v (-log q_v) with respect to its logits, row by row, through the real objective."""
    leaf = logits.expand(len(rows.token_ids), -1).clone().requires_grad_()
    student = bucketed_logprobs(leaf, rows.token_ids, torch.zeros(len(leaf), dtype=torch.long))
    bucketed_forward_kl(student, rows.logprobs.double(), rows.tail_logprob.double()).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


STUDENT = torch.tensor([0.3, -1.0, 0.8, 0.1, -0.4, 1.2], dtype=torch.float64)
DENSE_GRADIENT = STUDENT.softmax(-1) - TRUTH


def multinomial(estimate: Estimate, uniforms: Tensor) -> SparseRows:
    return sampled(estimate, uniforms, VOCAB)


def systematic(estimate: Estimate, uniforms: Tensor) -> SparseRows:
    return sampled(estimate, (uniforms[:, :1] + torch.arange(3)) / 3, VOCAB)


def thresholded(estimate: Estimate, uniforms: Tensor) -> SparseRows:
    return threshold(estimate, uniforms[:, :1], 3)


def test_the_mean_over_all_possible_draws_is_the_distribution() -> None:
    # Three draws of six tokens: 216 outcomes, each with its probability.
    cumulated = torch.cat([torch.zeros(1, dtype=torch.float64), TRUTH.cumsum(0)])
    middles = (cumulated[1:] + cumulated[:-1]) / 2
    outcomes = torch.tensor(list(itertools.product(range(VOCAB), repeat=3)))
    rows = sampled(estimate_of(TRUTH, len(outcomes)), middles[outcomes], VOCAB)
    weights = TRUTH[outcomes].prod(dim=1)
    np.testing.assert_allclose((weights[:, None] * dense(rows)).sum(0), TRUTH, atol=1e-6)
    np.testing.assert_allclose((weights[:, None] * gradient(rows, STUDENT)).sum(0), DENSE_GRADIENT, atol=1e-6)


@pytest.mark.parametrize("reduce", [systematic, thresholded])
def test_one_random_start_has_the_distribution_as_its_mean(reduce: Reduce) -> None:
    # The target is a step function of the start: a fine grid of starts integrates it up to one cell a step.
    starts = ((torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000)[:, None]
    rows = reduce(estimate_of(TRUTH, len(starts)), starts)
    np.testing.assert_allclose(dense(rows).mean(0), TRUTH, atol=2e-4)
    np.testing.assert_allclose(gradient(rows, STUDENT).mean(0), DENSE_GRADIENT, atol=2e-4)


@pytest.mark.parametrize("reduce", [multinomial, systematic, thresholded])
def test_sampled_gradients_average_to_the_dense_one(reduce: Reduce) -> None:
    num = 20_000
    uniforms = torch.rand(num, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    found = gradient(reduce(estimate_of(TRUTH, num), uniforms), STUDENT)
    error = (found.mean(0) - DENSE_GRADIENT).abs()
    # Central limit: six coordinates within five standard errors; 1e-6 for what does not vary.
    assert (error < 5 * found.std(0) / math.sqrt(num) + 1e-6).all()


def test_top_k_without_its_tail_is_biased_and_with_it_exact_on_the_bucket() -> None:
    kept = top_k(estimate_of(TRUTH), 3)
    mass = float(TRUTH[:3].sum())
    renormalised = kept._replace(logprobs=kept.logprobs - math.log(mass), tail_logprob=torch.full((1,), -torch.inf))
    cut_off = kept._replace(tail_logprob=torch.full((1,), -torch.inf))
    for biased in (renormalised, cut_off):
        assert (gradient(biased, STUDENT)[0] - DENSE_GRADIENT).abs().max() > 0.03
    # The renormalised target asks for 1 / mass as much of each kept token, and for nothing of the others.
    np.testing.assert_allclose(dense(renormalised)[0, :3], TRUTH[:3] / mass, rtol=1e-6)
    # With the tail the gradient is that of the dense KL between the two bucketed distributions.
    found = gradient(kept, STUDENT)[0]
    np.testing.assert_allclose(found[:3], DENSE_GRADIENT[:3], atol=1e-7)
    np.testing.assert_allclose(found[3:].sum(), DENSE_GRADIENT[3:].sum(), atol=1e-7)


@pytest.mark.parametrize("k", [1, 2, 5, 6])
def test_threshold_has_mass_one_k_tokens_and_keeps_the_likely_ones(k: int) -> None:
    uniforms = torch.rand(500, 1, generator=torch.Generator().manual_seed(k), dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    probs = torch.distributions.Dirichlet(torch.full((40,), 0.2, dtype=torch.float64))
    torch.manual_seed(7)
    scores = probs.sample((500,)).clamp_min(1e-30).log().float() + torch.rand(500, 1, generator=generator)
    rows = threshold(Estimate(scores, None), uniforms, k)
    assert ((rows.token_ids >= 0).sum(1) <= k).all()
    np.testing.assert_allclose(rows.logprobs.double().exp().sum(1), 1.0, atol=1e-6)
    truth = scores.double().softmax(-1)
    sums = dense(rows, 40)
    # No value is below its token's probability: it is kept as it is, or raised to the threshold, which is higher.
    assert (sums[sums > 0] >= truth[sums > 0] * (1 - 1e-6)).all()


def test_threshold_has_less_squared_error_than_as_many_draws() -> None:
    num = 4000
    uniforms = torch.rand(num, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    estimate = estimate_of(TRUTH, num)
    errors = [
        float((dense(rows) - TRUTH).square().sum(1).mean())
        for rows in (
            threshold(estimate, uniforms[:, :1], 3),
            sampled(estimate, (uniforms[:, :1] + torch.arange(3)) / 3, VOCAB),
            sampled(estimate, uniforms, VOCAB),
        )
    ]
    assert errors[0] < errors[1] < errors[2]
    # Independent draws have the multinomial variance: sum t (1 - t) / N.
    assert errors[2] == pytest.approx(float((TRUTH * (1 - TRUTH)).sum() / 3), rel=0.05)


def test_systematic_counts_lie_within_one_draw_of_their_mean() -> None:
    starts = torch.rand(200, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rows = sampled(estimate_of(TRUTH, 200), (starts + torch.arange(50)) / 50, VOCAB)
    assert ((dense(rows) * 50 - TRUTH * 50).abs() < 1 + 1e-6).all()


@pytest.mark.parametrize("k", [3, 6, 9])
def test_a_distribution_over_few_tokens_is_kept_whole(k: int) -> None:
    sparse = Estimate(torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0]]).log(), torch.tensor([[7, 2, 4], [3, -1, -1]]))
    start = torch.tensor([[0.3], [0.999999]], dtype=torch.float64)
    for rows in (top_k(sparse, k), threshold(sparse, start, k)):
        assert rows.token_ids.shape == (2, k)
        assert (rows.tail_logprob == -torch.inf).all()
        np.testing.assert_allclose(dense(rows, 8)[0, [7, 2, 4]], [0.5, 0.3, 0.2], rtol=1e-6)
        assert rows.token_ids[1].tolist() == [3] + [-1] * (k - 1)
        assert (rows.logprobs[rows.token_ids < 0] == -torch.inf).all()


def test_impossible_tokens_are_never_drawn_wherever_the_point_falls() -> None:
    estimate = Estimate(torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).expand(4, -1), None)
    points = torch.tensor([[0.0], [0.5], [1 - 2**-53], [0.49999999999999994]], dtype=torch.float64)
    assert sampled(estimate, points, 5).token_ids[:, 0].tolist() == [1, 3, 3, 1]
    assert set(threshold(estimate, points, 1).token_ids[:, 0].tolist()) == {1, 3}


@pytest.mark.parametrize("spec", [SampledSpec(draws=5), SampledSpec(draws=5, scheme="systematic"), ThresholdSpec(k=4)])
def test_what_is_drawn_depends_on_seed_and_text_and_not_on_the_batch(spec: SampledSpec | ThresholdSpec) -> None:
    def example(name: str) -> Example:
        return Example(name, 0, np.ones(2, np.int32), np.ones(3, np.int32))

    scores = torch.randn(6, 50, generator=torch.Generator().manual_seed(0))
    both = build_reduction(spec, vocab_size=50, seed=1)(Estimate(scores, None), [example("a"), example("b")])
    alone = build_reduction(spec, vocab_size=50, seed=1)(Estimate(scores[3:], None), [example("b")])
    other = build_reduction(spec, vocab_size=50, seed=2)(Estimate(scores[3:], None), [example("b")])
    for part, whole in zip(alone, both, strict=True):
        assert torch.equal(part, whole[3:])
    assert not torch.equal(alone.token_ids, other.token_ids)

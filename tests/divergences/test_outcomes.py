"""Divergences between outcomes: what must hold of every one, then their limits, oracles, and numbers by hand.

Distributions come with zeros on either side; the oracle is the formula in float64, where a term of 0 is left out.
"""

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from proxykd.divergences import (
    BucketedLogprobs,
    Divergence,
    bucketed_divergence,
    bucketed_logprobs,
    dense_divergence,
    outcomes,
)
from proxykd.exceptions import ConfigError, ShapeError

F_DIVERGENCES: dict[str, Divergence] = {
    "forward_kl": outcomes.forward_kl,
    "reverse_kl": outcomes.reverse_kl,
    "jsd_0.1": partial(outcomes.generalized_jsd, beta=0.1),
    "jsd_0.5": partial(outcomes.generalized_jsd, beta=0.5),
    "jsd_0.9": partial(outcomes.generalized_jsd, beta=0.9),
    "skew_kl": partial(outcomes.skew_kl, skew=0.1),
    "skew_reverse_kl": partial(outcomes.skew_reverse_kl, skew=0.1),
    "total_variation": outcomes.total_variation,
}
ADAPTIVE = partial(outcomes.adaptive_kl, tail_mass=0.5)
DIVERGENCES = F_DIVERGENCES | {"adaptive_kl": ADAPTIVE}
BUCKETED = F_DIVERGENCES | {"adaptive_kl": partial(ADAPTIVE, has_tail_bucket=True)}
ROWS = 8

# Each example has ROWS distributions of its own.
ROWWISE = settings(max_examples=6)

every = pytest.mark.parametrize("name", DIVERGENCES)
every_f = pytest.mark.parametrize("name", F_DIVERGENCES)
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(1, 12)


def distributions(seed: int, size: int, *, zeros: float = 0.0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Log-probabilities [ROWS, size], from nearly uniform to nearly one-hot; so many of them 0, one never."""
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(ROWS, size)) * rng.choice([0.01, 1.0, 5.0], size=(ROWS, 1))
    is_zero = rng.random((ROWS, size)) < zeros
    is_zero[np.arange(ROWS), rng.integers(size, size=ROWS)] = False
    scores[is_zero] = -np.inf
    return torch.from_numpy(scores).log_softmax(dim=-1).to(dtype)


def kl(first: Tensor, second: Tensor) -> Tensor:
    """KL of two [rows, outcomes] probabilities: a term is 0 where the first is, infinite where only the second is."""
    return torch.where(first > 0, first * (first / second).log(), 0.0).sum(-1)


def adaptive(p: Tensor, q: Tensor, mass: float) -> Tensor:
    """Adaptive KL by its definition, without sorting: an outcome asks how much mass is no likelier than itself."""
    is_tail = (p[:, None, :] * (p[:, None, :] <= p[:, :, None])).sum(-1) <= mass
    gaps = (p - q).abs()
    share = torch.nan_to_num((gaps * is_tail).sum(-1) / gaps.sum(-1), nan=0.5)
    parts = torch.stack([(1 - share) * kl(p, q), share * kl(q, p)])
    return torch.where(torch.stack([1 - share, share]) > 0, parts, 0.0).sum(0)


ORACLES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward_kl": kl,
    "reverse_kl": lambda p, q: kl(q, p),
    "jsd_0.1": lambda p, q: 0.1 * kl(p, 0.1 * p + 0.9 * q) + 0.9 * kl(q, 0.1 * p + 0.9 * q),
    "jsd_0.5": lambda p, q: 0.5 * kl(p, 0.5 * p + 0.5 * q) + 0.5 * kl(q, 0.5 * p + 0.5 * q),
    "jsd_0.9": lambda p, q: 0.9 * kl(p, 0.9 * p + 0.1 * q) + 0.1 * kl(q, 0.9 * p + 0.1 * q),
    "skew_kl": lambda p, q: kl(p, 0.1 * p + 0.9 * q),
    "skew_reverse_kl": lambda p, q: kl(q, 0.9 * p + 0.1 * q),
    "total_variation": lambda p, q: (p - q).abs().sum(-1) / 2,
    "adaptive_kl": lambda p, q: adaptive(p, q, 0.5),
}


@every
@ROWWISE
@given(seed=seeds, size=sizes, zeros=st.sampled_from([0.0, 0.4]))
def test_it_is_the_formula_wherever_either_side_is_zero(name: str, seed: int, size: int, zeros: float) -> None:
    student, teacher = distributions(seed, size, zeros=zeros), distributions(seed + 1, size, zeros=zeros)
    expected = ORACLES[name](teacher.exp(), student.exp())
    torch.testing.assert_close(DIVERGENCES[name](student, teacher), expected, atol=1e-12, rtol=1e-9)


@every
@ROWWISE
@given(seed=seeds, size=sizes, zeros=st.sampled_from([0.0, 0.4]))
def test_it_is_never_negative_and_zero_at_equality(name: str, seed: int, size: int, zeros: float) -> None:
    student, teacher = (distributions(seed + i, size, zeros=zeros, dtype=torch.float32) for i in (0, 1))
    assert (DIVERGENCES[name](student, teacher) >= -1e-6).all()
    torch.testing.assert_close(DIVERGENCES[name](teacher, teacher), torch.zeros(ROWS), atol=1e-6, rtol=0)


@every
@ROWWISE
@given(seed=seeds, size=st.integers(2, 12))
def test_different_distributions_are_told_apart(name: str, seed: int, size: int) -> None:
    teacher = distributions(seed, size)
    student = (teacher.exp() * 0.9 + 0.1 * torch.eye(size, dtype=torch.float64)[0]).log()
    is_different = (teacher.exp() - student.exp()).abs().sum(-1) > 1e-3
    assert (DIVERGENCES[name](student, teacher)[is_different] > 1e-9).all()


@every
@ROWWISE
@given(seed=seeds, size=sizes, zeros=st.sampled_from([0.0, 0.4]))
def test_the_order_of_the_vocabulary_has_no_say(name: str, seed: int, size: int, zeros: float) -> None:
    student, teacher = distributions(seed, size, zeros=zeros), distributions(seed + 1, size, zeros=zeros)
    tied = teacher.exp().mul(4).round().clamp_min(1).log().log_softmax(-1)  # many tokens are equally likely
    order = torch.from_numpy(np.random.default_rng(seed).permutation(size))
    for one in (teacher, tied):
        found = DIVERGENCES[name](student[:, order], one[:, order])
        torch.testing.assert_close(found, DIVERGENCES[name](student, one), atol=1e-12, rtol=1e-9)


def frozen_adaptive(student: Tensor, teacher: Tensor, at: Tensor) -> Tensor:
    """Adaptive KL with the weights that belong to ``at``: what its gradient is the gradient of."""
    with torch.no_grad():
        forward, reverse = outcomes.forward_kl(at, teacher), outcomes.reverse_kl(at, teacher)
        share = (ADAPTIVE(at, teacher) - forward) / (reverse - forward)
    return (1 - share) * outcomes.forward_kl(student, teacher) + share * outcomes.reverse_kl(student, teacher)


@every
@ROWWISE
@given(seed=seeds, size=st.integers(2, 8))
def test_the_gradient_is_that_of_finite_differences_in_float64(name: str, seed: int, size: int) -> None:
    teacher = distributions(seed, size)
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(ROWS, size)) * 2).requires_grad_()
    dense_divergence(logits, teacher, DIVERGENCES[name]).sum().backward()
    start, step = logits.detach(), 1e-6
    divergence = DIVERGENCES[name]
    if name == "adaptive_kl":
        divergence = partial(frozen_adaptive, at=start.log_softmax(-1))
    shifts = step * torch.eye(size, dtype=torch.float64)[:, None, :]  # [column, 1, size]
    ahead, behind = (
        dense_divergence(start + shift, teacher.expand(size, -1, -1), divergence) for shift in (shifts, -shifts)
    )
    torch.testing.assert_close(logits.grad, ((ahead - behind) / (2 * step)).T, atol=2e-5, rtol=1e-4)


@every
@ROWWISE
@given(seed=seeds, size=st.integers(2, 8))
def test_the_float32_gradient_is_that_of_float64(name: str, seed: int, size: int) -> None:
    teacher, grads = distributions(seed, size), []
    start = distributions(seed + 1, size).float()
    for dtype in (torch.float32, torch.float64):
        logits = start.detach().clone().to(dtype).requires_grad_()
        dense_divergence(logits, teacher.to(dtype), DIVERGENCES[name]).sum().backward()
        grads.append(logits.grad.double())
    scale = grads[1].abs().amax().clamp_min(1e-3)
    assert ((grads[0] - grads[1]).abs().amax() / scale).item() < 2e-5


@every
@ROWWISE
@given(seed=seeds, size=sizes)
def test_gradients_are_finite_whatever_either_side_excludes(name: str, seed: int, size: int) -> None:
    logits = distributions(seed, size, zeros=0.5, dtype=torch.float32).requires_grad_()
    teacher = distributions(seed + 1, size, zeros=0.5, dtype=torch.float32)
    dense_divergence(logits, teacher, DIVERGENCES[name]).sum().backward()
    assert torch.isfinite(logits.grad).all()


@every
def test_it_is_infinite_only_where_mathematics_says_so(name: str) -> None:
    half, one = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[1.0, 0.0]]).log()
    found = [math.isinf(DIVERGENCES[name](student, teacher).item()) for student, teacher in ((one, half), (half, one))]
    # The student excludes what the teacher allows; the teacher excludes what the student allows.
    expected = {"forward_kl": [True, False], "reverse_kl": [False, True], "adaptive_kl": [True, True]}
    assert found == expected.get(name, [False, False])


@every_f
@ROWWISE
@given(seed=seeds, size=st.integers(2, 12), zeros=st.sampled_from([0.0, 0.4]))
def test_merging_outcomes_never_makes_an_f_divergence_larger(name: str, seed: int, size: int, zeros: float) -> None:
    student, teacher = distributions(seed, size, zeros=zeros), distributions(seed + 1, size, zeros=zeros)
    merged = [torch.cat([one[:, :-2], one[:, -2:].logsumexp(-1, keepdim=True)], -1) for one in (student, teacher)]
    assert (DIVERGENCES[name](*merged) <= DIVERGENCES[name](student, teacher) + 1e-12).all()


def test_merging_outcomes_can_make_the_adaptive_kl_larger() -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(500, 4, generator=generator).mul(2).log_softmax(-1) for _ in range(2))
    merged = [torch.cat([one[:, :-2], one[:, -2:].logsumexp(-1, keepdim=True)], -1) for one in (student, teacher)]
    assert (ADAPTIVE(*merged) > ADAPTIVE(student, teacher) + 1e-2).any()


@pytest.mark.parametrize("name", DIVERGENCES)
@ROWWISE
@given(seed=seeds, k=st.integers(0, 12))
def test_buckets_equal_the_dense_form_at_full_size_and_stay_below_it_otherwise(name: str, seed: int, k: int) -> None:
    logits, teacher = distributions(seed, 12) * 1.5, distributions(seed + 1, 12)
    top = teacher.topk(k, dim=-1)
    rest = teacher.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    student = bucketed_logprobs(logits, top.indices, torch.zeros(ROWS, dtype=torch.long))
    found = bucketed_divergence(student, top.values, rest, BUCKETED[name])
    dense = dense_divergence(logits, teacher, DIVERGENCES[name])
    if k in (0, 12):
        torch.testing.assert_close(found, dense if k else torch.zeros_like(dense), atol=1e-12, rtol=1e-9)
    elif name in F_DIVERGENCES:
        assert (found <= dense + 1e-12).all()
    assert (found >= -1e-12).all()


@ROWWISE
@given(seed=seeds, k=st.integers(1, 11))
def test_the_adaptive_kl_splits_listed_tokens_as_over_the_whole_vocabulary(seed: int, k: int) -> None:
    probs = distributions(seed, 12).exp()
    top = probs.topk(k, dim=-1)
    listed = torch.cat([top.values, 1 - top.values.sum(-1, keepdim=True)], -1)
    whole = outcomes._is_least_likely(probs, 0.5 + 1e-9, has_tail_bucket=False)
    split = outcomes._is_least_likely(listed, 0.5 + 1e-9, has_tail_bucket=True)
    assert torch.equal(split[:, :k], whole.gather(-1, top.indices))


@pytest.mark.parametrize("name", BUCKETED)
@pytest.mark.parametrize("student_peak", [0.0, 30.0, 90.0, 1e4])
@pytest.mark.parametrize("tail_prob", [0.0, 1e-30, 1e-8, 0.5])
def test_bucketed_gradients_are_finite_whatever_either_tail_holds(
    name: str, student_peak: float, tail_prob: float
) -> None:
    logits = torch.zeros(1, 23)
    logits[0, 0] = student_peak
    logits.requires_grad_()
    student = bucketed_logprobs(logits, torch.tensor([[0, 1, -1]]), torch.tensor([0]))
    teacher = torch.tensor([[1.0 - tail_prob, 0.0, 0.0]]).log()
    value = bucketed_divergence(student, teacher, torch.tensor([tail_prob]).log(), BUCKETED[name])
    value.sum().backward()
    assert torch.isfinite(logits.grad).all()
    assert torch.isfinite(value).all() or name in {"reverse_kl", "adaptive_kl"}


@pytest.mark.parametrize("name", BUCKETED)
def test_no_rows_and_no_tokens_are_no_special_case(name: str) -> None:
    for rows, k in ((0, 3), (0, 0), (2, 0)):
        logits = torch.randn(rows, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
        ids = torch.arange(k).expand(rows, k)
        student = bucketed_logprobs(logits, ids, torch.zeros(rows, dtype=torch.long))
        value = bucketed_divergence(student, torch.zeros(rows, k), torch.zeros(rows), BUCKETED[name])
        assert value.shape == (rows,)
        value.sum().backward()
        torch.testing.assert_close(logits.grad, torch.zeros_like(logits))
        torch.testing.assert_close(value.detach(), torch.zeros(rows))


@pytest.mark.parametrize("name", BUCKETED)
@ROWWISE
@given(seed=seeds)
def test_unused_slots_change_no_divergence_and_no_gradient(name: str, seed: int) -> None:
    top, results = distributions(seed, 12).topk(4, dim=-1), []
    rest = (1 - top.values.exp().sum(-1)).log()
    for extra in (0, 3):
        logits = distributions(seed + 1, 12).requires_grad_()
        ids = torch.cat([top.indices, torch.full((ROWS, extra), -1)], -1)
        teacher = torch.cat([top.values, torch.full((ROWS, extra), -torch.inf)], -1)
        student = bucketed_logprobs(logits, ids, torch.zeros(ROWS, dtype=torch.long))
        value = bucketed_divergence(student, teacher, rest, BUCKETED[name])
        value.sum().backward()
        results.append((value.detach(), logits.grad))
    torch.testing.assert_close(results[0], results[1], atol=1e-14, rtol=1e-12)


@ROWWISE
@given(seed=seeds, size=sizes)
def test_the_jsd_tends_to_both_kls_and_is_them_at_its_ends(seed: int, size: int) -> None:
    student, teacher = distributions(seed, size), distributions(seed + 1, size)
    forward, reverse = outcomes.forward_kl(student, teacher), outcomes.reverse_kl(student, teacher)
    torch.testing.assert_close(outcomes.generalized_jsd(student, teacher, beta=0.0), forward)
    torch.testing.assert_close(outcomes.generalized_jsd(student, teacher, beta=1.0), reverse)
    # The remainder is of the order of beta times a chi-square, which is huge where one side is nearly 0.
    mild = (student - teacher).abs().amax(-1) < 4.0
    near_0 = outcomes.generalized_jsd(student, teacher, beta=1e-5) / 1e-5
    near_1 = outcomes.generalized_jsd(student, teacher, beta=1 - 1e-5) / 1e-5
    torch.testing.assert_close(near_0[mild], forward[mild], atol=1e-4, rtol=2e-2)
    torch.testing.assert_close(near_1[mild], reverse[mild], atol=1e-4, rtol=2e-2)


@ROWWISE
@given(seed=seeds, size=sizes, beta=st.floats(0.01, 0.99))
def test_swapping_the_sides_swaps_beta_and_the_entropy_bounds_it(seed: int, size: int, beta: float) -> None:
    student, teacher = distributions(seed, size, zeros=0.4), distributions(seed + 1, size, zeros=0.4)
    value = outcomes.generalized_jsd(student, teacher, beta=beta)
    swapped = outcomes.generalized_jsd(teacher, student, beta=1 - beta)
    torch.testing.assert_close(value, swapped, atol=1e-12, rtol=1e-9)
    assert (value <= -beta * math.log(beta) - (1 - beta) * math.log1p(-beta) + 1e-12).all()


@ROWWISE
@given(seed=seeds, size=sizes, skew=st.floats(0.01, 0.99))
def test_skewing_bounds_the_kls_and_tends_to_them(seed: int, size: int, skew: float) -> None:
    student, teacher = distributions(seed, size), distributions(seed + 1, size)
    mild = (student - teacher).abs().amax(-1) < 4.0
    pairs = ((outcomes.skew_kl, outcomes.forward_kl), (outcomes.skew_reverse_kl, outcomes.reverse_kl))
    for skewed, plain in pairs:
        value, limit = skewed(student, teacher, skew=skew), plain(student, teacher)
        assert (value <= torch.minimum(limit, torch.tensor(-math.log(skew))) + 1e-12).all()
        torch.testing.assert_close(skewed(student, teacher, skew=0.0), limit)
        near = skewed(student, teacher, skew=1e-9)
        torch.testing.assert_close(near[mild], limit[mild], atol=1e-4, rtol=1e-4)
    # The two are one formula with the sides swapped.
    assert torch.equal(
        outcomes.skew_kl(student, teacher, skew=skew), outcomes.skew_reverse_kl(teacher, student, skew=skew)
    )


@ROWWISE
@given(seed=seeds, size=sizes)
def test_total_variation_is_symmetric_at_most_one_and_below_pinskers_bound(seed: int, size: int) -> None:
    student, teacher = distributions(seed, size, zeros=0.3), distributions(seed + 1, size, zeros=0.3)
    value = outcomes.total_variation(student, teacher)
    torch.testing.assert_close(value, outcomes.total_variation(teacher, student))
    assert (value <= 1 + 1e-12).all()
    assert (value <= (outcomes.forward_kl(student, teacher) / 2).sqrt() + 1e-9).all()
    assert (value <= (outcomes.reverse_kl(student, teacher) / 2).sqrt() + 1e-9).all()


@ROWWISE
@given(seed=seeds, size=sizes)
def test_the_adaptive_kl_lies_between_both_kls_and_is_them_at_its_ends(seed: int, size: int) -> None:
    student, teacher = distributions(seed, size), distributions(seed + 1, size)
    forward, reverse = outcomes.forward_kl(student, teacher), outcomes.reverse_kl(student, teacher)
    value = ADAPTIVE(student, teacher)
    assert (value >= torch.minimum(forward, reverse) - 1e-12).all()
    assert (value <= torch.maximum(forward, reverse) + 1e-12).all()
    torch.testing.assert_close(outcomes.adaptive_kl(student, teacher, tail_mass=0.0), forward)


@ROWWISE
@given(seed=seeds, temperature=st.floats(0.25, 8.0))
def test_the_dense_temperature_divides_the_scores_of_both_sides(seed: int, temperature: float) -> None:
    scores = [distributions(seed + i, 7) * 2 + i for i in (0, 1)]
    found = dense_divergence(scores[0], scores[1].log_softmax(-1), outcomes.forward_kl, temperature=temperature)
    student, teacher = ((one / temperature).log_softmax(-1) for one in scores)
    torch.testing.assert_close(found, outcomes.forward_kl(student, teacher))


def test_tempering_stored_buckets_is_not_bucketing_the_tempered_distribution() -> None:
    # Why temperature belongs to the making of sparse targets: the tail at T = 2 depends on how its tokens share it.
    few, many = (torch.tensor([0.5, *[0.5 / n] * n, *[0.0] * (8 - n)]) for n in (1, 8))
    tails = []
    for probs in (few, many):
        tempered = (probs.log() / 2).softmax(-1)
        tails.append(1 - tempered[0].item())
    assert tails == pytest.approx([0.5, 8 / (8 + math.sqrt(8))], abs=1e-6)


def test_hand_computed_numbers() -> None:
    student, teacher = torch.tensor([0.5, 0.25, 0.25]).log(), torch.tensor([0.25, 0.25, 0.5]).log()
    # KL(p||q) = 1/4 log(1/2) + 0 + 1/2 log 2 = 1/4 log 2; the same the other way round.
    assert outcomes.forward_kl(student, teacher).item() == pytest.approx(math.log(2) / 4, abs=1e-7)
    assert outcomes.reverse_kl(student, teacher).item() == pytest.approx(math.log(2) / 4, abs=1e-7)
    # 1/2 (1/4 + 0 + 1/4) = 1/4
    assert outcomes.total_variation(student, teacher).item() == pytest.approx(0.25, abs=1e-7)
    # m = (3/8, 1/4, 3/8); 1/4 log(2/3) + 1/2 log(4/3) for either side = 0.042474
    assert outcomes.generalized_jsd(student, teacher, beta=0.5).item() == pytest.approx(0.042474, abs=1e-6)
    # 1/2 p + 1/2 q is the same m
    assert outcomes.skew_kl(student, teacher, skew=0.5).item() == pytest.approx(0.042474, abs=1e-6)


def test_hand_computed_adaptive_kl() -> None:
    # p = (.6, .3, .1), q = (.4, .2, .4). Up to half the mass: .1, then .3, makes .4; the head is .6 alone.
    # Gaps .2 | .1 + .3: the forward KL weighs 1/3, the reverse KL 2/3.
    # KL(p||q) = .6 log 1.5 + .3 log 1.5 - .1 log 4 = 0.226289; KL(q||p) = .6 log(2/3) + .4 log 4 = 0.311239
    teacher, student = torch.tensor([0.6, 0.3, 0.1]).log(), torch.tensor([0.4, 0.2, 0.4]).log()
    assert ADAPTIVE(student, teacher).item() == pytest.approx((0.226289 + 2 * 0.311239) / 3, abs=1e-5)


@pytest.mark.integration
@pytest.mark.parametrize("temperature", [1.0, 2.5])
@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_jsd_is_that_of_trl(beta: float, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRL_EXPERIMENTAL_SILENCE", "1")
    from trl.experimental.gkd import GKDTrainer

    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(2, 5, 31, generator=generator) * 3).requires_grad_()
    teacher = torch.randn(2, 5, 31, generator=generator) * 3
    expected = GKDTrainer.generalized_jsd_loss(logits, teacher, beta=beta, temperature=temperature, reduction="sum")
    (expected_grad,) = torch.autograd.grad(expected, logits)
    jsd = partial(outcomes.generalized_jsd, beta=beta)
    found = dense_divergence(logits, teacher.log_softmax(-1), jsd, temperature=temperature).sum()
    (grad,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(grad, expected_grad, atol=2e-6, rtol=1e-4)


@every_f
def test_bfloat16_scores_are_computed_in_float32(name: str) -> None:
    logits, teacher = distributions(0, 9, dtype=torch.bfloat16), distributions(1, 9, dtype=torch.float32)
    found = dense_divergence(logits, teacher, DIVERGENCES[name])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, dense_divergence(logits.float(), teacher, DIVERGENCES[name]))


def test_parameters_outside_their_range_are_refused() -> None:
    logits = torch.zeros(2, 3)
    teacher = logits.log_softmax(-1)
    with pytest.raises(ConfigError, match="beta"):
        outcomes.generalized_jsd(teacher, teacher, beta=1.5)
    with pytest.raises(ConfigError, match="skew"):
        outcomes.skew_kl(teacher, teacher, skew=1.0)
    with pytest.raises(ConfigError, match="tail_mass"):
        outcomes.adaptive_kl(teacher, teacher, tail_mass=-0.1)
    with pytest.raises(ConfigError, match="temperature"):
        dense_divergence(logits, teacher, outcomes.forward_kl, temperature=0.0)
    with pytest.raises(ShapeError, match="bucketed_divergence"):
        dense_divergence(logits, teacher[:, :2], outcomes.reverse_kl)
    student = BucketedLogprobs(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ShapeError, match="tail_logprob"):
        bucketed_divergence(student, torch.zeros(2, 3), torch.zeros(3), outcomes.total_variation)

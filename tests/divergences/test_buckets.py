"""Divergences: properties first, then float64 autograd as the oracle, then a number worked out by hand."""

import math

import pytest
import torch
from torch import Tensor

from proxykd.divergences import (
    BucketedLogprobs,
    bucketed_forward_kl,
    bucketed_logprobs,
    forward_kl,
    sparse_forward_kl,
)
from proxykd.divergences.buckets import _CHUNK_SCORES_CPU
from proxykd.exceptions import ShapeError

NUM_ROWS, VOCAB = 7, 23


def random_logits(seed: int, *, scale: float = 3.0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(NUM_ROWS, VOCAB, generator=generator, dtype=torch.float64).mul(scale).to(dtype)


def sparse_teacher(logits: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Top-k ids, their log-probabilities and the log of the tail, straight from the definition in float64."""
    logprobs, ids = logits.double().log_softmax(dim=-1).topk(k, dim=-1)
    tail = (1.0 - logprobs.exp().sum(dim=-1)).clamp_min(0.0)
    tail = tail if k < logits.shape[-1] else torch.zeros_like(tail)
    return ids, logprobs.to(logits.dtype), tail.log().to(logits.dtype)


def naive_sparse_kl(logits: Tensor, ids: Tensor, teacher: Tensor, tail: Tensor) -> Tensor:
    """The formula as it is written; autograd through it is the oracle. Needs tails that are not tiny."""
    q = logits.softmax(dim=-1).gather(1, ids)
    p, p_tail = teacher.exp(), tail.exp()
    return (p * (teacher - q.log())).sum(-1) + p_tail * (tail - (1.0 - q.sum(-1)).log())


@pytest.mark.parametrize("seed", range(5))
def test_kl_is_never_negative_and_zero_at_equality(seed: int) -> None:
    student, teacher = random_logits(seed), random_logits(seed + 100)
    assert (forward_kl(student, teacher.log_softmax(-1)) > 0).all()
    torch.testing.assert_close(forward_kl(student, student.log_softmax(-1)), torch.zeros(NUM_ROWS), atol=1e-6, rtol=0)


@pytest.mark.parametrize("k", [1, 4, VOCAB - 1, VOCAB])
def test_sparse_kl_is_never_negative_and_zero_at_equality(k: int) -> None:
    student, teacher = random_logits(1), random_logits(2)
    assert (sparse_forward_kl(student, *sparse_teacher(teacher, k)) > 0).all()
    torch.testing.assert_close(
        sparse_forward_kl(student, *sparse_teacher(student, k)), torch.zeros(NUM_ROWS), atol=2e-6, rtol=0
    )


def test_sparse_kl_grows_with_k_towards_the_dense_kl() -> None:
    student, teacher = random_logits(3), random_logits(4)
    dense = forward_kl(student, teacher.log_softmax(-1))
    previous = torch.zeros(NUM_ROWS)
    for k in range(1, VOCAB + 1):
        sparse = sparse_forward_kl(student, *sparse_teacher(teacher, k))
        assert (sparse >= previous - 1e-5).all()
        assert (sparse <= dense + 1e-5).all()
        previous = sparse
    torch.testing.assert_close(previous, dense)


def test_dense_kl_agrees_with_torch_distributions() -> None:
    student, teacher = random_logits(5), random_logits(6)
    expected = torch.distributions.kl_divergence(
        torch.distributions.Categorical(logits=teacher), torch.distributions.Categorical(logits=student)
    )
    torch.testing.assert_close(forward_kl(student, teacher.log_softmax(-1)), expected)


@pytest.mark.parametrize("k", [0, 1, 5, VOCAB])
def test_buckets_are_log_probabilities_that_sum_to_one(k: int) -> None:
    logits = random_logits(7)
    ids, labels = logits.topk(k, dim=-1).indices, torch.arange(NUM_ROWS)
    buckets = bucketed_logprobs(logits, ids, labels)
    expected = logits.log_softmax(-1)
    torch.testing.assert_close(buckets.token_logprobs, expected.gather(1, ids))
    torch.testing.assert_close(buckets.label_logprobs, expected.gather(1, labels[:, None]).squeeze(1))
    total = buckets.token_logprobs.exp().sum(-1) + buckets.tail_logprob.exp()
    torch.testing.assert_close(total, torch.ones(NUM_ROWS))


@pytest.mark.parametrize("k", [0, 1, 5, VOCAB - 1])
def test_the_closed_form_gradient_passes_gradcheck(k: int) -> None:
    logits = random_logits(8, dtype=torch.float64).requires_grad_()
    ids, labels = random_logits(9).topk(k, dim=-1).indices, torch.arange(NUM_ROWS) + 3
    assert torch.autograd.gradcheck(lambda z: tuple(bucketed_logprobs(z, ids, labels)), logits)


def test_gradient_equals_float64_autograd_through_the_plain_formula() -> None:
    student = random_logits(10).requires_grad_()
    ids, teacher, tail = sparse_teacher(random_logits(11), 4)
    sparse_forward_kl(student, ids, teacher, tail).sum().backward()
    oracle = student.detach().double().requires_grad_()
    naive_sparse_kl(oracle, ids, teacher.double(), tail.double()).sum().backward()
    assert student.grad is not None
    assert oracle.grad is not None
    torch.testing.assert_close(student.grad.double(), oracle.grad, atol=1e-6, rtol=1e-5)


def test_a_tiny_tail_keeps_its_relative_precision() -> None:
    # 1 - sum_k q_k would round to 0 here; the tail is 22 exp(-50) / (1 + ...) = 22 exp(-50).
    logits = torch.zeros(1, VOCAB)
    logits[0, 0] = 50.0
    buckets = bucketed_logprobs(logits, torch.tensor([[0]]), torch.tensor([0]))
    assert buckets.tail_logprob.item() == pytest.approx(math.log(22) - 50.0, rel=1e-6)


@pytest.mark.parametrize("student_peak", [0.0, 30.0, 90.0, 1e4])
@pytest.mark.parametrize("tail_prob", [0.0, 1e-30, 1e-8, 0.5])
def test_gradients_are_finite_whatever_either_tail_holds(student_peak: float, tail_prob: float) -> None:
    logits = torch.zeros(1, VOCAB)
    logits[0, 0] = student_peak
    logits.requires_grad_()
    ids, teacher = torch.tensor([[0, 1]]), torch.tensor([[1.0 - tail_prob, 0.0]]).log()
    kl = sparse_forward_kl(logits, ids, teacher, torch.tensor([tail_prob]).log())
    kl.sum().backward()
    assert torch.isfinite(kl).all()
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_tokens_that_either_side_excludes() -> None:
    student = torch.tensor([[0.0, 0.0, -torch.inf]], requires_grad=True)
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    sparse = sparse_forward_kl(student, torch.tensor([[0, 1, 2]]), teacher, torch.tensor([-torch.inf]))
    sparse.sum().backward()
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()
    torch.testing.assert_close(sparse.detach(), torch.zeros(1))
    torch.testing.assert_close(forward_kl(student, teacher).detach(), torch.zeros(1))
    assert forward_kl(student, torch.tensor([[0.25, 0.25, 0.5]]).log()).item() == torch.inf


def test_hand_computed_numbers() -> None:
    # Student (1/2, 1/4, 1/4); teacher: token 0 has 3/4, the tail 1/4.
    # 3/4 log(3/4 / 1/2) + 1/4 log(1/4 / 1/2) = 3/4 * 0.405465 - 1/4 * 0.693147 = 0.130812
    student = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    kl = sparse_forward_kl(student, torch.tensor([[0]]), torch.tensor([[0.75]]).log(), torch.tensor([0.25]).log())
    assert kl.item() == pytest.approx(0.130812, abs=1e-6)
    kl.sum().backward()
    # q_0 - p_0 = -1/4 at the token; q_v (1 - p_tail / q_tail) = 1/4 (1 - 1/2) = 1/8 at each tail token.
    torch.testing.assert_close(student.grad, torch.tensor([[-0.25, 0.125, 0.125]]))


def test_rows_do_not_depend_on_how_they_are_chunked() -> None:
    vocab = _CHUNK_SCORES_CPU // 2
    logits = torch.randn(5, vocab, generator=torch.Generator().manual_seed(0))
    ids = logits.topk(3, dim=-1).indices
    teacher, tail = torch.full((5, 3), 0.25).log(), torch.full((5,), 0.25).log()
    whole = sparse_forward_kl(logits, ids, teacher, tail)
    one_by_one = [sparse_forward_kl(logits[i : i + 1], ids[i : i + 1], teacher[:1], tail[:1]) for i in range(5)]
    torch.testing.assert_close(whole, torch.cat(one_by_one))


def test_bfloat16_scores_are_computed_in_float32() -> None:
    logits = random_logits(12, dtype=torch.bfloat16).requires_grad_()
    ids, teacher, tail = sparse_teacher(random_logits(13), 4)
    kl = sparse_forward_kl(logits, ids, teacher, tail)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, sparse_forward_kl(logits.float(), ids, teacher, tail))
    kl.sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == torch.bfloat16


@pytest.mark.parametrize("num_used", [0, 2])
def test_unused_slots_change_nothing_and_get_no_gradient(num_used: int) -> None:
    # Token 0 is what an unused slot might touch by mistake: here a token of the row, there one of the tail.
    ids = torch.tensor([[0, 5, 3]] * 3 + [[4, 1, 2]] * 4)[:, :num_used]
    padded = torch.cat([ids, torch.full((NUM_ROWS, 2), -1)], dim=1)
    labels, results = torch.arange(NUM_ROWS), []
    for tokens in (ids, padded):
        logits = random_logits(14).requires_grad_()
        buckets = bucketed_logprobs(logits, tokens, labels)
        weights = torch.arange(1.0, num_used + 1)
        loss = (buckets.token_logprobs[:, :num_used] * weights).sum() + (buckets.tail_logprob * 0.7).sum()
        (loss + buckets.label_logprobs.sum()).backward()
        results.append((buckets, logits.grad))
    (plain, plain_grad), (wide, wide_grad) = results
    assert torch.equal(wide.token_logprobs[:, :num_used], plain.token_logprobs)
    assert (wide.token_logprobs[:, num_used:] == -torch.inf).all()
    assert torch.equal(wide.tail_logprob, plain.tail_logprob)
    assert torch.equal(wide_grad, plain_grad)


def test_a_gradient_that_reaches_an_unused_slot_is_dropped() -> None:
    logits = random_logits(15).requires_grad_()
    buckets = bucketed_logprobs(logits, torch.full((NUM_ROWS, 2), -1), torch.zeros(NUM_ROWS, dtype=torch.long))
    buckets.token_logprobs.backward(torch.full((NUM_ROWS, 2), torch.nan))
    assert torch.equal(logits.grad, torch.zeros_like(logits))


def test_shapes_that_do_not_fit_are_refused() -> None:
    logits, ids = random_logits(0), torch.zeros(NUM_ROWS, 2, dtype=torch.long)
    with pytest.raises(ShapeError, match="one shape"):
        forward_kl(logits, logits[:, :-1])
    with pytest.raises(ShapeError, match="labels"):
        bucketed_logprobs(logits, ids, torch.zeros(NUM_ROWS - 1, dtype=torch.long))
    student = BucketedLogprobs(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ShapeError, match="tail_logprob"):
        bucketed_forward_kl(student, torch.zeros(2, 3), torch.zeros(3))

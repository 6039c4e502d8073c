"""The student's objective: its limits first, then linearity, then numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from proxykd.divergences import forward_kl
from proxykd.student.objective import TargetBatch, collate_targets, student_objective
from proxykd.targets.reader import SparseTarget

NUM_TOKENS, VOCAB, TOP_K = 6, 11, 3


def random_logits(seed: int) -> Tensor:
    return torch.randn(NUM_TOKENS, VOCAB, generator=torch.Generator().manual_seed(seed)) * 2


def targets_of(logits: Tensor, *, weights: Tensor | None = None, top_k: int = TOP_K) -> TargetBatch:
    logprobs, ids = logits.log_softmax(-1).topk(top_k)
    tail = (1 - logprobs.exp().sum(-1)).log() if top_k < VOCAB else torch.full((NUM_TOKENS,), -torch.inf)
    return TargetBatch(ids, logprobs, tail, torch.ones(NUM_TOKENS) if weights is None else weights)


LABELS = torch.arange(NUM_TOKENS)


def gradient(logits: Tensor, targets: TargetBatch | None, alpha: float) -> Tensor:
    leaf = logits.clone().requires_grad_()
    student_objective(leaf, LABELS, targets, alpha=alpha).loss.backward()
    assert leaf.grad is not None
    return leaf.grad


def test_targets_equal_to_the_students_own_distribution_leave_the_gradient_of_the_nll() -> None:
    logits = random_logits(0)
    own = gradient(logits, targets_of(logits), alpha=5.0)
    torch.testing.assert_close(own, gradient(logits, None, alpha=0.0), atol=3e-6, rtol=1e-5)


def test_alpha_zero_is_supervised_fine_tuning_bit_for_bit() -> None:
    logits, targets = random_logits(0), targets_of(random_logits(1))
    assert torch.equal(gradient(logits, targets, alpha=0.0), gradient(logits, None, alpha=1.0))


def test_hard_labels_agree_with_cross_entropy() -> None:
    logits = random_logits(0)
    leaf = logits.clone().requires_grad_()
    expected = torch.nn.functional.cross_entropy(leaf, LABELS, reduction="sum")
    expected.backward()
    totals = student_objective(logits, LABELS, None, alpha=1.0)
    torch.testing.assert_close(totals.loss, expected.detach())
    torch.testing.assert_close(gradient(logits, None, alpha=0.0), leaf.grad)
    assert (totals.kl.item(), totals.num_tokens.item()) == (0.0, NUM_TOKENS)


def test_the_whole_vocabulary_as_targets_gives_the_dense_kl() -> None:
    student, teacher = random_logits(0), random_logits(1)
    totals = student_objective(student, LABELS, targets_of(teacher, top_k=VOCAB), alpha=1.0)
    torch.testing.assert_close(totals.kl, forward_kl(student, teacher.log_softmax(-1)).sum())


def test_the_weighted_kl_is_linear_in_the_weights_and_in_alpha() -> None:
    logits, teacher = random_logits(0), random_logits(1)
    weights = torch.tensor([0.1, 0.5, 0.9, 0.0, 1.0, 0.3])
    nll = gradient(logits, None, alpha=0.0)
    plain = gradient(logits, targets_of(teacher), alpha=1.0) - nll
    weighted = gradient(logits, targets_of(teacher, weights=weights), alpha=3.0) - nll
    torch.testing.assert_close(weighted, 3.0 * weights[:, None] * plain, atol=1e-5, rtol=1e-5)


def test_one_huge_weight_pulls_its_own_sample_only() -> None:
    logits, teacher = random_logits(0), random_logits(1)
    weights = torch.ones(NUM_TOKENS)
    weights[2] = 1e6
    before = gradient(logits, targets_of(teacher), alpha=1.0)
    after = gradient(logits, targets_of(teacher, weights=weights), alpha=1.0)
    others = torch.arange(NUM_TOKENS) != 2
    torch.testing.assert_close(after[others], before[others])
    assert after[2].norm() > 1e5 * before[2].norm()


def test_hand_computed_loss() -> None:
    # Student (1/2, 1/4, 1/4), label 1: nll = log 4 = 1.386294.
    # Proxy: token 0 has 3/4, the tail 1/4: KL = 0.130812. Weight 1/2, alpha 2: 1.386294 + 2 * 1/2 * 0.130812 = 1.517106
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log()
    targets = TargetBatch(
        torch.tensor([[0]]), torch.tensor([[0.75]]).log(), torch.tensor([0.25]).log(), torch.tensor([0.5])
    )
    totals = student_objective(logits, torch.tensor([1]), targets, alpha=2.0)
    assert totals.nll.item() == pytest.approx(math.log(4), abs=1e-6)
    assert totals.kl.item() == pytest.approx(0.130812, abs=1e-6)
    assert totals.weighted_divergence.item() == pytest.approx(0.065406, abs=1e-6)
    assert totals.loss.item() == pytest.approx(1.517106, abs=1e-6)


def test_targets_of_samples_are_put_one_after_the_other() -> None:
    def target(length: int, weight: float) -> SparseTarget:
        ids = np.full((length, 2), length, np.int32)
        return SparseTarget(ids, np.zeros((length, 2), np.float32), np.zeros(length, np.float32), weight)

    batch = collate_targets([target(2, 0.25), target(1, 0.75)], device=torch.device("cpu"))
    assert batch.token_ids.tolist() == [[2, 2], [2, 2], [1, 1]]
    assert batch.weights.tolist() == [0.25, 0.25, 0.75]
    assert batch.token_ids.dtype == torch.long


def test_samples_with_fewer_slots_are_filled_up() -> None:
    wide = SparseTarget(
        np.array([[3, 4]], np.int32), np.log([[0.5, 0.5]]).astype(np.float32), np.zeros(1, np.float32), 1
    )
    narrow = SparseTarget(np.array([[7]], np.int32), np.zeros((1, 1), np.float32), np.full(1, -np.inf, np.float32), 1)
    batch = collate_targets([wide, narrow], device=torch.device("cpu"))
    assert batch.token_ids.tolist() == [[3, 4], [7, -1]]
    assert batch.logprobs[1].tolist() == [0.0, -math.inf]
    assert batch.logprobs.dtype == torch.float32

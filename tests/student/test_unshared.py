"""The loss on tokens without a twin: weights, masks, gradient, and that it is the transport of the right tokens."""

import pytest
import torch

from proxykd.student import unshared
from proxykd.student.objective import TargetBatch
from proxykd.student.unshared import UnsharedTerm, unshared_total
from proxykd.transport import sorted_transport

IDS = torch.tensor([1, 4, 5])
LOGITS = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
PROBS = torch.rand(6, 2, generator=torch.Generator().manual_seed(1)) * 0.3


def batch(weights: torch.Tensor, probs: torch.Tensor | None = PROBS) -> TargetBatch:
    return TargetBatch(
        torch.full((6, 2), -1), torch.full((6, 2), -torch.inf), torch.zeros(6), weights, unshared_probs=probs
    )


def test_it_is_the_weighted_transport_of_the_named_tokens() -> None:
    weights = torch.tensor([1.0, 0.5, 0.0, 2.0, 0.0, 1.0])
    expected = (sorted_transport(PROBS, LOGITS.softmax(-1)[:, IDS]) * weights).sum()
    torch.testing.assert_close(unshared_total(LOGITS, batch(weights), UnsharedTerm(IDS, 1.0)), expected)
    torch.testing.assert_close(unshared_total(LOGITS, batch(weights), UnsharedTerm(IDS, 0.25)), 0.25 * expected)


def test_chunks_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = unshared_total(LOGITS, batch(torch.ones(6)), UnsharedTerm(IDS, 1.0))
    monkeypatch.setattr(unshared, "_CHUNK_SCORES", 1)
    torch.testing.assert_close(unshared_total(LOGITS, batch(torch.ones(6)), UnsharedTerm(IDS, 1.0)), whole)


def test_positions_without_weight_get_no_gradient() -> None:
    logits, weights = LOGITS.clone().requires_grad_(), torch.tensor([1.0, 0, 1, 0, 1, 0])
    unshared_total(logits, batch(weights), UnsharedTerm(IDS, 1.0)).backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(-1) > 0).tolist() == weights.bool().tolist()


def test_nothing_to_compare_costs_nothing() -> None:
    nothing = [
        unshared_total(LOGITS, batch(torch.ones(6), None), UnsharedTerm(IDS, 1.0)),
        unshared_total(LOGITS, batch(torch.ones(6)), UnsharedTerm(IDS[:0], 1.0)),
        unshared_total(LOGITS, batch(torch.zeros(6)), UnsharedTerm(IDS, 1.0)),
    ]
    assert [value.item() for value in nothing] == [0.0, 0.0, 0.0]

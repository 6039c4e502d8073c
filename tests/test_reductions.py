"""Reductions: masking is indexing, and micro-batches add up to the batch."""

import pytest
import torch
from torch import Tensor

from proxykd.exceptions import ShapeError
from proxykd.reductions import masked_mean, masked_total, mean_of

VALUES = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
MASK = torch.tensor([[True, False, True], [False, False, True]])


def test_masking_equals_indexing() -> None:
    torch.testing.assert_close(masked_mean(VALUES, MASK), VALUES[MASK].mean())


def test_what_is_masked_out_may_be_nan_and_gets_no_gradient() -> None:
    values = VALUES.masked_fill(~MASK, torch.nan).requires_grad_()
    masked_mean(values, MASK, weights=torch.full_like(VALUES, 2.0).masked_fill(~MASK, torch.inf)).backward()
    torch.testing.assert_close(values.grad, MASK.float() * 2 / 3)


def test_an_empty_mask_means_zero() -> None:
    assert masked_mean(VALUES, torch.zeros_like(MASK)).item() == 0.0


def test_weights_change_the_sum_and_not_the_count() -> None:
    weights = torch.tensor([[2.0, 9.0, 0.0], [9.0, 9.0, 0.5]])
    # (2 * 1 + 0 * 3 + 0.5 * 6) / 3 = 5 / 3
    assert masked_mean(VALUES, MASK, weights=weights).item() == pytest.approx(5 / 3)
    assert masked_total(VALUES, MASK, weights=weights).num_values.item() == 3


def test_the_mean_is_computed_in_float32() -> None:
    ones = torch.ones(70_000, dtype=torch.bfloat16)
    assert masked_total(ones).weighted_sum.item() == 70_000


def _sgd_step(start: Tensor, rows: list[Tensor], *, micro_batches: int) -> Tensor:
    parameter = start.clone().requires_grad_()
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    size = len(rows) // micro_batches
    chunks = [rows[i * size : (i + 1) * size] for i in range(micro_batches)]
    totals = [masked_total((torch.cat(chunk) @ parameter).square()) for chunk in chunks]
    count = sum(int(total.num_values) for total in totals)
    for total in totals:
        (total.weighted_sum / count).backward()
    optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("micro_batches", [2, 3, 6])
def test_micro_batches_of_unequal_length_equal_one_batch_under_sgd(micro_batches: int) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = [torch.randn(length, 4, generator=generator) for length in (1, 9, 2, 5, 1, 7)]
    start = torch.randn(4, generator=generator)
    expected = _sgd_step(start, rows, micro_batches=1)
    torch.testing.assert_close(_sgd_step(start, rows, micro_batches=micro_batches), expected)


def test_mean_of_parts_is_the_mean_of_the_whole() -> None:
    parts = [masked_total(VALUES[:1], MASK[:1]), masked_total(VALUES[1:], MASK[1:])]
    torch.testing.assert_close(mean_of(parts), masked_mean(VALUES, MASK))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match="mask"):
        masked_mean(VALUES, MASK[:1])
    with pytest.raises(ShapeError, match="weights"):
        masked_mean(VALUES, MASK, weights=torch.ones(3))
    with pytest.raises(ShapeError, match="at least one"):
        mean_of([])

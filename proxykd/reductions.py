"""From un-reduced values to one number: the only place where a loss is normalised.

A mean over a batch that is worked off in micro-batches is not the mean of the micro-batches' means. Sums and counts
therefore travel separately (``Total``), and the division happens once, by the count of the whole batch.
"""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from proxykd.exceptions import ShapeError


class Total(NamedTuple):
    """A sum and the count that it is to be divided by.

    Attributes:
        weighted_sum: float32 scalar; carries the gradient.
        num_values: int64 scalar, how many values counted; a weight changes the sum, never this.
    """

    weighted_sum: Tensor
    num_values: Tensor


def masked_total(values: Tensor, mask: Tensor | None = None, *, weights: Tensor | None = None) -> Total:
    """Sum and count of the values that count.

    Args:
        values: float [...]; anything, NaN and inf included, where the mask is false.
        mask: bool, same shape; true = counts; None = all count.
        weights: float, same shape; None = 1 each.

    Returns:
        The weighted sum and the number of counted values; 0 and 0 for an empty mask.

    Raises:
        ShapeError: if the shapes differ.
    """
    _check_shape("mask", mask, values)
    _check_shape("weights", weights, values)
    values = values.float()
    if mask is None:
        mask = torch.ones_like(values, dtype=torch.bool)
    kept = values.masked_fill(~mask, 0.0)
    weighted = kept if weights is None else kept * weights.float().masked_fill(~mask, 0.0)
    return Total(weighted.sum(), mask.sum())


def masked_mean(values: Tensor, mask: Tensor | None = None, *, weights: Tensor | None = None) -> Tensor:
    """Weighted sum over count: ``masked_total`` divided; 0 for an empty mask.

    The divisor is the number of values, not the sum of the weights, so that a weight of 1/2 halves a value's share.
    """
    return mean_of([masked_total(values, mask, weights=weights)])


def mean_of(totals: Iterable[Total]) -> Tensor:
    """The mean over several micro-batches, as if they had been one batch; 0 if nothing counted.

    Raises:
        ShapeError: if there are no totals at all.
    """
    if not (parts := list(totals)):
        raise ShapeError("expected at least one Total, got none; a step has at least one micro-batch")
    count = torch.stack([part.num_values for part in parts]).sum()
    return torch.stack([part.weighted_sum for part in parts]).sum() / count.clamp_min(1)


def _check_shape(name: str, other: Tensor | None, values: Tensor) -> None:
    if other is not None and other.shape != values.shape:
        raise ShapeError(f"expected {name} of shape {tuple(values.shape)}, got {tuple(other.shape)}")

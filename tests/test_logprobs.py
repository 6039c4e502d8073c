"""Log-probabilities of tokens and sequences."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from proxykd.exceptions import ShapeError
from proxykd.logprobs import mean_logprobs, sequence_logprobs, token_logprobs

LOGITS = arrays(np.float64, (3, 5), elements=st.floats(-50, 50))


@given(LOGITS, st.floats(-20, 20))
def test_token_logprobs_are_the_log_softmax_and_ignore_a_shift(logits, shift):
    labels = torch.tensor([0, 4, 2])
    expected = torch.from_numpy(logits).log_softmax(-1)[torch.arange(3), labels]
    for scores in (logits, logits + shift):
        actual = token_logprobs(torch.from_numpy(scores), labels)
        assert actual.dtype == torch.float32
        torch.testing.assert_close(actual, expected.float(), atol=1e-4, rtol=1e-4)


def test_hand_computed():
    # softmax(0, ln 3) = (1/4, 3/4)
    logits = torch.tensor([[0.0, math.log(3.0)], [0.0, math.log(3.0)]])
    assert token_logprobs(logits, torch.tensor([0, 1])).exp().tolist() == pytest.approx([0.25, 0.75])


def test_impossible_tokens():
    logits = torch.tensor([[0.0, -math.inf], [0.0, -math.inf], [-math.inf, -math.inf]])
    impossible, certain, undefined = token_logprobs(logits, torch.tensor([1, 0, 0])).tolist()
    assert impossible == -math.inf
    assert certain == 0.0
    assert math.isnan(undefined)


def test_low_precision_logits_are_summed_in_float32():
    logits = torch.zeros(1, 4096, dtype=torch.bfloat16)
    assert token_logprobs(logits, torch.tensor([7])).item() == pytest.approx(-math.log(4096), rel=1e-6)


@given(arrays(np.float32, (2, 6), elements=st.floats(-10, 0, width=32)), arrays(np.bool_, (2, 6)))
def test_masking_equals_indexing(values, mask):
    sums = sequence_logprobs(torch.from_numpy(values), torch.from_numpy(mask))
    means = mean_logprobs(torch.from_numpy(values), torch.from_numpy(mask))
    for row in range(2):
        counted = values[row][mask[row]]
        assert sums[row].item() == pytest.approx(counted.sum(), abs=1e-4)
        assert means[row].item() == pytest.approx(counted.mean() if len(counted) else 0.0, abs=1e-5)


def test_what_is_masked_never_counts_and_has_no_gradient():
    values = torch.tensor([[-1.0, -math.inf, math.nan], [-2.0, -3.0, -4.0]], requires_grad=True)
    mask = torch.tensor([[True, False, False], [False, False, False]])
    sums = sequence_logprobs(values, mask)
    assert sums.tolist() == [-1.0, 0.0]
    sums.sum().backward()
    assert values.grad.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 0.0]]


def test_shapes_must_agree():
    with pytest.raises(ShapeError):
        token_logprobs(torch.zeros(2, 5), torch.zeros(3, dtype=torch.long))
    with pytest.raises(ShapeError):
        sequence_logprobs(torch.zeros(2, 5), torch.ones(2, 4, dtype=torch.bool))

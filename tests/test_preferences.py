"""The preference term against a slow float64 oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from proxykd.exceptions import ShapeError
from proxykd.preferences import preference_loss, reward_margins

SCORE = st.floats(-300, 0)


def oracle(chosen, rejected, reference_chosen, reference_rejected, beta):
    margin = beta * ((chosen - reference_chosen) - (rejected - reference_rejected))
    return math.log1p(math.exp(-margin)) if margin > 0 else -margin + math.log1p(math.exp(margin))


@given(SCORE, SCORE, SCORE, SCORE, st.floats(0.01, 2.0))
def test_loss_equals_the_oracle(chosen, rejected, reference_chosen, reference_rejected, beta):
    scores = chosen, rejected, reference_chosen, reference_rejected
    actual = preference_loss(*(torch.tensor([score], dtype=torch.float64) for score in scores), beta=beta)
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(oracle(*scores, beta), rel=1e-4, abs=1e-3)


def test_hand_computed():
    # margin = 0.5 * ((-1 + 3) - (-4 + 2)) = 2; -ln s(2) = ln(1 + e^-2) = 0.126928
    scores = (torch.tensor([value]) for value in (-1.0, -4.0, -3.0, -2.0))
    assert preference_loss(*scores, beta=0.5).item() == pytest.approx(0.126928, abs=1e-6)


@given(SCORE, SCORE)
def test_at_the_reference_the_margin_is_zero_and_the_loss_ln_2(chosen, rejected):
    scores = torch.tensor([chosen]), torch.tensor([rejected])
    assert reward_margins(*scores, *scores, beta=0.1).item() == 0.0
    assert preference_loss(*scores, *scores, beta=0.1).item() == pytest.approx(math.log(2))


def test_the_same_text_on_both_sides_teaches_nothing():
    policy, reference = torch.tensor([-5.0], requires_grad=True), torch.tensor([-7.0])
    preference_loss(policy, policy, reference, reference, beta=0.3).sum().backward()
    assert policy.grad.item() == 0.0


def test_large_margins_stay_finite():
    far = torch.tensor([-1e6, 1e6])
    loss = preference_loss(far, torch.zeros(2), torch.zeros(2), torch.zeros(2), beta=1.0)
    assert loss.tolist() == [1e6, 0.0]


def test_shapes_must_agree():
    with pytest.raises(ShapeError):
        reward_margins(torch.zeros(2), torch.zeros(2), torch.zeros(2), torch.zeros(1), beta=0.1)

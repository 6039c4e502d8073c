"""Calibration: nothing where the model is calibrated, the truth where it is not."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from proxykd.evaluation.calibration import (
    Reliability,
    bin_outcomes,
    calibration,
    error_by_luck,
    expected_calibration_error,
    reliability_bins,
    squared_error,
)
from proxykd.exceptions import ShapeError

BINS = 15


def _drawn(rng: np.random.Generator, count: int, shift: float = 0.0) -> NDArray[np.float64]:
    """Bins [BINS, 3] of outcomes that are right as often as their confidence says, less ``shift``."""
    confidences = rng.uniform(0.3, 1.0, count)
    outcomes = rng.uniform(size=count) < confidences - shift
    return bin_outcomes(confidences, outcomes, np.zeros(count), num_prompts=1, bins=BINS)[0]


def test_calibrated_model_has_no_error_but_luck() -> None:
    rng = np.random.default_rng(0)
    drawn = [_drawn(rng, 1500) for _ in range(400)]
    found = np.array([float(expected_calibration_error(one)) for one in drawn])
    by_luck = np.array([error_by_luck(one) for one in drawn])
    squared = np.array([squared_error(one) for one in drawn], np.float64)
    # ECE is what luck gives, and no more; the squared error without bias is 0 within the noise of its mean.
    assert found.mean() == pytest.approx(by_luck.mean(), rel=0.03)
    assert abs(squared.mean()) < 3 * squared.std() / np.sqrt(len(squared))


def test_luck_grows_small_with_the_number_of_outcomes() -> None:
    rng = np.random.default_rng(1)
    assert float(expected_calibration_error(_drawn(rng, 400_000))) < 0.005


@pytest.mark.parametrize("shift", [0.1, 0.25])
def test_overconfident_model_is_as_wrong_as_it_is(shift: float) -> None:
    rng = np.random.default_rng(2)
    drawn = [_drawn(rng, 3000, shift) for _ in range(100)]
    squared = np.array([squared_error(one) for one in drawn], np.float64)
    assert squared.mean() == pytest.approx(shift**2, abs=3 * squared.std() / np.sqrt(len(squared)))
    ece = np.array([float(expected_calibration_error(one)) for one in drawn])
    assert ece.mean() == pytest.approx(shift, rel=0.03)


@given(
    confidences=st.lists(st.floats(0, 1), min_size=1, max_size=40),
    bins=st.integers(2, 20),
    seed=st.integers(0, 100),
)
def test_bins_hold_every_outcome_once_and_the_error_is_a_share(confidences: list[float], bins: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    outcomes, prompts = rng.integers(2, size=len(confidences)), rng.integers(3, size=len(confidences))
    sums = bin_outcomes(confidences, outcomes, prompts, num_prompts=3, bins=bins)
    assert sums[:, :, 0].sum() == len(confidences)
    assert sums[:, :, 1].sum() == pytest.approx(sum(confidences))
    assert sums[:, :, 2].sum() == outcomes.sum()
    assert 0 <= expected_calibration_error(sums.sum(axis=0)) <= 1
    for one in reliability_bins(sums.sum(axis=0)):
        assert one["low"] - 1e-9 <= one["confidence"] <= one["high"] + 1e-9


def test_error_by_hand() -> None:
    # Confidences 0.9, 0.9 (one right) and 0.2 (wrong): 2/3 |0.5 - 0.9| + 1/3 |0 - 0.2| = 1/3.
    sums = bin_outcomes([0.9, 0.9, 0.2], [1, 0, 0], [0, 1, 1], num_prompts=2, bins=10)
    assert float(expected_calibration_error(sums.sum(axis=0))) == pytest.approx(1 / 3)
    # One bin has two outcomes: (0.5 - 0.9)^2 - 0.5 * 0.5 / 1 = -0.09.
    assert squared_error(sums.sum(axis=0)) == pytest.approx(-0.09)


def test_interval_covers_the_truth_and_seeds_are_averaged() -> None:
    rng = np.random.default_rng(3)
    num_prompts, covered = 300, 0
    for _ in range(40):
        confidences = rng.uniform(0.5, 1.0, num_prompts)
        outcomes = rng.uniform(size=num_prompts) < confidences - 0.2
        sums = bin_outcomes(confidences, outcomes, np.arange(num_prompts), num_prompts=num_prompts, bins=5)
        one = Reliability(tuple(map(str, range(num_prompts))), sums)
        found = calibration({3: one}, confidence=0.95, resamples=200)
        covered += found["low"] <= 0.2 <= found["high"]
    assert covered >= 34
    both = calibration({3: one, 4: one._replace(sums=one.sums * [1, 1, 0])}, confidence=0.95, resamples=100)
    assert both["value"] == pytest.approx(np.mean(list(both["per_seed"].values())))
    assert (both["num_outcomes"], both["num_prompts"]) == (num_prompts, num_prompts)


def test_single_prompt_has_a_value_and_no_interval() -> None:
    sums = bin_outcomes([0.5], [1], [0], num_prompts=1, bins=4)
    found = calibration({0: Reliability(("a",), sums)}, confidence=0.95, resamples=100)
    assert (found["value"], found["low"], found["high"], found["squared"]) == (0.5, None, None, None)


def test_no_outcome_is_no_value() -> None:
    found = calibration({0: Reliability(("a", "b"), np.zeros((2, 4, 3)))}, confidence=0.95, resamples=100)
    assert (found["value"], found["low"], found["bins"], found["num_outcomes"]) == (None, None, [], 0)


def test_confidence_that_is_no_probability_is_refused() -> None:
    with pytest.raises(ShapeError, match="confidences in"):
        bin_outcomes([1.5], [1], [0], num_prompts=1, bins=4)
    with pytest.raises(ShapeError, match="one length"):
        bin_outcomes([0.5], [1, 0], [0], num_prompts=1, bins=4)


@pytest.mark.parametrize(("num_prompts", "shift"), [(50, 0.0), (50, 0.1), (200, 0.05), (1000, 0.0)])
def test_interval_holds_the_value_and_covers_the_truth_of_a_model_that_is_nearly_calibrated(
    num_prompts: int, shift: float
) -> None:
    # Drawing prompts again adds the luck of the second draw to that of the first: quantiles of it alone lie too high.
    rng, covered, rounds = np.random.default_rng(4), 0, 40
    for _ in range(rounds):
        confidences = rng.uniform(0.3, 1.0, num_prompts)
        outcomes = rng.uniform(size=num_prompts) < confidences - shift
        sums = bin_outcomes(confidences, outcomes, np.arange(num_prompts), num_prompts=num_prompts, bins=BINS)
        found = calibration({0: Reliability(("",) * num_prompts, sums)}, confidence=0.95, resamples=200)
        assert 0.0 <= found["low"] <= found["value"] <= found["high"]
        covered += found["low"] <= shift <= found["high"]
    assert covered >= 0.9 * rounds

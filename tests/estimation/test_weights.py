"""Sample weights against numpy, and a weight worked out by hand."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.estimation.weights import RunningMoments, SampleWeights, Weighting, sigmoid_of_zscore

LOGPROBS = np.array([-10.0, -40.0, -9.0, -60.0])
LENGTHS = np.array([5, 10, 9, 20])


def weigh(weighting: Weighting, logprobs: np.ndarray = LOGPROBS) -> np.ndarray:  # type: ignore[type-arg]
    weights = SampleWeights(weighting)
    for logprob, length in zip(logprobs, LENGTHS, strict=True):
        weights.observe(np.array([logprob]), np.array([length]))
    return weights.weigh(logprobs, LENGTHS)


@settings(max_examples=30, deadline=None)
@given(
    pairs=st.lists(st.tuples(st.floats(-1e3, 1e3), st.floats(-1e3, 1e3)), min_size=2, max_size=30),
    block=st.integers(1, 7),
)
def test_running_moments_equal_those_of_the_whole(pairs: list[tuple[float, float]], block: int) -> None:
    values = np.array(pairs).T
    moments = RunningMoments()
    for start in range(0, len(pairs), block):
        moments.update(values[0, start : start + block], values[1, start : start + block])
    np.testing.assert_allclose(moments.mean, values.mean(axis=1), atol=1e-8)
    np.testing.assert_allclose(moments.std, values.std(axis=1), atol=1e-6)
    if values.std(axis=1).min() > 1e-3:
        assert moments.correlation == pytest.approx(np.corrcoef(values)[0, 1], abs=1e-6)


def test_moments_do_not_cancel_for_large_means() -> None:
    moments = RunningMoments()
    for value in (1e9 + 1, 1e9 + 2, 1e9 + 3):
        moments.update(np.array([value]), np.array([0.0]))
    assert moments.std[0] == pytest.approx(math.sqrt(2 / 3))
    assert moments.correlation == 0.0


def test_the_weight_of_equation_nine_by_hand() -> None:
    # mean over tokens: -2, -4, -1, -3; mu = -2.5, gamma = sqrt((0.25 + 2.25 + 2.25 + 0.25) / 4) = sqrt(1.25) = 1.118034
    # first: z = 0.5 / 1.118034 = 0.447214, sigmoid = 1 / (1 + exp(-0.447214)) = 0.609977
    assert weigh("mean")[0] == pytest.approx(0.609977, abs=1e-6)
    # sums: mu = -29.75, gamma = sqrt(460.1875) = 21.451981; second: z = -10.25 / gamma = -0.477811
    assert weigh("sum")[1] == pytest.approx(0.382769, abs=1e-6)


@pytest.mark.parametrize("weighting", ["mean", "sum"])
def test_better_explained_texts_weigh_more(weighting: Weighting) -> None:
    weights = weigh(weighting)
    likelihoods = LOGPROBS / LENGTHS if weighting == "mean" else LOGPROBS
    assert (np.argsort(weights) == np.argsort(likelihoods)).all()
    assert ((weights > 0) & (weights < 1)).all()


def test_equal_likelihoods_weigh_one_half() -> None:
    np.testing.assert_array_equal(weigh("mean", -0.3 * LENGTHS), np.full(4, 0.5))


def test_without_weighting_every_sample_weighs_one() -> None:
    np.testing.assert_array_equal(weigh("none"), np.ones(4))


def test_extreme_scores_stay_between_zero_and_one_without_warnings() -> None:
    weights = sigmoid_of_zscore(np.array([-1e6, 0.0, 1e6]), mean=0.0, std=1.0)
    np.testing.assert_allclose(weights, [0.0, 0.5, 1.0])


def test_the_correlation_with_length_is_reported() -> None:
    weights = SampleWeights("sum")
    weights.observe(LOGPROBS, LENGTHS)
    values = weights.weigh(LOGPROBS, LENGTHS)
    facts = weights.facts()
    assert facts["weight_length_correlation"] == pytest.approx(np.corrcoef(values, LENGTHS)[0, 1])
    assert facts["weight_mean"] == pytest.approx(values.mean())
    assert facts["likelihood_mean"] == pytest.approx(LOGPROBS.mean())
    assert facts["completion_tokens_mean"] == 11.0

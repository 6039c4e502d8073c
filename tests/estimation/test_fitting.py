"""Weights fitted to unseen text: known ones are found again, none is likelier, intervals keep their level."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats

from proxykd.estimation.estimates import SparseProbs
from proxykd.estimation.estimators import with_written
from proxykd.estimation.fitting import CERTAINTY_EDGES, Unseen, fit, fit_shares, fit_worths, strata_of
from proxykd.estimation.posterior import credible_interval

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
VOCAB = 8


def drawn(probs: Floats, rng: np.random.Generator) -> Ints:
    """One token from each row."""
    return np.minimum((probs.cumsum(1) < rng.random((len(probs), 1))).sum(1), probs.shape[1] - 1)


def picked(probs: Floats, tokens: Ints) -> Floats:
    return np.take_along_axis(probs, tokens[:, None], 1)[:, 0]


def two_witnesses(shares: Floats, seed: int = 0) -> tuple[Floats, Floats]:
    """P(y) and pi(y) where y comes from a mixture of both."""
    rng = np.random.default_rng(seed)
    counted, proxy = rng.dirichlet(np.full(VOCAB, 0.3), (2, len(shares)))
    tokens = drawn(shares[:, None] * counted + (1 - shares[:, None]) * proxy, rng)
    return picked(counted, tokens), picked(proxy, tokens)


def repeated(worth: float, num: int, times: int, seed: int = 0) -> tuple[Floats, Ints, Ints, Floats]:
    """m(y), contexts, tokens and max m where every context's distribution comes from Dirichlet(worth m)."""
    rng = np.random.default_rng(seed)
    means = rng.dirichlet(np.full(VOCAB, 0.5), num)
    truths = np.maximum(rng.standard_gamma(worth * means), 1e-300)
    truths /= truths.sum(1, keepdims=True)
    contexts = np.repeat(np.arange(num), times)
    tokens = drawn(truths[contexts], rng)
    return picked(means[contexts], tokens), contexts, tokens, means.max(1)[contexts]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
def test_a_known_share_is_found_again_and_nothing_on_a_grid_is_likelier(share: float) -> None:
    counted, proxy = two_witnesses(np.full(20_000, share))
    found, _ = fit_shares(counted, proxy, np.zeros(len(counted), np.int64))
    assert found == pytest.approx(share, abs=0.02)

    def likelihood(weight: float) -> float:
        return float(np.log(weight * counted + (1 - weight) * proxy).sum())

    assert all(likelihood(found) >= likelihood(weight) - 1e-6 for weight in np.linspace(0.001, 0.999, 201))


def test_each_stratum_has_a_share_of_its_own_and_a_small_one_that_of_all() -> None:
    strata = np.repeat([70, 71, 72], [10_000, 10_000, 3])
    counted, proxy = two_witnesses(np.array([0.1, 0.8, 0.0])[strata - 70])
    overall, shares = fit_shares(counted, proxy, strata)
    assert 0.4 < overall < 0.5
    assert shares[[70, 71]] == pytest.approx([0.1, 0.8], abs=0.03)
    assert abs(shares[72] - overall) < 0.25
    assert shares[5] == pytest.approx(overall, abs=1e-9)


def test_a_witness_that_is_always_wrong_gets_nothing() -> None:
    right, wrong = np.full(50_000, 0.6), np.zeros(50_000)
    strata = np.zeros(50_000, np.int64)
    assert fit_shares(right, wrong, strata)[0] == pytest.approx(1.0, abs=1e-3)
    assert fit_shares(wrong, right, strata)[0] == pytest.approx(0.0, abs=1e-3)


@pytest.mark.parametrize("times", [2, 5])
@pytest.mark.parametrize("worth", [0.3, 3.0, 30.0])
def test_a_known_worth_is_found_again(worth: float, times: int) -> None:
    found = fit_worths(*repeated(worth, 6_000, times))
    assert found.num_repeated == 6_000
    assert found.worth == pytest.approx(worth, rel=0.5 if worth > 10 and times == 2 else 0.15)


def test_nothing_on_a_grid_is_likelier_than_the_fitted_worth() -> None:
    rng = np.random.default_rng(3)
    means = rng.dirichlet(np.full(4, 0.7), 60)
    counts = np.stack([rng.multinomial(4, rng.dirichlet(2.0 * row + 1e-9)) for row in means])
    contexts = np.repeat(np.arange(60), 4)
    tokens = np.concatenate([np.repeat(np.arange(4), row) for row in counts])
    found = fit_worths(picked(means[contexts], tokens), contexts, tokens, np.full(len(tokens), 0.9))

    def likelihood(worth: float) -> float:
        return float(stats.dirichlet_multinomial.logpmf(counts, worth * means, 4).sum())

    assert all(likelihood(found.worth) >= likelihood(worth) - 1e-6 for worth in np.geomspace(2e-3, 1e4, 60))


def test_completions_that_always_agree_make_the_written_token_all_and_those_like_the_estimate_make_it_nothing() -> None:
    estimate, contexts, _, certainty = repeated(1.0, 2_000, 2)
    agreeing = fit_worths(estimate, contexts, np.zeros(len(contexts), np.int64), certainty)
    assert agreeing.worth < 0.01
    independent = fit_worths(*repeated(1e7, 4_000, 4))
    assert independent.worth > 100.0


def test_what_is_certain_is_worth_other_than_what_is_not() -> None:
    sure, unsure = repeated(0.3, 4_000, 2), repeated(5.0, 4_000, 2, seed=1)
    estimate, contexts, tokens = (np.concatenate(pair) for pair in zip(sure[:3], unsure[:3], strict=True))
    contexts[8_000:] += 4_000
    certainty = np.repeat([0.99, 0.1], 8_000)
    found = fit_worths(estimate, contexts, tokens, certainty)
    assert len(found.worths) == len(CERTAINTY_EDGES) + 1
    assert (found.worths[-1], found.worths[0]) == pytest.approx((0.3, 5.0), rel=0.15)
    assert found.worths[1] == pytest.approx(found.worth, rel=1e-4)


def unseen(worth: float = 2.0, times: int = 2) -> Unseen:
    estimate, contexts, tokens, certainty = repeated(worth, 500, times)
    other = np.random.default_rng(1).random((500, VOCAB))[contexts, tokens]
    orders, observed = contexts % 4 - 1, contexts % 100
    return Unseen(estimate, other, orders, observed, certainty, contexts, tokens)


def test_the_order_of_the_positions_does_not_matter() -> None:
    given = unseen()
    order = np.random.default_rng(2).permutation(len(given.tokens))
    one, other = (fit(rows, mixes=True, worth=None) for rows in (given, Unseen(*(part[order] for part in given))))
    assert (one.share, one.worth) == pytest.approx((other.share, other.worth), rel=1e-6)
    np.testing.assert_allclose(one.worths, other.worths, rtol=1e-5)
    np.testing.assert_allclose(one.shares, other.shares, atol=1e-9)


def test_without_several_completions_the_estimate_weighs_as_much_as_the_written_token() -> None:
    found = fit(unseen(times=1), mixes=True, worth=None)
    assert (found.num_repeated, found.facts()["gamma"]) == (0, 2.0)
    assert found.worth_of(np.array([0.1, 0.99])).tolist() == [1.0, 1.0]


def test_what_is_given_is_not_fitted() -> None:
    found = fit(unseen(), mixes=False, worth=0.25)
    assert (found.num_repeated, found.facts()["gamma"]) == (0, 5.0)
    assert found.share_of(np.array([-1, 3]), np.array([0, 17])).tolist() == [1.0, 1.0]


def test_no_text_at_all_leaves_gamma_at_two() -> None:
    none, nothing = np.zeros(0, np.int64), np.zeros(0)
    found = fit(Unseen(nothing, nothing, none, none, nothing, none, none), mixes=False, worth=None)
    assert (found.worth, found.num_positions, found.num_repeated) == (1.0, 0, 0)


def test_strata_are_orders_and_powers_of_two() -> None:
    observed = np.array([0, 1, 2, 3, 4, 1023, 1024, 2**62])
    sizes = strata_of(np.full(8, -1), observed)
    assert sizes.tolist() == [0, 0, 1, 1, 2, 9, 10, 62]
    assert (strata_of(np.full(8, 16), observed) - sizes).tolist() == [17 * 64] * 8


def test_the_written_token_is_one_more_draw() -> None:
    counted = SparseProbs(torch.tensor([[4, 7], [2, -1]]), torch.tensor([[0.75, 0.25], [1.0, 0.0]]))
    found = with_written(counted, torch.tensor([7, 3]), worth=torch.tensor([3.0, 0.0], dtype=torch.float64))
    # (3 * 3/4, 3 * 1/4 + 1) / 4, and the written token alone
    assert found.token_ids[0].tolist()[:2] == [4, 7]
    assert found.probs[0].tolist()[:2] == [0.5625, 0.4375]
    assert float(found.probs[1][found.token_ids[1] == 3]) == 1.0


@pytest.mark.parametrize("level", [0.5, 0.9, 0.95])
@pytest.mark.parametrize("worth", [0.8, 6.0])
def test_intervals_of_a_fitted_worth_hold_the_truth_as_often_as_they_say(worth: float, level: float) -> None:
    found = fit_worths(*repeated(worth, 3_000, 2))
    rng, num = np.random.default_rng(9), 4_000
    means = rng.dirichlet(np.full(VOCAB, 2.0), num)
    truths = np.stack([rng.dirichlet(worth * row) for row in means])
    written = drawn(truths, rng)
    after = (found.worth * means + np.eye(VOCAB)[written]) / (found.worth + 1.0)
    low, high = credible_interval(after, np.array(found.worth + 1.0), level=level)
    for token in (written, means.argmax(1)):
        true = picked(truths, token)
        covered = ((picked(low, token) <= true) & (true <= picked(high, token))).mean()
        assert covered == pytest.approx(level, abs=0.03)


@pytest.mark.parametrize(("tokens", "bound"), [([1, 1], 0.2), ([1, 2], 5.0)])
def test_one_repeated_prefix_decides_little(tokens: list[int], bound: float) -> None:
    estimate = np.asarray([0.4, 0.4 if tokens[0] == tokens[1] else 0.1])
    found = fit_worths(estimate, np.zeros(2, np.int64), np.asarray(tokens), np.full(2, 0.4))
    assert min(1.0, bound) <= found.worth <= max(1.0, bound)


def test_three_positions_decide_little_about_the_share() -> None:
    share, _ = fit_shares(np.full(3, 0.2), np.full(3, 0.3), np.zeros(3, np.int64))
    assert 0.3 < share < 0.5

"""The Dirichlet step: its limits, coverage of its intervals, grouped evidence, cases by hand."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

from proxykd.config.estimation import PosteriorEstimatorSpec
from proxykd.data.tokenizing import Example
from proxykd.estimation.estimates import Estimate, PriorRows, SparseProbs, Uniforms, densify, draw_columns, merge_tokens
from proxykd.estimation.estimators import PosteriorEstimator
from proxykd.estimation.fitting import Fitted
from proxykd.estimation.posterior import (
    Evidence,
    credible_interval,
    expected_posterior,
    sampled_posterior,
    with_evidence,
)

VOCAB, ROWS = 12, 5
GENERATOR = torch.Generator().manual_seed(0)
LOGITS = torch.randn(ROWS, VOCAB, generator=GENERATOR) * 2
PRIOR = SparseProbs(
    torch.tensor([[0, 3, 5], [1, -1, -1], [2, 7, -1], [11, 0, 4], [9, 8, 0]]),
    torch.tensor([[0.5, 0.3, 0.2], [1.0, 0.0, 0.0], [0.6, 0.4, 0.0], [0.1, 0.2, 0.7], [0.25, 0.25, 0.5]]),
)


def worth(kappa: float, rows: int = ROWS) -> torch.Tensor:
    return torch.full((rows,), kappa, dtype=torch.float64)


def probs_of(estimate: Estimate) -> torch.Tensor:
    return densify(estimate, VOCAB).double().exp()


def prior_probs() -> torch.Tensor:
    return probs_of(Estimate(PRIOR.probs.log(), PRIOR.token_ids))


def draws_from(probs: torch.Tensor, num: int, seed: int = 1) -> torch.Tensor:
    points = torch.rand(len(probs), num, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return draw_columns(probs.log(), points)


@pytest.mark.parametrize(("kappa", "draws"), [(8.0, 32), (1e-3, 1), (5.0, 4096)])
def test_the_closed_limit_is_a_mixture_in_the_ratio_of_kappa_to_draws(kappa: float, draws: int) -> None:
    share = kappa / (kappa + draws)
    expected = share * prior_probs() + (1 - share) * LOGITS.double().softmax(-1)
    found = expected_posterior(PRIOR, LOGITS.clone(), kappa=worth(kappa), draws=draws)
    np.testing.assert_allclose(probs_of(found), expected, rtol=1e-5)
    assert found.concentration is not None
    assert found.concentration.tolist() == [kappa + draws] * ROWS


def test_without_a_prior_the_proxy_and_without_draws_the_prior_is_left() -> None:
    proxy_alone = expected_posterior(PRIOR, LOGITS.clone(), kappa=worth(0.0), draws=3)
    np.testing.assert_allclose(probs_of(proxy_alone), LOGITS.double().softmax(-1), rtol=1e-5)
    none = torch.empty(ROWS, 0, dtype=torch.long)
    for found in (
        sampled_posterior(PRIOR, none, kappa=worth(2.0)),
        expected_posterior(PRIOR, LOGITS.clone(), kappa=worth(2.0), draws=0),
    ):
        np.testing.assert_allclose(probs_of(found), prior_probs(), rtol=1e-6)


def test_a_hard_label_with_all_the_weight_is_one_hot() -> None:
    labels = torch.tensor([3, 0, 11, 5, 7])
    hard = SparseProbs(labels[:, None], torch.ones(ROWS, 1))
    found = probs_of(expected_posterior(hard, LOGITS.clone(), kappa=worth(1.0), draws=0))
    assert torch.equal(found, torch.nn.functional.one_hot(labels, VOCAB).double())


def test_by_hand() -> None:
    # kappa 2, prior (1/2, 1/2, 0); draws 2, 2, 0: (1 + 1, 1 + 0, 0 + 2) / 5
    prior = SparseProbs(torch.tensor([[0, 1]]), torch.tensor([[0.5, 0.5]]))
    found = densify(sampled_posterior(prior, torch.tensor([[2, 2, 0]]), kappa=worth(2.0, 1)), 3).exp()
    np.testing.assert_allclose(found, [[0.4, 0.2, 0.4]], rtol=1e-6)


def test_many_draws_from_the_truth_give_the_truth() -> None:
    truth = LOGITS.double().softmax(-1)
    errors = [
        float(
            (probs_of(sampled_posterior(PRIOR, draws_from(truth, num), kappa=worth(8.0))) - truth).abs().sum(-1).max()
        )
        for num in (10, 1000, 100_000)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < 0.02


def test_the_mean_of_sampled_posteriors_is_the_closed_limit() -> None:
    expected = probs_of(expected_posterior(PRIOR, LOGITS.clone(), kappa=worth(4.0), draws=16))
    proxy = LOGITS.double().softmax(-1)
    found = torch.stack(
        [probs_of(sampled_posterior(PRIOR, draws_from(proxy, 16, seed), kappa=worth(4.0))) for seed in range(400)]
    )
    assert ((found.mean(0) - expected).abs() <= 5 * found.std(0) / math.sqrt(400) + 1e-6).all()


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_a_credible_interval_holds_the_truth_as_often_as_it_says(level: float) -> None:
    # The truth is drawn from the prior, the hits from the truth: coverage is then exact, whatever the prior.
    rng, num, kappa, draws = np.random.default_rng(5), 4000, 3.0, 12
    mean = np.array([0.55, 0.25, 0.15, 0.05])
    truths = rng.dirichlet(kappa * mean, num)
    hits = np.stack([rng.multinomial(draws, truth) for truth in truths])
    prior = SparseProbs(torch.arange(4).expand(num, -1), torch.tensor(mean).float().expand(num, -1))
    drawn = torch.from_numpy(np.stack([np.repeat(np.arange(4), row) for row in hits]))
    posterior = sampled_posterior(prior, drawn, kappa=worth(kappa, num))
    means = densify(posterior, 4).double().exp().numpy()
    assert posterior.concentration is not None
    low, high = credible_interval(means, posterior.concentration[:, None].numpy(), level=level)
    for token in range(4):
        covered = int(((low <= truths) & (truths <= high))[:, token].sum())
        # A binomial count; 1e-6 two-sided.
        assert stats.binom.ppf(5e-7, num, level) <= covered <= stats.binom.ppf(1 - 5e-7, num, level), token


def test_credible_intervals_are_those_of_the_beta_and_narrow_with_evidence() -> None:
    low, high = credible_interval(np.array([0.2, 0.0, 1.0]), np.array(50.0), level=0.9)
    assert low[0] == pytest.approx(stats.beta.ppf(0.05, 10, 40))
    assert high[0] == pytest.approx(stats.beta.ppf(0.95, 10, 40))
    assert (low[1], high[1], low[2], high[2]) == (0.0, 0.0, 1.0, 1.0)
    widths = [
        float(np.diff(credible_interval(np.array([0.2]), np.array(size), level=0.9), axis=0)[0, 0])
        for size in (2, 20, 200)
    ]
    assert widths[0] > widths[1] > widths[2]


def evidence(probs: list[float], ids: list[int], row: int = 1) -> Evidence:
    return Evidence(torch.tensor([row]), torch.tensor([ids]), torch.tensor([probs]))


def normalised() -> Estimate:
    return Estimate(LOGITS.log_softmax(-1), None, worth(10.0))


def test_evidence_moves_listed_tokens_and_leaves_the_shares_of_the_others() -> None:
    before, told = probs_of(normalised()), evidence([0.6, 0.1, 0.0], [4, 2, -1])
    after = probs_of(with_evidence(normalised(), told, weight=30.0, vocab_size=VOCAB))
    np.testing.assert_allclose(after.sum(-1), 1.0, rtol=1e-6)
    others = [token for token in range(VOCAB) if token not in (2, 4)]
    assert torch.equal(after[[0, 2, 3, 4]], before[[0, 2, 3, 4]])
    assert float(after[1, 4]) == pytest.approx((10 * float(before[1, 4]) + 30 * 0.6) / 40, rel=1e-5)
    np.testing.assert_allclose(
        after[1, others] / after[1, others].sum(), before[1, others] / before[1, others].sum(), rtol=1e-5
    )


def test_overwhelming_evidence_is_believed_and_vanishing_evidence_ignored() -> None:
    told = evidence([0.6, 0.1], [4, 2])
    believed = probs_of(with_evidence(normalised(), told, weight=1e9, vocab_size=VOCAB))[1]
    assert (float(believed[4]), float(believed[2])) == pytest.approx((0.6, 0.1), abs=1e-6)
    ignored = probs_of(with_evidence(normalised(), told, weight=1e-9, vocab_size=VOCAB))
    np.testing.assert_allclose(ignored, probs_of(normalised()), rtol=1e-6)


def test_grouped_evidence_is_the_conjugate_update_of_grouped_counts() -> None:
    # 3 hits of token 11 and 3 of "any other": simulate the Dirichlet and weigh by the likelihood.
    before = probs_of(normalised())[1].numpy()
    rng = np.random.default_rng(0)
    samples = rng.dirichlet(10.0 * before, 400_000)
    weights = (samples[:, 11] * (1 - samples[:, 11])) ** 3
    expected = weights @ samples / weights.sum()
    found = probs_of(with_evidence(normalised(), evidence([0.5], [11]), weight=6.0, vocab_size=VOCAB))[1]
    np.testing.assert_allclose(found, expected, atol=2e-3)


def test_untold_mass_stays_away_where_no_other_token_is_known() -> None:
    # The estimate knows tokens 0 and 3 alone; the API lists both and 0.2 for tokens that nobody names.
    known = Estimate(torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0, 3]]), worth(10.0, 1))
    found = probs_of(with_evidence(known, evidence([0.6, 0.2], [0, 3], row=0), weight=10.0, vocab_size=VOCAB))[0]
    assert float(found.sum()) == pytest.approx(1.0, rel=1e-6)
    assert float(found[0]) == pytest.approx((5 + 6) / 18, rel=1e-6)


def test_sparse_estimates_meet_evidence_about_tokens_they_do_not_have() -> None:
    known = Estimate(torch.tensor([[0.5, 0.5], [1.0, 0.0]]).log(), torch.tensor([[0, 3], [7, -1]]), worth(10.0, 2))
    found = probs_of(with_evidence(known, evidence([0.8], [5]), weight=10.0, vocab_size=VOCAB))
    assert pytest.approx({token: float(found[1, token]) for token in (7, 5)}) == {7: 0.6, 5: 0.4}
    np.testing.assert_allclose(found[0, [0, 3]], [0.5, 0.5])


def test_the_prior_is_trusted_no_further_than_it_was_observed() -> None:
    class Observed:
        def rows_of(self, examples: object) -> PriorRows:
            return PriorRows(PRIOR, torch.tensor([0, 1, 5, 100, 3]), torch.tensor([-1, 0, 1, 2, 1]))

    batch = SimpleNamespace(examples=[], device=torch.device("cpu"), lengths=[ROWS])
    found = {
        trust: PosteriorEstimator(
            PosteriorEstimatorSpec(kappa=4, draws=0, trust=trust, prior={"gamma": 2}), Observed(), Uniforms(0, "draws")
        )(batch).main.concentration  # type: ignore[arg-type]
        for trust in ("observed", "fixed")
    }
    assert {trust: weights.tolist() for trust, weights in found.items()} == {
        "observed": [1, 1, 4, 4, 3],
        "fixed": [4] * ROWS,
    }


LABELS = torch.tensor([3, 1, 8, 11, 0])


def fitted_posterior(share: float, worth: float, **settings: Any) -> Estimate:
    class Counted:
        def rows_of(self, examples: object) -> PriorRows:
            return PriorRows(PRIOR, torch.full((ROWS,), 5), torch.full((ROWS,), 2))

    given = Fitted(share, np.full(18 * 64, share), worth, np.full(4, worth), 100, 10)
    batch = SimpleNamespace(
        examples=[Example("a", 0, np.zeros(0, np.int32), LABELS.int().numpy())],
        device=torch.device("cpu"), lengths=[ROWS], logits=LOGITS, labels=LABELS,
    )  # fmt: skip
    estimator = PosteriorEstimator(PosteriorEstimatorSpec(**settings), Counted(), Uniforms(0, "draws"), given)
    return estimator(batch).main  # type: ignore[arg-type]


def test_fitted_weights_are_those_of_three_witnesses() -> None:
    written, proxy = torch.nn.functional.one_hot(LABELS, VOCAB).double(), LOGITS.double().softmax(-1)
    found = fitted_posterior(0.25, 4.0)
    # (4 (1/4 P + 3/4 pi) + 1[y]) / 5
    np.testing.assert_allclose(probs_of(found), (prior_probs() + 3 * proxy + written) / 5, rtol=1e-5, atol=1e-7)
    assert found.concentration is not None
    assert found.concentration.tolist() == pytest.approx([5.0] * ROWS)
    sampled = fitted_posterior(0.25, 4.0, hits="sampled", draws=4096)
    assert sampled.concentration is not None
    assert sampled.concentration.tolist() == pytest.approx([5.0] * ROWS)
    np.testing.assert_allclose(probs_of(sampled), probs_of(found), atol=0.03)
    np.testing.assert_allclose(probs_of(sampled).sum(-1), 1.0, rtol=1e-6)


def test_limits_of_fitted_weights() -> None:
    written, proxy = torch.nn.functional.one_hot(LABELS, VOCAB).double(), LOGITS.double().softmax(-1)
    for share, worth_of_both, limit in ((0.5, 0.0, written), (0.0, 1e6, proxy), (1.0, 1e6, prior_probs())):
        for settings in ({}, {"hits": "sampled", "draws": 4096}):
            found = probs_of(fitted_posterior(share, worth_of_both, **settings))
            np.testing.assert_allclose(found, limit, atol=0.03 if settings else 2e-6)
    # Without draws there is no proxy, whatever its share was.
    no_draws = probs_of(fitted_posterior(0.25, 4.0, draws=0))
    np.testing.assert_allclose(no_draws, (4 * prior_probs() + written) / 5, rtol=1e-5)


def test_merging_adds_up_repetitions_and_puts_padding_last() -> None:
    ids = torch.tensor([[4, -1, 2, 4, 2, 4], [-1, -1, -1, -1, 9, -1]])
    mass = torch.tensor([[0.1, 0.0, 0.2, 0.1, 0.3, 0.3], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]])
    found = merge_tokens(ids, mass)
    assert {int(i): round(float(p), 6) for i, p in zip(found.token_ids[0], found.probs[0], strict=True)} == {
        4: 0.5,
        2: 0.5,
    }
    assert found.token_ids[1].tolist() == [9, -1]
    assert found.probs[1].tolist() == [1.0, 0.0]

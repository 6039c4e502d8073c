"""Which estimators, reductions, teachers and objectives go together."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import ValidationError

from proxykd.config import RunSpec
from proxykd.config.estimation import PosteriorEstimatorSpec, TargetsSpec

MakeRun = Callable[..., RunSpec]


def test_the_default_is_the_proxys_ten_likeliest_tokens() -> None:
    spec = TargetsSpec()
    assert (spec.estimator.kind, spec.reduction.kind, spec.reduction.max_tokens) == ("proxy", "top_k", 10)


@pytest.mark.parametrize("kind", ["proxy", "prior", "posterior", "logprobs"])
def test_who_counts(kind: str) -> None:
    prior = TargetsSpec.model_validate({"estimator": {"kind": kind}}).estimator.prior
    assert (prior is None) == (kind == "proxy")


def test_neither_prior_nor_draws_is_nothing() -> None:
    with pytest.raises(ValidationError, match="neither prior nor proxy"):
        PosteriorEstimatorSpec(kappa=0.0, draws=0)


def test_a_fitted_kappa_needs_no_bound_by_observations() -> None:
    with pytest.raises(ValidationError, match="give kappa a number"):
        PosteriorEstimatorSpec(trust="observed")
    assert PosteriorEstimatorSpec(kappa=8, trust="observed").trust == "observed"


@pytest.mark.parametrize(
    ("estimator", "is_fitted"),
    [
        ({"kind": "proxy"}, False),
        ({"kind": "prior"}, True),
        ({"kind": "prior", "gamma": 2}, False),
        ({"kind": "posterior"}, True),
        ({"kind": "posterior", "kappa": 8}, True),
        ({"kind": "posterior", "kappa": 8, "prior": {"gamma": 2}}, False),
        ({"kind": "posterior", "draws": 0, "prior": {"gamma": 2}}, False),
        ({"kind": "logprobs", "prior": {"gamma": 2}}, True),
    ],
)
def test_what_is_fitted(estimator: dict[str, Any], is_fitted: bool) -> None:
    assert TargetsSpec.model_validate({"estimator": estimator}).estimator.is_fitted == is_fitted


def test_the_apis_probabilities_must_be_asked_for(make_run: MakeRun) -> None:
    targets = {"estimator": {"kind": "logprobs"}}
    with pytest.raises(ValidationError, match="top_logprobs"):
        make_run(targets=targets)
    assert make_run(targets=targets, teacher={"kind": "embedded", "sampling": {"top_logprobs": 5, "max_tokens": 9}})


@pytest.mark.parametrize("kind", ["sampled", "threshold"])
def test_unbiased_targets_go_with_the_forward_kl_alone(make_run: MakeRun, kind: str) -> None:
    targets: dict[str, Any] = {"reduction": {"kind": kind}}
    assert make_run(targets=targets)
    with pytest.raises(ValidationError, match="forward KL alone"):
        make_run(targets=targets, student={"objective": {"divergence": {"kind": "generalized_jsd"}}})


def test_the_priors_term_needs_the_priors_targets(make_run: MakeRun) -> None:
    student = {"objective": {"prior_alpha": 0.5}}
    with pytest.raises(ValidationError, match="keep_prior"):
        make_run(student=student)
    assert make_run(student=student, targets={"estimator": {"kind": "posterior", "keep_prior": True}})

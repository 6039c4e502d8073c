"""How the teacher's distributions are estimated from its texts, and what is kept of them."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from proxykd.config.base import PositiveFloat, Spec
from proxykd.config.prior import PriorSpec
from proxykd.config.targets_store import TargetStoreSpec

NonNegative = Annotated[float, Field(ge=0.0)]
Level = Annotated[float, Field(gt=0.0, lt=1.0)]


class ProxyEstimatorSpec(Spec):
    """The aligned proxy's own distribution (Proxy-KD, Eq. 8)."""

    kind: Literal["proxy"] = "proxy"
    """The proxy."""

    mixes: ClassVar[bool] = False
    """Whether the shares of counts and proxy are fitted to the development side."""
    is_fitted: ClassVar[bool] = False
    """Whether anything is."""

    @property
    def prior(self) -> PriorSpec | None:
        """None: there are no counts."""
        return None


class PriorEstimatorSpec(PriorSpec):
    """The n-gram prior alone; the proxy gives the samples' weights and nothing else."""

    mixes: ClassVar[bool] = False

    kind: Literal["prior"] = "prior"
    """The counts of the teacher's corpus."""

    @property
    def prior(self) -> PriorSpec:
        """The counts."""
        return self

    @property
    def is_fitted(self) -> bool:
        """Whether gamma is."""
        return self.gamma == "fitted"


class _Posterior(Spec):
    """What both posteriors share."""

    prior: PriorSpec = PriorSpec()
    """The prior's mean."""
    kappa: NonNegative | Literal["fitted"] = "fitted"
    """Concentration of the Dirichlet prior: it weighs as much as so many draws; 0 = no prior. fitted = what counts and
    proxy are worth at each position follows from the development side: their shares are those under which its text is
    likeliest, and ``prior.gamma`` weighs both together against the written token."""
    trust: Literal["fixed", "observed"] = "fixed"
    """fixed = kappa at every position; observed = no more than the context was observed, and at least 1, for the token
    that stands there was. A fitted kappa knows how often a context was observed already."""
    draws: Annotated[int, Field(ge=0, le=4096)] = 32
    """N: draws from the proxy at each position; 0 = the prior alone. The proxy's share is draws / (kappa + draws), or
    what was fitted, of which each draw then has its part."""
    hits: Literal["expected", "sampled"] = "expected"
    """expected = each token is hit as often as it would be on average, which needs no sampling (the closed limit);
    sampled = the proxy is really drawn from."""
    keep_prior: bool = False
    """Write the prior's own targets too, as the second term that ``student`` can weigh."""
    credible_level: Level = 0.95
    """Level of the credible intervals that ``targets.json`` reports."""

    @model_validator(mode="after")
    def _something_is_known(self) -> Self:
        if self.kappa == 0.0 and not self.draws:
            raise ValueError("kappa = 0 and draws = 0 leave neither prior nor proxy; raise one of them")
        if self.kappa == "fitted" and self.trust == "observed":
            raise ValueError("trust = observed bounds a kappa that is given; give kappa a number, or leave trust fixed")
        return self

    @property
    def mixes(self) -> bool:
        """Whether the shares of counts and proxy are fitted."""
        return self.kappa == "fitted" and self.draws > 0

    @property
    def is_fitted(self) -> bool:
        """Whether kappa or gamma is."""
        return self.mixes or self.prior.gamma == "fitted"


class PosteriorEstimatorSpec(_Posterior):
    """The prior updated by the proxy: a Dirichlet posterior at each position (arXiv:2401.07013v1)."""

    kind: Literal["posterior"] = "posterior"
    """Prior and proxy."""


class LogprobsEstimatorSpec(_Posterior):
    """The same posterior, updated by the API's own probabilities where it told them."""

    kind: Literal["logprobs"] = "logprobs"
    """Prior, proxy and top_logprobs."""
    evidence: PositiveFloat = 1000.0
    """The API's probabilities at a position weigh as much as so many draws from the teacher itself."""


class TopKSpec(Spec):
    """The k likeliest tokens with their probabilities, and one tail bucket for the mass of all others."""

    is_unbiased: ClassVar[bool] = False
    """Whether the tokens' probabilities are right on average, and there is no tail."""

    kind: Literal["top_k"] = "top_k"
    """The likeliest tokens."""
    k: Annotated[int, Field(ge=1, le=1024)] = 10
    """Tokens kept at each position (Proxy-KD A.1 keeps 10)."""

    @property
    def max_tokens(self) -> int:
        """Most tokens kept at a position."""
        return self.k


class SampledSpec(Spec):
    """Tokens drawn from the distribution, with their shares of the draws; unbiased, no tail (arXiv:2503.16870)."""

    is_unbiased: ClassVar[bool] = True

    kind: Literal["sampled"] = "sampled"
    """Drawn tokens."""
    draws: Annotated[int, Field(ge=1, le=1024)] = 50
    """Draws a position; about a quarter as many different tokens are kept."""
    scheme: Literal["multinomial", "systematic"] = "multinomial"
    """multinomial = independent draws, as in the paper; systematic = evenly spaced ones with one random start, each
    token's share then lies within one draw of its probability."""

    @property
    def max_tokens(self) -> int:
        """Most tokens kept at a position."""
        return self.draws


class ThresholdSpec(Spec):
    """k tokens, unbiased, of mass 1: those above a threshold as they are, the others drawn and given the threshold.

    Of all unbiased targets of k tokens it has the least expected squared error (Fearnhead and Clifford, 2003).
    """

    is_unbiased: ClassVar[bool] = True

    kind: Literal["threshold"] = "threshold"
    """Likely tokens kept, unlikely ones drawn."""
    k: Annotated[int, Field(ge=1, le=1024)] = 20
    """Tokens at each position."""

    @property
    def max_tokens(self) -> int:
        """Most tokens kept at a position."""
        return self.k


EstimatorSpec = Annotated[
    ProxyEstimatorSpec | PriorEstimatorSpec | PosteriorEstimatorSpec | LogprobsEstimatorSpec,
    Field(discriminator="kind"),
]
ReductionSpec = Annotated[TopKSpec | SampledSpec | ThresholdSpec, Field(discriminator="kind")]


class TargetsSpec(Spec):
    """The distributions that the student learns from."""

    estimator: EstimatorSpec = ProxyEstimatorSpec()
    """Where they come from."""
    reduction: ReductionSpec = TopKSpec()
    """What is kept of them at each position."""
    store: TargetStoreSpec = TargetStoreSpec()
    """How they are kept on disk."""
    weighting: Literal["mean", "sum", "none"] = "mean"
    """Sample weight: sigmoid of the z-score of the proxy's log-likelihood of the teacher's text (Eq. 9), taken as the
    mean over tokens or as their sum; none = every sample weighs 1."""
    temperature: PositiveFloat = 1.0
    """What the estimate is raised to the power of 1 / temperature by before tokens are kept of it; the student's
    scores are then divided by it too. Above 1, the unlikely tokens count for more. What is stored cannot be tempered
    afterwards, because a tail bucket does not tell how its tokens share it."""

"""What the student minimises beside the NLL: which divergence from the targets, and how much of the prior's.

Every kind is a divergence between the teacher's distribution p and the student's q over the k tokens of a target and
its tail bucket; docs/methods/objectives.md has the formulas and says when to choose which.

Two facts about a kind decide which targets it can learn from:

    is_linear             its gradient is linear in p, so that targets which are right on average (``sampled``,
                          ``threshold``) give the right gradient on average; true for the forward KL alone
    needs_full_support    it is infinite where p is 0 and q is not, so that the targets must have a tail bucket
"""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from proxykd.config.base import Fraction, Spec
from proxykd.config.estimation import EstimatorSpec, TargetsSpec

Skew = Annotated[float, Field(gt=0.0, lt=1.0)]


class _Divergence(Spec):
    is_linear: ClassVar[bool] = False
    needs_full_support: ClassVar[bool] = False


class ForwardKlSpec(_Divergence):
    """KL(p || q): the student covers all that the teacher says."""

    is_linear: ClassVar[bool] = True

    kind: Literal["forward_kl"] = "forward_kl"
    """The divergence of Proxy-KD (Eq. 8), and the only one for targets that are samples."""


class ReverseKlSpec(_Divergence):
    """KL(q || p): the student keeps to what the teacher is sure of; needs targets with a tail bucket."""

    needs_full_support: ClassVar[bool] = True

    kind: Literal["reverse_kl"] = "reverse_kl"
    """The divergence of MiniLLM, here on the teacher's text."""


class GeneralizedJsdSpec(_Divergence):
    """beta KL(p || m) + (1 - beta) KL(q || m) with m = beta p + (1 - beta) q, the divergence of GKD; at most log 2."""

    kind: Literal["generalized_jsd"] = "generalized_jsd"
    """Between forward and reverse KL."""
    beta: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.5
    """Towards 0 it acts like beta times the forward KL, towards 1 like 1 - beta times the reverse KL; 0.5 is GKD's
    choice. The limits themselves are the kinds forward_kl and reverse_kl."""


class SkewKlSpec(_Divergence):
    """KL(p || skew p + (1 - skew) q): a forward KL with a bounded gradient (DistiLLM)."""

    kind: Literal["skew_kl"] = "skew_kl"
    """The teacher against a mixture."""
    skew: Skew = 0.1
    """Share of the teacher in the mixture; 0.1 is DistiLLM's choice."""


class SkewReverseKlSpec(_Divergence):
    """KL(q || (1 - skew) p + skew q): a reverse KL that stays finite without a tail bucket (DistiLLM)."""

    kind: Literal["skew_reverse_kl"] = "skew_reverse_kl"
    """The student against a mixture."""
    skew: Skew = 0.1
    """Share of the student in the mixture; 0.1 is DistiLLM's choice."""


class TotalVariationSpec(_Divergence):
    """1/2 sum |p - q|: between 0 and 1, so that no position pulls much harder than another."""

    kind: Literal["total_variation"] = "total_variation"
    """The mass that p and q disagree on."""


class AdaptiveKlSpec(_Divergence):
    """Forward KL where the likely tokens differ, reverse KL where the others do; needs targets with a tail bucket."""

    needs_full_support: ClassVar[bool] = True

    kind: Literal["adaptive_kl"] = "adaptive_kl"
    """Both KLs, weighted at each position (arXiv:2404.02657)."""
    tail_mass: Fraction = 0.5
    """The least likely tokens, as long as they hold at most so much of the teacher's mass, are the part that pulls
    towards the reverse KL; 0.5 is the authors' choice."""


DivergenceSpec = Annotated[
    ForwardKlSpec
    | ReverseKlSpec
    | GeneralizedJsdSpec
    | SkewKlSpec
    | SkewReverseKlSpec
    | TotalVariationSpec
    | AdaptiveKlSpec,
    Field(discriminator="kind"),
]


class ObjectiveSpec(Spec):
    """The terms beside the NLL; ``student.alpha`` weighs the first."""

    divergence: DivergenceSpec = ForwardKlSpec()
    """How far the student is from the targets. Its weight is ``student.alpha``."""
    prior_alpha: Annotated[float, Field(ge=0.0)] = 0.0
    """Weight of a second term, the divergence from the prior's own targets, where the estimator keeps them beside the
    posterior's; 0 = off. Both weights count against the NLL, all three being means over tokens."""
    prior_divergence: DivergenceSpec = ForwardKlSpec()
    """How far the student is from the prior. Counts exclude what they have not seen: the forward KL fits them, and the
    kinds that need a tail bucket do not."""

    @model_validator(mode="after")
    def _prior_is_finite(self) -> Self:
        if self.prior_divergence.needs_full_support:
            raise ValueError(
                f"prior_divergence.kind={self.prior_divergence.kind} is infinite where counts have not seen a token; "
                "choose forward_kl, or another kind that needs no tail bucket"
            )
        return self

    def check_targets(self, targets: TargetsSpec, *, alpha: float) -> None:
        """Refuse targets that the divergences cannot be learnt from.

        Args:
            targets: How the targets are made.
            alpha: Weight of the first term; 0 = it is off.

        Raises:
            ValueError: naming the keys that do not fit each other.
        """
        if alpha > 0.0:
            self._check_term("divergence", self.divergence, targets)
            if self.divergence.needs_full_support and not _covers_all_tokens(targets.estimator):
                raise ValueError(
                    f"student.objective.divergence.kind={self.divergence.kind} needs targets that allow every token; "
                    f"got targets.estimator.kind={targets.estimator.kind}, which excludes what it has not seen: let "
                    "the whole proxy in (hits: expected, draws above 0), or choose forward_kl"
                )
        if self.prior_alpha > 0.0:
            self._check_term("prior_divergence", self.prior_divergence, targets)
            if not getattr(targets.estimator, "keep_prior", False):
                raise ValueError(
                    f"student.objective.prior_alpha={self.prior_alpha:g} needs the prior's own targets; got "
                    f"targets.estimator.kind={targets.estimator.kind} without them: set targets.estimator.keep_prior "
                    "of the estimators posterior and logprobs, or prior_alpha to 0"
                )

    def _check_term(self, name: str, divergence: DivergenceSpec, targets: TargetsSpec) -> None:
        if targets.reduction.kind != "top_k" and not divergence.is_linear:
            raise ValueError(
                f"targets.reduction.kind={targets.reduction.kind} keeps samples, which only the forward KL learns from "
                f"without bias; got student.objective.{name}.kind={divergence.kind}: set targets.reduction.kind=top_k "
                "or the divergence to forward_kl"
            )


def _covers_all_tokens(estimator: EstimatorSpec) -> bool:
    """Whether no token is excluded: the proxy itself has a say, and not through draws alone."""
    if estimator.kind == "proxy":
        return True
    return estimator.kind != "prior" and estimator.hits == "expected" and estimator.draws > 0

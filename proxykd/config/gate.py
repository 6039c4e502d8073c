"""The promotion gate: what a candidate has to show before it may become champion."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from proxykd.config.base import Count, Fraction, Spec

Margin = Annotated[float, Field(ge=0.0)]


class PrimarySpec(Spec):
    """The metric on which the candidate must be better than every bar."""

    metric: str = "heldout_nll"
    """Name of the metric; its direction is that of the report."""
    margin: Margin = 0.0
    """It must be better by more than this, in the metric's unit; 0 = any improvement that is beyond chance."""


class GuardSpec(Spec):
    """A metric that may not get worse."""

    metric: str
    """Name of the metric, or a pattern: accuracy/* = each task's."""
    margin: Annotated[float, Field(gt=0.0)]
    """Non-inferiority margin, in the metric's unit: a loss of as much as this must be ruled out at the gate's level."""


class SliceSpec(Spec):
    """A part of the prompts on which a metric may not get worse."""

    slice: str
    """Name of the slice, or a pattern: task=* = each task's prompts."""
    metric: str | None = None
    """Name of the metric; None = the primary metric."""
    margin: Annotated[float, Field(gt=0.0)]
    """Non-inferiority margin, in the metric's unit."""


class LimitSpec(Spec):
    """A bound on a plain number of the report: a metric of the registered model, a cost, a speed or a size."""

    name: str
    """A metric (heldout_nll, accuracy/sums) or an entry of the report's resources (usd, tokens_per_s, size_gb)."""
    at_most: float | None = None
    """Largest value allowed; None = no upper bound."""
    at_least: float | None = None
    """Smallest value allowed; None = no lower bound."""

    @model_validator(mode="after")
    def _bounds_something(self) -> Self:
        if self.at_most is None and self.at_least is None:
            raise ValueError(f"a limit needs at_most or at_least; got neither for {self.name!r}")
        if self.at_most is not None and self.at_least is not None and self.at_most < self.at_least:
            raise ValueError(f"at_most must not be below at_least, got {self.at_most:g} and {self.at_least:g}")
        return self


class GateSpec(Spec):
    """What a candidate has to show before it may become champion.

    All of it has to be shown at once, so that no correction is needed for the promotion: a candidate that is no better
    on the primary metric passes at most at the level, whatever the other rules say of it.
    """

    level: Annotated[float, Field(gt=0.0, lt=0.5)] = 0.05
    """One-sided significance level: how often, at most, a candidate that is no better is promoted."""
    correction: Literal["holm", "none"] = "holm"
    """How the claims that a guard or a slice has got worse are corrected for their number; "keep" instead of
    "undecided" rests on such a claim, a promotion never does."""
    primary: PrimarySpec = PrimarySpec()
    """The metric that decides."""
    guards: tuple[GuardSpec, ...] = (GuardSpec(metric="top1_agreement", margin=0.01),)
    """Metrics that may not get worse than the bar's by as much as their margin."""
    slices: tuple[SliceSpec, ...] = ()
    """Parts of the prompts on which a metric may not get worse."""
    limits: tuple[LimitSpec, ...] = ()
    """Bounds on metrics, costs, speed and size."""
    min_prompts: Count = 20
    """Fewest independent prompts (a group counts once) with which anything is decided on all of them."""
    min_slice_prompts: Count = 20
    """The same for a slice."""
    beat_sft: bool = True
    """The candidate must beat the SFT arm's first seed as well as the champion: what distillation costs must buy
    something. False = a first version need only beat the untrained student."""
    require_validation: bool = True
    """The validation gate must have been open."""
    max_contamination: Fraction | None = 0.1
    """Largest share of the training rows that may share a run of validation.overlap_ngram words with a held-out prompt
    or a question of any task, whatever its source; None = not looked at. Templates share such runs without harm, so
    that 0 suits prompts written one by one."""

    @model_validator(mode="after")
    def _rules_are_named_once(self) -> Self:
        guards, limits = [one.metric for one in self.guards], [one.name for one in self.limits]
        slices = [f"{one.slice} of {one.metric or self.primary.metric}" for one in self.slices]
        for kind, names in (("guards", guards), ("slices", slices), ("limits", limits)):
            if twins := sorted({name for name in names if names.count(name) > 1}):
                raise ValueError(f"gate.{kind} must name each once; got {', '.join(twins)} more than once")
        return self

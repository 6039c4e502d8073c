"""How sure a number of the evaluation is: intervals, resamples, seeds and power."""

from typing import Annotated, Literal

from pydantic import Field

from proxykd.config.base import Spec


class StatisticsSpec(Spec):
    """How intervals are made of the scores of each prompt."""

    confidence: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.95
    """Two-sided level of every interval of the report; the gate has a level of its own."""
    resamples: Annotated[int, Field(ge=100)] = 2000
    """Bootstrap resamples over prompts."""
    interval: Literal["studentised", "percentile", "bca"] = "studentised"
    """How ends are found. studentised = bootstrap-t, never nearer than a t interval with the degrees of freedom of a
    few long prompts; percentile and bca = the textbook's, which find differences where there are none more often than
    their level says when prompts are few or unequal (benchmarks/evaluation/simulation.py)."""
    power: Annotated[float, Field(gt=0.5, lt=1.0)] = 0.8
    """With what odds the minimum detectable effect beside each difference would be found."""
    seeds_in_interval: bool = True
    """Whether the spread over the student's seeds widens the intervals of arms that have several: True = they speak of
    the method, False = of these models. The gate decides on one model, the registered one, either way."""

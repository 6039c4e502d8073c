"""Staging: a cheaper teacher's texts first, then those of the better one, on a part of the prompts (Orca)."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from proxykd.config.base import Spec
from proxykd.config.teacher import AnthropicTeacherSpec, GeminiTeacherSpec, OpenAITeacherSpec

LiveApiSpec = Annotated[
    OpenAITeacherSpec | AnthropicTeacherSpec | GeminiTeacherSpec,
    Field(discriminator="kind"),
]

Portion = Annotated[float, Field(gt=0.0, le=1.0)]


class EarlierTeacherSpec(Spec):
    """A teacher from which the student learns before it learns from the main one."""

    teacher: LiveApiSpec
    """Which live API, with its sampling, budget and limits of its own."""
    fraction: Portion = 1.0
    """Share of the training prompts that it is asked."""


class StagingSpec(Spec):
    """Teachers in the order in which the student learns from them (Orca, arXiv:2306.02707); the main one is the last.

    Held-out and development prompts are asked of the main teacher alone, all of them.
    """

    earlier: Annotated[tuple[EarlierTeacherSpec, ...], Field(min_length=1, max_length=8)]
    """The teachers before the main one, cheapest first."""
    fraction: Portion = 1.0
    """Share of the training prompts that the main teacher is asked; by a hash of the prompt, so that the prompts of a
    smaller share are among those of a larger one, whichever teacher's it is. Orca asked GPT-4 a fifth."""

    @model_validator(mode="after")
    def _somebody_is_asked_everything(self) -> Self:
        if (largest := max(self.fraction, *(one.fraction for one in self.earlier))) < 1.0:
            raise ValueError(
                f"every training prompt must be asked of somebody, and {1.0 - largest:.0%} of them would be asked of "
                "nobody; set the fraction of one teacher to 1, and prompts.limit to use fewer prompts"
            )
        return self

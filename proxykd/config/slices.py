"""Into which parts the held-out prompts are divided."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from proxykd.config.base import Count, Spec

SliceField = Literal["task", "turns", "length", "source", "group", "system", "reference"]


class SlicesSpec(Spec):
    """What divides the held-out prompts into named slices, each compared on its own; names read field=value."""

    by: tuple[SliceField, ...] = ("task", "turns", "length", "source")
    """task = the prompt's task; turns = one or several messages of the user; length = short, medium or long;
    source = the file, dataset or generator that it came from; group = prompts that belong together; system = its system
    message, or none; reference = whether it has a reference answer. () = no slices but those of the tasks' files."""
    length_bounds: tuple[Count, Count] | None = None
    """Up to how many characters, system message left out, a prompt is short, and up to how many medium; None = a third
    of the run's held-out prompts each, so that the bounds differ from run to run where the prompts do."""
    most_values: Annotated[int, Field(ge=1, le=1000)] = 50
    """Values of one field that become slices, those with the most prompts; prompts with others are in none."""

    @model_validator(mode="after")
    def _bounds_ascend(self) -> Self:
        if self.length_bounds is not None and self.length_bounds[0] >= self.length_bounds[1]:
            raise ValueError(f"expected length_bounds to ascend, got {self.length_bounds}")
        return self

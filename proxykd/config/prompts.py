"""Prompts: where the questions come from."""

from typing import Annotated, Literal

from pydantic import Field

from proxykd.config.base import Count, InputPath, Spec


class JsonlPromptsSpec(Spec):
    """Prompts from a JSONL file, one JSON object a line."""

    kind: Literal["jsonl"] = "jsonl"
    """A file of the user's."""
    path: InputPath
    """The file."""
    prompt_field: str = "prompt"
    """Key that holds the question: a string, or a list of messages with role and content."""
    input_field: str | None = None
    """Key of a second text appended to the question after a blank line where it is not empty; None = no such key."""
    reference_field: str | None = None
    """Key of the reference answer for exact-match tasks; None = there are none."""
    system: str | None = None
    """System message put before every question; None = none."""
    task: str = ""
    """Name of the task that the prompts belong to."""
    on_duplicate: Literal["error", "drop"] = "error"
    """What to do with a prompt that occurs twice: stop with its line numbers, or keep the first."""
    limit: Count | None = None
    """Take only the first so many prompts; None = all."""


class EmbeddedPromptsSpec(Spec):
    """Word problems made by the embedded teacher's own generator; needs no file."""

    kind: Literal["embedded"] = "embedded"
    """The built-in generator."""
    count: Count = 1500
    """Number of distinct prompts."""


PromptsSpec = Annotated[JsonlPromptsSpec | EmbeddedPromptsSpec, Field(discriminator="kind")]

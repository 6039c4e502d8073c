"""What is put before a question to elicit a better completion: system messages (Orca) and worked examples (EKT).

Orca (arXiv:2306.02707) has the teacher explain itself under a list of system messages; EKT (arXiv:2211.16740) shows it
a few worked examples. Both are read when the specification is, so that the texts themselves are part of it, and a
changed text is another run.
"""

import json
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationInfo, field_validator

from proxykd.config.base import PositiveFloat, Spec, resolve_path

_SHIPPED = ("explanation_traces",)


class SystemMessageSpec(Spec):
    """A system message and where it applies."""

    text: str
    """The message; "" = the question is asked without one."""
    weight: Annotated[PositiveFloat, Field(le=1e6)] = 1.0
    """How often it is drawn, in proportion to the others that apply."""
    tasks: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    """Names of the tasks that it applies to; None = to all."""

    def applies_to(self, task: str) -> bool:
        """Whether questions of ``task`` may get it."""
        return self.tasks is None or task in self.tasks


class ExampleSpec(Spec):
    """A worked example."""

    prompt: str
    """The question."""
    completion: str
    """What the teacher should say to it."""

    @field_validator("prompt", "completion")
    @classmethod
    def _is_not_blank(cls, value: str) -> str:
        if not value.strip():
            raise ValueError("expected a text, got a blank one")
        return value


def read_system_messages(value: Any) -> Any:
    """The list that the package ships under a name; anything else as it is.

    Raises:
        ValueError: if no list has the name.
    """
    if not isinstance(value, str):
        return value
    if value not in _SHIPPED:
        raise ValueError(f"expected a list, or the name of one that the package ships: {', '.join(_SHIPPED)}")
    return yaml.safe_load(files("proxykd.config").joinpath(f"{value}.yaml").read_text("utf-8"))


def read_examples(value: Any, info: ValidationInfo) -> Any:
    """The objects of a JSONL file where ``value`` is its path; anything else as it is.

    Raises:
        ValueError: if the file cannot be read, naming the line.
    """
    if not isinstance(value, str | Path):
        return value
    path = resolve_path(Path(value), info)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except OSError as error:
        raise ValueError(f"expected a readable JSONL file of examples at {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"expected UTF-8 in {path}; save the file as UTF-8") from None
    return [_parse_example(path, number, line) for number, line in enumerate(lines, start=1) if line.strip()]


def _parse_example(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{path}, line {number}: expected one JSON object a line: {error}") from None
    if not isinstance(found, dict) or not all(isinstance(found.get(key), str) for key in ExampleSpec.model_fields):
        raise ValueError(f"{path}, line {number}: expected an object with prompt and completion, both of text")
    return {key: found[key] for key in ExampleSpec.model_fields}

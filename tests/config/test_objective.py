"""The objectives' page: every example in it is a specification, and it has one of every kind."""

from pathlib import Path
from typing import Any

import pytest
import yaml

import proxykd
from proxykd.config import RunSpec
from proxykd.config.objective import ObjectiveSpec

PAGE = Path(proxykd.__file__).parents[1] / "docs" / "methods" / "objectives.md"
EXAMPLES = [block.split("```")[0] for block in PAGE.read_text(encoding="utf-8").split("```yaml\n")[1:]]


def load(example: str) -> RunSpec:
    values: dict[str, Any] = {
        "name": "example",
        "prompts": {"kind": "embedded"},
        "teacher": {"kind": "embedded"},
        "proxy": {"model": {"source": "embedded:proxy"}},
        "registry": {"model_name": "example"},
        **yaml.safe_load(example),
    }
    student = {"model": {"source": "embedded:student"}, **values.pop("student", {})}
    return RunSpec.model_validate({**values, "student": student})


def is_part_of(given: Any, found: Any) -> bool:
    """Whether all that is given stands in what was found."""
    if isinstance(given, dict):
        return all(key in found and is_part_of(value, found[key]) for key, value in given.items())
    return bool(given == found)


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_a_specification_that_keeps_what_it_says(example: str) -> None:
    assert is_part_of(yaml.safe_load(example), load(example).model_dump(mode="json"))


def test_every_kind_has_an_example_and_the_defaults_are_those_shown() -> None:
    kinds = {load(example).student.objective.divergence.kind for example in EXAMPLES}
    schema = ObjectiveSpec.model_json_schema()["properties"]["divergence"]["discriminator"]["mapping"]
    assert kinds == set(schema)
    assert load(EXAMPLES[0]).student == load("{}").student

"""Staging in the specification: which teachers may be staged, and what is said of those that may not."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError

from proxykd.config import RunSpec, load_specification
from proxykd.exceptions import ConfigError

CHEAP = {"kind": "openai", "model": "cheap"}
BETTER = {"kind": "openai", "model": "better"}


def values(staging: Any, teacher: Any = BETTER, **student: Any) -> dict[str, Any]:
    return {
        "name": "a-run",
        "prompts": {"kind": "jsonl", "path": "rows.jsonl"},
        "teacher": teacher,
        "staging": staging,
        "proxy": {"model": {"source": "embedded:proxy"}},
        "student": {"model": {"source": "embedded:student"}, **student},
        "registry": {"model_name": "a-run"},
    }


def make(staging: Any, teacher: Any = BETTER, **student: Any) -> RunSpec:
    return RunSpec.model_validate(values(staging, teacher, **student))


def test_the_main_teacher_is_the_last_stage() -> None:
    assert make(None).main_stage == 0
    assert make({"earlier": [{"teacher": CHEAP}], "fraction": 0.2}).main_stage == 1
    middle = {"kind": "anthropic", "model": "middle"}
    assert make({"earlier": [{"teacher": CHEAP}, {"teacher": middle, "fraction": 0.5}]}).main_stage == 2


@pytest.mark.parametrize(
    ("staging", "teacher", "student", "message"),
    [
        ({"earlier": []}, BETTER, {}, "at least 1 item"),
        ({"earlier": [{"teacher": CHEAP, "fraction": 0.0}]}, BETTER, {}, "greater than 0"),
        ({"earlier": [{"teacher": CHEAP, "fraction": 1.1}]}, BETTER, {}, "less than or equal to 1"),
        ({"earlier": [{"teacher": CHEAP, "fraction": 0.6}], "fraction": 0.5}, BETTER, {}, "40% of them"),
        ({"earlier": [{"teacher": {"kind": "recorded"}}]}, BETTER, {}, "'openai', 'anthropic', 'gemini'"),
        ({"earlier": [{"teacher": CHEAP}]}, {"kind": "recorded"}, {}, "got teacher.kind='recorded'"),
        ({"earlier": [{"teacher": BETTER}]}, BETTER, {}, "'better' of api.openai.com/v1 twice"),
        ({"earlier": [{"teacher": CHEAP}]}, BETTER, {"steps": 1}, "student.steps must be at least 2; got 1"),
    ],
)
def test_what_cannot_be_staged_is_refused(staging: Any, teacher: Any, student: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message.replace("(", r"\(")):
        make(staging, teacher, **student)


def test_one_model_may_be_asked_twice_if_it_is_asked_otherwise() -> None:
    cooler = {**BETTER, "sampling": {"temperature": 0.2}}
    assert make({"earlier": [{"teacher": cooler}]}).main_stage == 1


def test_another_port_is_no_other_teacher() -> None:
    """The journal knows endpoints without their port: both would be given the same answers."""
    local = [{**BETTER, "base_url": f"http://127.0.0.1:{port}/v1"} for port in (1, 2)]
    with pytest.raises(ValidationError, match="twice with the same sampling"):
        make({"earlier": [{"teacher": local[0]}]}, local[1])


@pytest.mark.parametrize(
    ("teacher", "message"),
    [
        ({**CHEAP, "modle": "x"}, "staging.earlier.0.teacher.modle: unknown key; did you mean 'model'?"),
        ({"kind": "openai"}, "staging.earlier.0.teacher.model: missing"),
        ({**CHEAP, "concurrency": 0}, "staging.earlier.0.teacher.concurrency: "),
        ({**CHEAP, "api_key": "sk-verysecret"}, "staging.earlier.0.teacher.api_key: "),
    ],
)
def test_messages_name_the_key_as_it_stands_in_the_file(tmp_path: Path, teacher: Any, message: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(values({"earlier": [{"teacher": teacher}]})))
    with pytest.raises(ConfigError) as caught:
        load_specification(path)
    assert message in str(caught.value)
    assert "verysecret" not in str(caught.value)

"""Teachers: each kind takes what its API offers, keys have one place, schemas are read once."""

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxykd.config.base import read_secret_file
from proxykd.config.prices import PriceSpec
from proxykd.config.sampling import SamplingSpec
from proxykd.config.teacher import (
    AnthropicTeacherSpec,
    EmbeddedTeacherSpec,
    GeminiTeacherSpec,
    OpenAITeacherSpec,
)
from proxykd.exceptions import ConfigError

SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}


@pytest.mark.parametrize(
    ("sampling", "complaint"),
    [({"top_logprobs": 5}, "tells no log-probabilities"), ({"temperature": 1.5}, "takes 0 to 1")],
)
def test_what_the_messages_api_lacks_is_refused(sampling: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        AnthropicTeacherSpec(model="m", sampling=SamplingSpec(**sampling))
    for kind in (OpenAITeacherSpec, GeminiTeacherSpec):
        assert kind(model="m", sampling=SamplingSpec(**sampling))


@pytest.mark.parametrize("sampling", [{"json_schema": SCHEMA}, {"stop": ("x",)}])
def test_the_embedded_teacher_refuses_what_its_server_does_not_know(sampling: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="embedded teacher offers no"):
        EmbeddedTeacherSpec(sampling=SamplingSpec(**sampling))


def test_a_key_is_in_one_place() -> None:
    with pytest.raises(ValidationError, match="not both"):
        OpenAITeacherSpec(model="m", api_key="${KEY}", api_key_file=Path("/run/key"))


def test_a_key_in_place_of_its_file_is_not_repeated() -> None:
    with pytest.raises(ValidationError) as caught:
        OpenAITeacherSpec.model_validate({"model": "m", "api_key_file": "sk-verysecret"})
    assert "with a slash" in caught.value.errors()[0]["msg"]


def test_a_key_is_read_from_its_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1\n")
    assert read_secret_file(tmp_path / "key") == "sk-1"


@pytest.mark.parametrize("content", [b"", b" \n", b"sk-secret\nsk-secret", b"sk-secret\xff", "sk-sécret".encode()])
def test_a_file_that_holds_no_key_is_told_without_its_content(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "key").write_bytes(content)
    with pytest.raises(ConfigError, match="expected a secret") as caught:
        read_secret_file(tmp_path / "key")
    assert "cret\n" not in str(caught.value)
    assert "sk-" not in str(caught.value)


def test_a_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No such file.*teacher\.api_key_file"):
        read_secret_file(tmp_path / "key")


def test_a_schema_is_read_from_its_file_once(tmp_path: Path) -> None:
    (tmp_path / "answer.json").write_text(json.dumps(SCHEMA))
    spec = SamplingSpec.model_validate({"json_schema": "answer.json"}, context={"base_folder": tmp_path})
    (tmp_path / "answer.json").unlink()
    assert spec.json_schema == SCHEMA
    assert SamplingSpec.model_validate(spec.model_dump(mode="json")) == spec


@pytest.mark.parametrize(
    ("schema", "complaint"),
    [
        ("absent.json", "No such file"),
        ({"type": "array"}, "of an object"),
        ({"type": "object", "properties": {"a": {"type": "integre"}}}, "is not valid under any"),
        ({"type": "object", "properties": {"a": {"$ref": "https://example.com/a"}}}, "refers to itself alone"),
        (3, "of an object"),
    ],
)
def test_what_is_no_schema_is_refused(schema: Any, complaint: str) -> None:
    with pytest.raises(ValidationError, match=complaint):
        SamplingSpec.model_validate({"json_schema": schema})


def test_cached_tokens_are_never_dearer() -> None:
    with pytest.raises(ValidationError, match="a cap could not be kept"):
        PriceSpec(input_usd_per_million=1, output_usd_per_million=1, cached_input_usd_per_million=2)

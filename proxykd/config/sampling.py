"""How a teacher is asked to generate."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationInfo

from proxykd.config.base import Count, Spec


def _load_schema(value: Any, info: ValidationInfo) -> Any:
    """The schema itself in place of the path of its file, so that a run knows it wherever it runs."""
    if isinstance(value, str | Path):
        path = Path((info.context or {}).get("base_folder", ".")) / Path(value).expanduser()
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ValueError(f"expected a JSON Schema in the file {path}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise ValueError(f"expected a JSON Schema in the file {path}: {error}") from None
    if value is not None:
        _check_schema(value)
    return value


def _check_schema(value: Any) -> None:
    from jsonschema import Draft202012Validator, SchemaError

    if not isinstance(value, Mapping) or value.get("type") != "object":
        raise ValueError("expected a JSON Schema of an object (type: object), which is what every API takes")
    try:
        Draft202012Validator.check_schema(value)
    except SchemaError as error:
        raise ValueError(f"expected a JSON Schema: {error.message} at {error.json_path}") from None
    if far := sorted(reference for reference in _references(value) if not reference.startswith("#")):
        raise ValueError(f"expected a JSON Schema that refers to itself alone, found $ref={far[0]!r}; put it inside")


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, Mapping):
        if isinstance(node.get("$ref"), str):
            yield node["$ref"]
        node = list(node.values())
    if isinstance(node, list):
        for item in node:
            yield from _references(item)


class SamplingSpec(Spec):
    """How the teacher is asked to generate."""

    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    """Softmax temperature; 1 samples the teacher's own distribution, which is what distillation estimates."""
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Nucleus mass; 1 = whole distribution."""
    max_tokens: Count = 512
    """Most tokens a completion may have, hidden reasoning included; longer ones end as truncated."""
    num_samples: Count = 1
    """Completions a prompt, a call each."""
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0
    """Likeliest tokens to keep at each position, with their bytes and log-probabilities; 0 = none are asked for."""
    json_schema: Annotated[dict[str, Any] | None, BeforeValidator(_load_schema)] = None
    """JSON Schema (2020-12) of an object, or the path of its file; a completion that is not valid under it ends as
    failed; None = free text."""
    stop: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(max_length=4)] = ()
    """Texts at which a completion ends, without them; four at most, which is what every API takes."""

"""YAML file + overrides -> ``RunSpec``, with messages that say what was expected, what came and what to do."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from proxykd.config.specification import RunSpec
from proxykd.exceptions import ConfigError

_MAY_HOLD_SECRETS = ("api_key", "base_url")
_SCALARS = (str, int, float, bool, type(None), Path)


def load_specification(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read, override and validate a run specification.

    Args:
        path: The YAML file; relative paths inside it are relative to its folder.
        overrides: ``dotted.key=value`` each, the value in YAML; a value that names an existing file is relative to
            the current folder.

    Raises:
        ConfigError: naming every key that is unknown, missing or out of bounds.
    """
    values = _read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    try:
        return RunSpec.model_validate(values, context={"base_folder": path.resolve().parent})
    except ValidationError as error:
        raise ConfigError(f"{path} is not a run specification:\n{_explain(error)}") from None


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"expected a run specification at {path}: {error.strerror}") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {_problem(error)}; correct it") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not YAML: expected UTF-8; save the file as UTF-8") from None
    if not isinstance(values, dict):
        raise ConfigError(f"expected keys and values in {path}, found {type(values).__name__}")
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"expected KEY=VALUE, got {override!r}; for example --set student.steps=100")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"the value of {key!r} is not YAML: {_problem(error)}") from None
    if isinstance(value, str) and key.endswith("path"):
        value = str(Path(value).resolve())
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"cannot set {key!r}: {parent!r} is a value, not a section")
    values[last] = value


def _problem(error: yaml.YAMLError) -> str:
    # Without the line itself, which may hold a secret.
    mark = getattr(error, "problem_mark", None)
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{getattr(error, 'problem', None) or 'it cannot be read'}{place}"


def _explain(error: ValidationError) -> str:
    return "\n".join(f"  {_location(item)}: {_reason(item)}" for item in error.errors())


def _location(item: Mapping[str, Any]) -> str:
    return ".".join(str(part) for part in item["loc"]) or "the whole file"


def _reason(item: Mapping[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        key = str(item["loc"][-1])
        close = difflib.get_close_matches(key, sorted(_known_keys(RunSpec)), n=1)
        return f"unknown key{f'; did you mean {close[0]!r}?' if close else ''}; `proxykd schema` lists all keys"
    if item["type"] == "missing":
        return "missing; `proxykd schema` describes it"
    # Sections are not repeated, nor what stands where a secret's name belongs or may hide in an address.
    repeatable = isinstance(item["input"], _SCALARS) and item["loc"][-1] not in _MAY_HOLD_SECRETS
    return f"{item['msg']}, got {item['input']!r:.200}" if repeatable else str(item["msg"])


def _known_keys(model: type[BaseModel]) -> set[str]:
    names: set[str] = set()
    for definition in [model.model_json_schema(), *model.model_json_schema().get("$defs", {}).values()]:
        names |= set(definition.get("properties", {}))
    return names

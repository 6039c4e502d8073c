"""YAML file + overrides -> ``RunSpec``, with messages that say what was expected, what came and what to do."""

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from proxykd.config.specification import QuerySpec, RunSpec
from proxykd.exceptions import ConfigError

_MAY_HOLD_SECRETS = ("api_key", "api_key_file", "base_url", "tracking_uri", "endpoint_url", "hostname")
_UNIONS = ("teacher", "prompts")
_STORES = ("folder", "s3")
_INNER_UNIONS = ("estimator", "reduction", "living_teacher", "divergence", "own_divergence", "prior_divergence")
_NO_KEYS = ("expected '<document start>', but found '<block mapping start>'", "could not find expected ':'")
_SCALARS = (str, int, float, bool, type(None), Path)


def load_specification(path: Path, overrides: Sequence[str] = ()) -> RunSpec:
    """Read, override and validate a run specification.

    Args:
        path: The YAML file; relative paths inside it are relative to its folder.
        overrides: ``dotted.key=value`` each, the value in YAML; the path of a file or of a model's folder is relative
            to the current folder.

    Raises:
        ConfigError: naming every key that is unknown, missing or out of bounds.
    """
    values = read_yaml(path)
    for override in overrides:
        _apply_override(values, override)
    try:
        return RunSpec.model_validate(values, context={"base_folder": path.resolve().parent})
    except ValidationError as error:
        raise ConfigError(f"{path} is not a run specification:\n{_explain(error)}") from None


def load_query(values: Mapping[str, Any], overrides: Sequence[str] = ()) -> QuerySpec:
    """Override and validate questions and teacher; relative paths are relative to the current folder.

    Args:
        values: The sections prompts and teacher, and seed if it is not 0.
        overrides: ``dotted.key=value`` each, the value in YAML.

    Raises:
        ConfigError: naming every key that is unknown, missing or out of bounds.
    """
    sections = {name: dict(value) if isinstance(value, Mapping) else value for name, value in values.items()}
    for override in overrides:
        _apply_override(sections, override)
    try:
        return QuerySpec.model_validate(sections, context={"base_folder": Path.cwd()})
    except ValidationError as error:
        raise ConfigError(f"expected prompts and a teacher that fit:\n{_explain(error)}") from None


def load_teacher(path: Path) -> dict[str, Any]:
    """The section ``teacher`` of a YAML file, in plain types; paths in it are made absolute.

    Raises:
        ConfigError: if there is none.
    """
    values = read_yaml(path).get("teacher")
    if not isinstance(values, dict):
        raise ConfigError(f"expected a section `teacher` in {path}, found none; see configs/openai.yaml")
    for key in ("api_key_file",):
        if isinstance(values.get(key), str):
            values[key] = str(path.resolve().parent / values[key])
    return values


def _refuse_twins(node: yaml.Node | None) -> None:
    """Raise where a mapping says one key twice; YAML would take the last one silently."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_twins(item)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode):
                if key.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} occurs twice", key.start_mark)
                seen.add(key.value)
            _refuse_twins(value)


def _parse(text: str, what: str) -> Any:
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _refuse_twins(node)
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ConfigError(f"{what} is not YAML: {_problem(error)}; correct it") from None
    except ValueError as error:  # a date that is none
        raise ConfigError(f"{what} is not YAML: {error}; put texts that look like dates in quotes") from None
    except RecursionError:
        raise ConfigError(f"{what} is nested too deeply; see `proxykd schema`") from None


def load_model(path: Path, model: type[BaseModel], values: Mapping[str, Any], *, what: str, help_text: str) -> Any:
    """Validate what a YAML file that is no run specification holds.

    Args:
        path: The file; relative paths inside it are relative to its folder.
        model: What it describes.
        values: Its content, as ``read_yaml`` gives it.
        what: For the message, "a stack" say.
        help_text: Where its keys are described, "docs/stacks.md" say.

    Raises:
        ConfigError: naming every key that is unknown, with the nearest known one, missing or out of bounds.
    """
    try:
        return model.model_validate(values, context={"base_folder": path.resolve().parent})
    except ValidationError as error:
        raise ConfigError(f"{path} is not {what}:\n{_explain(error, model, help_text)}") from None


def read_yaml(
    path: Path, *, what: str = "a run specification", example: str = "configs/quickstart.yaml"
) -> dict[str, Any]:
    """The keys and values of a YAML file.

    Args:
        path: The file.
        what: What it is to be, for the message.
        example: A file of that kind.

    Raises:
        ConfigError: if it cannot be read, is not YAML, says a key twice or holds no keys.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"expected {what} at {path}: {error.strerror}; name a YAML file, {example} say") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not YAML: expected UTF-8; save the file as UTF-8") from None
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        found = "nothing" if values is None else f"a {type(values).__name__}"
        raise ConfigError(
            f"expected keys and values in {path}, found {found}; start from {example} or see `proxykd schema`"
        )
    return values


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"expected KEY=VALUE, got {override!r}; for example --set student.steps=100")
    value = _parse(text, f"the value of {key!r}")
    if isinstance(value, str) and (
        key.endswith("path") or (key.endswith("source") and Path(value).expanduser().is_dir())
    ):
        value = str(Path(value).expanduser().resolve())
    *parents, last = key.split(".")
    for parent in parents:
        values = values.setdefault(parent, {})
        if not isinstance(values, dict):
            raise ConfigError(f"cannot set {key!r}: {parent!r} is a value, not a section; set {parent}=VALUE itself")
    values[last] = value


def _problem(error: yaml.YAMLError) -> str:
    # Without the line itself, which may hold a secret.
    told = getattr(error, "problem", None) or "it cannot be read"
    mark, context = getattr(error, "problem_mark", None), getattr(error, "context_mark", None)
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    begins = f", in what begins at line {context.line + 1}, column {context.column + 1}" if context else ""
    if "'\\t'" in told:
        return f"a tab{place}, where YAML takes spaces alone"
    if told == "mapping values are not allowed here":
        return (
            f"a colon that fits nothing{place} (a missing one before it, a wrong indent, a text that lacks its quotes)"
        )
    if told.startswith("expected <block end>"):
        return f"a line does not fit those before it (a wrong indent, a quote left open){place}{begins}"
    if told in _NO_KEYS:
        return f"a key's colon is missing, or a line is indented wrongly,{place} or just before"
    return f"{told}{place}{begins}"


def _explain(error: ValidationError, model: type[BaseModel] = RunSpec, help_text: str = "`proxykd schema`") -> str:
    items = error.errors()
    # A list whose items are all wrong is counted as empty besides, which it is not.
    wrong = {item["loc"][:end] for item in items for end in range(1, len(item["loc"]))}
    told = (item for item in items if not (item["type"] == "too_short" and item["loc"] in wrong))
    return "\n".join(f"  {_place(item)}{_reason(item, model, help_text)}" for item in told)


def _place(item: Mapping[str, Any]) -> str:
    """Where it is; what is said of the whole file names its keys itself."""
    place = ".".join(_keys(item))
    return f"{place}: " if place else ""


def _keys(item: Mapping[str, Any]) -> list[str]:
    """The dotted key as a file has it: after ``teacher``, say, pydantic puts its kind, which is no key."""
    parts = [str(part) for part in item["loc"]]
    is_kind = [
        (before in _UNIONS and (place == 1 or parts[0] == "staging"))
        or (before == "artifact_store" and parts[place] in _STORES)
        or (place > 1 and parts[0] in ("targets", "student") and before in _INNER_UNIONS)
        for place, before in enumerate(parts[:-1], 1)
    ]
    return [part for part, leaves_out in zip(parts, [False, *is_kind], strict=False) if not leaves_out]


def _reason(item: Mapping[str, Any], model: type[BaseModel], help_text: str) -> str:
    if item["type"] == "extra_forbidden":
        *parents, key = _keys(item)
        known = _known_keys(parents, model)
        if key in known:
            return f"no key of this kind, but of another one; {help_text} lists the keys of each"
        close = difflib.get_close_matches(key, sorted(known), n=1)
        return f"unknown key{f'; did you mean {close[0]!r}?' if close else ''}; {help_text} lists all keys"
    if item["type"] == "missing":
        return f"missing; {help_text} describes it"
    if item["type"] == "union_tag_not_found":
        return f"expected its kind, found none; write {{kind: ...}}, {help_text} lists the kinds"
    if item["type"] == "union_tag_invalid":
        return f"expected one of the kinds {item['ctx']['expected_tags']}, got {item['ctx']['tag']!r}"
    if item["type"] == "model_attributes_type":
        return "expected a section with its kind, as in {kind: ...}" + _received(item)
    if item["type"] == "string_pattern_mismatch":
        return f"expected text of the pattern {item['ctx']['pattern']}{_received(item)}; {help_text} describes it"
    return str(item["msg"]).removeprefix("Value error, ") + _received(item)


def _received(item: Mapping[str, Any]) -> str:
    # Sections are not repeated, nor what stands where a secret's name belongs or may hide in an address.
    repeatable = isinstance(item["input"], _SCALARS) and item["loc"][-1] not in _MAY_HOLD_SECRETS
    return f", got {item['input']!r:.200}" if repeatable else ""


def _known_keys(parents: Sequence[str], model: type[BaseModel] = RunSpec) -> set[str]:
    """Keys of the section under ``parents``; of every kind of it where there are several."""
    models: list[type[BaseModel]] = [model]
    for parent in (parent for parent in parents if not parent.isdecimal()):
        fields = [model.model_fields[parent].annotation for model in models if parent in model.model_fields]
        models = [model for field in fields for model in _models_in(field)]
    return {name for model in models for name in model.model_fields}


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type):
        return [annotation] if issubclass(annotation, BaseModel) else []
    return [model for part in get_args(annotation) for model in _models_in(part)]

"""The run specification as a page of documentation, from the models themselves."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from proxykd.config.specification import RunSpec

_INTRODUCTION = """# The run specification

Made by `proxykd schema --markdown > docs/specification.md`; a test keeps it current. One YAML file describes a run.
Unknown keys are refused, every default is a vetted value, and paths are relative to the file. `proxykd schema` prints
the same as a JSON Schema; see [cli.md](cli.md) for how an editor uses it."""
_BOUNDS = {
    "minimum": ">= {}",
    "exclusiveMinimum": "> {}",
    "maximum": "<= {}",
    "exclusiveMaximum": "< {}",
    "minItems": "at least {} of them",
    "pattern": "matches `{}`",
}


def specification_page() -> str:
    """Markdown: one section a model, the whole run first, each with a table of its keys."""
    schema = RunSpec.model_json_schema()
    definitions: dict[str, Any] = schema.get("$defs", {})
    sections = [("RunSpec", schema), *((name, definitions[name]) for name in _reachable(schema, definitions))]
    return "\n\n".join([_INTRODUCTION, *(_section(name, section, definitions) for name, section in sections)]) + "\n"


def _reachable(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> list[str]:
    """Names of the models below ``schema`` in the order in which a reader meets them."""
    found: list[str] = []

    def visit(node: Mapping[str, Any]) -> None:
        for name in _references(node.get("properties", {})):
            if name not in found:
                found.append(name)
                visit(definitions[name])

    visit(schema)
    return found


def _references(node: Any) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"].rpartition("/")[2]
        for key, value in node.items():
            if key != "discriminator":
                yield from _references(value)
    elif isinstance(node, list):
        for item in node:
            yield from _references(item)


def _section(name: str, section: Mapping[str, Any], definitions: Mapping[str, Any]) -> str:
    required = section.get("required", [])
    rows = []
    for key, field in section["properties"].items():
        # A field that is described like its section carries no description of its own.
        shared = {} if "$ref" not in field else definitions[field["$ref"].rpartition("/")[2]]
        text = field.get("description", shared.get("description", ""))
        rows.append(_row(key, {**field, "description": text}, is_required=key in required))
    table = "\n".join(["| key | type | default | meaning |", "|---|---|---|---|", *rows])
    return f"## {name}\n\n{_one_line(section.get('description', ''))}\n\n{table}"


def _row(key: str, field: Mapping[str, Any], *, is_required: bool) -> str:
    default = "required" if is_required else _default(field.get("default"))
    return f"| `{key}` | {_type(field)} | {default} | {_one_line(field['description'])} |"


def _default(value: Any) -> str:
    if isinstance(value, dict):
        return "its own defaults" if len(value) > 4 else f"`{json.dumps(value)}`"
    return "none" if value is None else f"`{json.dumps(value)}`"


def _type(field: Mapping[str, Any]) -> str:
    """The type in words; alternatives joined by "or"."""
    if "$ref" in field:
        name = field["$ref"].rpartition("/")[2]
        return f"[{name}](#{name.lower()})"
    for union in ("anyOf", "oneOf"):
        if union in field:
            return " or ".join(_type(option) for option in field[union])
    if "const" in field:
        return f"`{field['const']}`"
    if "enum" in field:
        return " or ".join(f"`{value}`" for value in field["enum"])
    words = f"list of {_type(field['items'])}" if "items" in field else str(field.get("type", "any"))
    bounds = [text.format(_escaped(field[key])) for key, text in _BOUNDS.items() if key in field]
    return ", ".join([words, *bounds])


def _one_line(text: str) -> str:
    return _escaped(" ".join(text.replace("``", "`").split()))


def _escaped(text: Any) -> str:
    return str(text).replace("|", "\\|")

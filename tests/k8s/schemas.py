"""Strict validation of objects: the official schemas of a Kubernetes version, and those of the custom resources.

A field that the schema does not know is a fault, as with ``kubectl --validate=strict``.
"""

import json
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from tests.k8s.kinds import BY_NAME

VERSION = "1.35.0"
FOLDER = Path(__file__).parents[2] / "k8s" / "schemas"


def faults(found: dict[str, Any]) -> list[str]:
    """What is wrong with an object, by path; empty where nothing is.

    A kind without a schema (of another project's operator, say) passes.
    """
    validator = _validator(str(found.get("apiVersion")), str(found.get("kind")))
    if validator is None:
        return []
    told = []
    for error in validator.iter_errors(found):
        deepest = best_match([error])
        told.append(f"{'.'.join(map(str, deepest.absolute_path)) or '(root)'}: {deepest.message[:300]}")
    return told


@cache
def _validator(api_version: str, kind: str) -> Any:
    group, _, version = api_version.rpartition("/")
    known = BY_NAME.get((api_version, kind))
    if known is not None and (path := FOLDER / f"{group}_{known.plural}.yaml").exists():
        return Draft202012Validator(_custom(path, version))
    stem = f"{group.split('.')[0]}-{version}" if group else version
    try:
        schema = json.loads(_folder().joinpath(f"{kind.lower()}-{stem}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return Draft202012Validator(schema, registry=_definitions() @ (Resource.from_contents(schema) @ Registry()))


def _folder() -> Any:
    return resources.files("kubernetes_validate").joinpath("kubernetes-json-schema", f"v{VERSION}-local-strict")


@cache
def _definitions() -> Any:
    return Resource.from_contents(json.loads(_folder().joinpath("_definitions.json").read_text(encoding="utf-8")))


def _custom(path: Path, version: str) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["spec"]["versions"]
    return _strict(next(one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == version))


def _strict(schema: Any) -> Any:
    """The schema, with unknown fields forbidden wherever it lists fields and does not say that it keeps others."""
    if isinstance(schema, list):
        return [_strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    result = {key: _strict(value) for key, value in schema.items()}
    has_fields = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    if has_fields and not schema.get("x-kubernetes-preserve-unknown-fields"):
        result.setdefault("additionalProperties", False)
    if schema.get("x-kubernetes-int-or-string") is True:
        result.pop("type", None)
    return result

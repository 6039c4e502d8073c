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
from tests.k8s.operator_shapes import SHAPES

SUPPORTED = ("1.33", "1.34", "1.35", "1.36", "1.37")
"""The Kubernetes versions that the manifests are for."""
VERSION = "1.35"
FOLDER = Path(__file__).parents[2] / "k8s" / "schemas"
DEFINITIONS = "https://kubernetes.io/api/_definitions.json#/$defs"
METADATA = {"$ref": f"{DEFINITIONS}/io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"}


def faults(found: dict[str, Any], version: str = VERSION) -> list[str]:
    """What is wrong with an object, by path; empty where nothing is.

    A kind without a schema (of another project's operator, say) passes: ask ``has_schema``.
    """
    validator = _validator(str(found.get("apiVersion")), str(found.get("kind")), version)
    if validator is None:
        return []
    told = []
    for error in validator.iter_errors(found):
        deepest = best_match([error])
        told.append(f"{'.'.join(map(str, deepest.absolute_path)) or '(root)'}: {deepest.message[:300]}")
    return told


def has_schema(found: dict[str, Any], version: str = VERSION) -> bool:
    """Whether ``faults`` can find any."""
    return _validator(str(found.get("apiVersion")), str(found.get("kind")), version) is not None


@cache
def _validator(api_version: str, kind: str, kubernetes: str) -> Any:
    group, _, version = api_version.rpartition("/")
    known = BY_NAME.get((api_version, kind))
    if known is not None and (path := FOLDER / f"{group}_{known.plural}.yaml").exists():
        return _validator_of(_custom(path, version), kubernetes)
    if (api_version, kind) in SHAPES:
        return _validator_of(SHAPES[api_version, kind], kubernetes)
    stem = f"{group.split('.')[0]}-{version}" if group else version
    try:
        schema = json.loads(_folder(kubernetes).joinpath(f"{kind.lower()}-{stem}.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return _validator_of(schema, kubernetes)


def _validator_of(schema: dict[str, Any], kubernetes: str) -> Any:
    return Draft202012Validator(schema, registry=_definitions(kubernetes))


def _folder(kubernetes: str) -> Any:
    return resources.files("kubernetes_validate").joinpath("kubernetes-json-schema", f"v{kubernetes}.0-local-strict")


@cache
def _definitions(kubernetes: str) -> Any:
    file = _folder(kubernetes).joinpath("_definitions.json")
    return Resource.from_contents(json.loads(file.read_text(encoding="utf-8"))) @ Registry()


def _custom(path: Path, version: str) -> Any:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    versions = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)["spec"]["versions"]
    schema = _strict(next(one["schema"]["openAPIV3Schema"] for one in versions if one["name"] == version))
    return {**schema, "properties": {**schema["properties"], "metadata": METADATA}}


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

"""Strict validation of manifests: a field that the schema of a Kubernetes version or custom resource lacks is a fault.

Built-in kinds against the official schemas (package kubernetes-validate), custom ones against k8s/schemas, or where
those have none (Prometheus and External Secrets operators), against the shapes of tests/k8s/operator_shapes.py.
"""

import copy
import json
from collections.abc import Iterator
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from referencing import Registry, Resource

from tests.k8s.operator_shapes import SHAPES
from tests.support.kubectl import Manifest

SUPPORTED = ("1.33", "1.34", "1.35", "1.36", "1.37")
FOLDER = Path(__file__).parents[2] / "k8s" / "schemas"


def faults(found: Manifest, version: str) -> list[str]:
    """What is wrong with an object for a Kubernetes version, by path; empty where nothing is.

    Raises:
        LookupError: if there is no schema for its kind.
    """
    api_version, kind = str(found["apiVersion"]), str(found["kind"])
    group, _, name = api_version.rpartition("/")
    if (group.count(".") and not group.endswith(".k8s.io")) or group.startswith(("kueue.", "jobset.")):
        validator = _custom(api_version, kind)
    else:
        validator = _official(f"{group.split('.')[0]}-{name}" if group else name, kind.lower(), version)
    errors = (best_match([error]) for error in validator.iter_errors(found))
    return [f"{'.'.join(map(str, error.absolute_path)) or '(root)'}: {error.message[:200]}" for error in errors]


@cache
def _official(stem: str, kind: str, version: str) -> Draft202012Validator:
    file = _official_folder(version) / f"{kind}-{stem}.json"
    if not file.is_file():
        raise LookupError(f"Kubernetes {version} has no {kind} of {stem}")
    return Draft202012Validator(json.loads(file.read_text(encoding="utf-8")), registry=_definitions(version))


@cache
def _definitions(version: str) -> "Registry[Any]":
    contents = json.loads((_official_folder(version) / "_definitions.json").read_text(encoding="utf-8"))
    return Resource.from_contents(contents) @ Registry()  # type: ignore[no-any-return]


def _official_folder(version: str) -> Path:
    package = Path(str(resources.files("kubernetes_validate")))
    return package / "kubernetes-json-schema" / f"v{version}.0-local-strict"


@cache
def _custom(api_version: str, kind: str) -> Draft202012Validator:
    if (api_version, kind) in SHAPES:
        return Draft202012Validator(SHAPES[api_version, kind])
    group, _, name = api_version.rpartition("/")
    for file in FOLDER.glob(f"{group}_*.yaml"):
        with file.open(encoding="utf-8") as opened:
            if f"\n    kind: {kind}\n" in opened.read(2000):
                return Draft202012Validator(_schema(file, name))
    raise LookupError(f"no schema of {api_version} {kind} in k8s/schemas")


def _schema(file: Path, version: str) -> dict[str, Any]:
    definition = yaml.load(file.read_text(encoding="utf-8"), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    (found,) = [served for served in definition["spec"]["versions"] if served["name"] == version]
    schema = copy.deepcopy(found["schema"]["openAPIV3Schema"])
    schema["properties"]["metadata"] = METADATA
    for part in _parts(schema):
        if "properties" in part and not part.get("x-kubernetes-preserve-unknown-fields"):
            part.setdefault("additionalProperties", False)
        if part.pop("x-kubernetes-int-or-string", False):
            part.pop("type", None)
    return schema


def _parts(schema: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield schema
    for name in ("properties", "patternProperties"):
        for part in schema.get(name, {}).values():
            yield from _parts(part)
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            yield from _parts(schema[name])


METADATA = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", "maxLength": 253},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}

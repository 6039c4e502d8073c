"""The three kinds of patch that an API server takes: JSON merge, strategic merge and JSON patch."""

import copy
from typing import Any

from tests.k8s.refusals import Refusal

MERGE_KEYS = {
    "containers": "name",
    "initContainers": "name",
    "env": "name",
    "volumes": "name",
    "volumeMounts": "mountPath",
    "ports": "containerPort",
    "conditions": "type",
    "ownerReferences": "uid",
    "imagePullSecrets": "name",
    "secrets": "name",
}
"""List's field -> the field by which a strategic merge finds the entry that it changes; other lists are replaced."""


def merged(target: Any, patch: Any, *, is_strategic: bool) -> Any:
    """``target`` with a patch applied: null removes a field, objects merge, everything else replaces."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    result = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if is_strategic and key.startswith("$setElementOrder/"):
            continue  # what it puts in order stands in the order of the target
        if value is None:
            result.pop(key, None)
        elif is_strategic and key in MERGE_KEYS and isinstance(value, list) and isinstance(result.get(key), list):
            result[key] = _merged_list(result[key], value, MERGE_KEYS[key])
        else:
            result[key] = merged(result.get(key), value, is_strategic=is_strategic)
    return result


def _merged_list(target: list[Any], patch: list[Any], key: str) -> list[Any]:
    result = list(target)
    for entry in patch:
        found = [index for index, old in enumerate(result) if old.get(key) == entry.get(key)]
        if entry.get("$patch") == "delete":
            result = [old for index, old in enumerate(result) if index not in found]
        elif found:
            result[found[0]] = merged(result[found[0]], entry, is_strategic=True)
        else:
            result.append(copy.deepcopy(entry))
    return result


def json_patched(target: Any, operations: list[dict[str, Any]]) -> Any:
    """``target`` with the operations of RFC 6902 applied in turn.

    Raises:
        Refusal: 422 where a path does not exist or a test fails.
    """
    document = copy.deepcopy(target)
    for operation in operations:
        value = operation.get("value")
        if operation["op"] in ("move", "copy"):
            value = copy.deepcopy(_at(document, _pointer(operation["from"])))
        if operation["op"] in ("remove", "move"):
            _write(document, _pointer(operation["from" if operation["op"] == "move" else "path"]), None, "remove")
        if operation["op"] == "test":
            if _at(document, _pointer(operation["path"])) != value:
                raise Refusal(422, "Invalid", f"the test at {operation['path']} failed")
        elif operation["op"] != "remove":
            _write(document, _pointer(operation["path"]), value, "replace" if operation["op"] == "replace" else "add")
    return document


def _pointer(path: str) -> list[str]:
    return [part.replace("~1", "/").replace("~0", "~") for part in path.split("/")[1:]]


def _at(document: Any, parts: list[str]) -> Any:
    for part in parts:
        try:
            document = document[int(part)] if isinstance(document, list) else document[part]
        except (KeyError, IndexError, ValueError, TypeError) as error:
            raise Refusal(422, "Invalid", f"the patch's path /{'/'.join(parts)} does not exist") from error
    return document


def _write(document: Any, parts: list[str], value: Any, how: str) -> None:
    parent, last = _at(document, parts[:-1]), parts[-1]
    if how != "add":
        _at(parent, [last])
    if isinstance(parent, list):
        index = len(parent) if last == "-" else int(last)
        if how == "add":
            parent.insert(index, value)
        elif how == "replace":
            parent[index] = value
        else:
            del parent[index]
    elif how == "remove":
        del parent[last]
    else:
        parent[last] = value

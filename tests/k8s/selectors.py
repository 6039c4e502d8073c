"""Label and field selectors of list and watch calls."""

import re
from collections.abc import Callable
from typing import Any

from tests.k8s.refusals import Refusal

Object = dict[str, Any]
_SET = re.compile(r"^(?P<key>\S+)\s+(?P<word>in|notin)\s*\((?P<values>[^)]*)\)$")
_SIGN = re.compile(r"^(?P<key>[^=!]+?)\s*(?P<sign>==|=|!=)\s*(?P<value>\S*)$")


def by_labels(selector: str) -> Callable[[Object], bool]:
    """Whether an object's labels fulfil a selector such as ``a=b,c in (d,e),!f``; empty selects everything."""
    tests = [_label_test(part.strip()) for part in re.split(r",(?![^(]*\))", selector) if part.strip()]
    return lambda found: all(test(found["metadata"].get("labels") or {}) for test in tests)


def _label_test(part: str) -> Callable[[dict[str, str]], bool]:
    if match := _SET.match(part):
        values = {value.strip() for value in match["values"].split(",")}
        return lambda labels: (labels.get(match["key"]) in values) == (match["word"] == "in")
    if match := _SIGN.match(part):
        return lambda labels: (labels.get(match["key"]) == match["value"]) == (match["sign"] != "!=")
    return lambda labels: (part.lstrip("!") in labels) != part.startswith("!")


def by_fields(selector: str) -> Callable[[Object], bool]:
    """Whether an object's fields, such as ``metadata.name=x`` or ``status.phase!=Failed``, fulfil a selector."""
    tests = []
    for part in filter(None, selector.split(",")):
        match = _SIGN.match(part)
        if match is None:
            raise Refusal(400, "BadRequest", f"field selector {part!r} is not KEY=VALUE or KEY!=VALUE")
        tests.append((match["key"].split("."), match["value"], match["sign"] != "!="))
    return lambda found: all((_field(found, path) == value) == is_equal for path, value, is_equal in tests)


def _field(found: Any, path: list[str]) -> str:
    for part in path:
        found = found.get(part) if isinstance(found, dict) else None
    return "" if found is None else str(found)

"""Every name that holds the user's words becomes a key that MLflow takes, and no two become the same."""

import posixpath
import re
from itertools import combinations
from typing import Any

import pytest

from steps.adapters.mlflow_tracking import named_parameters, named_values
from steps.adapters.tracking_keys import MAX_CHARS, tracking_key

STRANGE = [
    "c++",
    "c+-",
    "my data (v2).jsonl",
    "a//b",
    "a/../b",
    "..",
    "",
    "/a",
    "a/",
    "line\nbreak",
    "é\x00",
    "x" * 300,
]
PLAIN = ["math", "proxy_kd-vs-sft/heldout_nll/task:sums", "two words", "étude", "x" * MAX_CHARS]
ENDS = ["", "/low", "/p_value"]


def is_taken(key: str) -> bool:
    """MLflow's own rule (``mlflow.utils.validation``)."""
    return bool(re.fullmatch(r"[/\w.\- :]+", key)) and posixpath.normpath(key) == key and len(key) <= MAX_CHARS


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("name", STRANGE + PLAIN)
def test_every_key_is_one_that_mlflow_takes(name: str, end: str) -> None:
    assert is_taken(tracking_key(name, end))
    assert tracking_key(name, end).endswith(end)


@pytest.mark.parametrize("name", PLAIN)
def test_a_name_that_mlflow_takes_stays_as_it_is(name: str) -> None:
    assert tracking_key(name) == name


def test_no_two_names_become_one_key() -> None:
    names = [*STRANGE, *PLAIN, "c__", "c+_", "x" * 301, "x" * 299]
    assert all(tracking_key(one) != tracking_key(other) for one, other in combinations(names, 2))


def test_slices_and_tasks_of_any_name_can_be_tracked() -> None:
    ends = {"value": 0.5, "low": 0.25, "high": None}
    made = {"metric": "accuracy/c++", "arm": "proxy_kd", "against": "sft", **ends, "p_value": 0.5, "mde": None}
    slices = ["task=c++", "task=c+-", "source=my data (v2).jsonl", "task=a=b", "task=a:b", None]
    report: dict[str, Any] = {
        "arms": {"sft": {"accuracy/c++": ends}},
        "comparisons": [{**made, "slice": name} for name in slices],
        "teacher": {},
        "facts": {"curves": {"sft/seed-0": [{"step": 1, "accuracy/c++": 0.5}]}},
    }
    keys = [key for key, _, _ in named_values(report)]
    assert all(map(is_taken, keys))
    assert len(set(keys)) == len(keys) == 2 + 3 * len(slices) + 1


def test_a_json_schema_of_any_shape_can_be_tracked() -> None:
    schema = {"$defs": {"A": {"type": "object"}}, "properties": {"a": {"$ref": "#/$defs/A"}, "a.b": 1}}
    named = named_parameters({"teacher": {"json_schema": schema}, "name": "tiny"})
    assert all(map(is_taken, named))
    assert (len(named), named["name"]) == (4, "tiny")

"""The section ``evaluation``: kinds of tasks, and what cannot be meant."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from proxykd.config.evaluation import EvaluationSpec

TASKS: tuple[dict[str, Any], ...] = (
    {"kind": "exact_match", "name": "sums", "answer_pattern": r"(\d+)"},
    {"kind": "multiple_choice", "name": "picks", "file": "/data/picks.jsonl"},
    {"kind": "nll", "name": "texts", "file": "/data/texts.jsonl"},
    {"kind": "pass_at_k", "name": "code", "file": "/data/code.jsonl", "num_samples": 4, "k": [1, 4]},
    {"kind": "harness", "name": "arc_easy", "folder": "/data/tasks"},
    {"kind": "reasoning_gym", "name": "chains", "dataset": "chain_sum", "config": {"max_terms": 3}},
)


def test_every_kind_is_read_and_written_alike() -> None:
    spec = EvaluationSpec.model_validate({"tasks": TASKS})
    assert [task.kind for task in spec.tasks] == [task["kind"] for task in TASKS]
    assert EvaluationSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_files_of_tasks_are_known() -> None:
    spec = EvaluationSpec.model_validate({"tasks": TASKS})
    names = ["picks.jsonl", "texts.jsonl", "code.jsonl"]
    assert [path.name for path in spec.question_files()] == names
    assert [path.name for path in spec.files()] == [*names, "tasks"]
    assert spec.asks_heldout_references
    own = {**TASKS[0], "file": "/data/sums.jsonl"}
    assert not EvaluationSpec.model_validate({"tasks": [own]}).asks_heldout_references


@pytest.mark.parametrize(
    ("task", "expected"),
    [
        ({"name": "sums", "answer_pattern": "(x)"}, "kind"),
        ({**TASKS[3], "k": [5]}, "num_samples of at least the largest k"),
        ({**TASKS[3], "temperature": 0.0, "k": [1]}, "num_samples=1 with temperature=0"),
        ({**TASKS[0], "name": "a/b"}, "pattern"),
        ({**TASKS[0], "choices_field": "x"}, "Extra inputs"),
    ],
)
def test_task_that_cannot_be_meant_is_refused(task: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValidationError, match=expected):
        EvaluationSpec.model_validate({"tasks": [task]})


def test_two_tasks_of_one_name_are_refused() -> None:
    with pytest.raises(ValidationError, match="distinct names"):
        EvaluationSpec.model_validate({"tasks": [TASKS[0], {**TASKS[1], "name": "sums"}]})


def test_files_are_relative_to_the_specification() -> None:
    context = {"base_folder": Path("/base")}
    spec = EvaluationSpec.model_validate({"tasks": [{**TASKS[1], "file": "picks.jsonl"}]}, context=context)
    assert spec.question_files() == (Path("/base/picks.jsonl"),)

"""Questions that the validation could not know, looked for in what taught."""

import copy
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxykd.artifacts import SplitSet, ValidatedSet
from proxykd.config import GateSpec, RunSpec
from proxykd.data.splits import TRAINING_SIDES, select_rows
from proxykd.evaluation.contamination import measure_contamination
from proxykd.evaluation.decision import decide
from proxykd.evaluation.scoring import ANSWERS
from proxykd.records import Side
from tests.evaluation.conftest import FACTS, SPECIFICATION

NEW = "Which of the planets that ancient astronomers of Babylon described in their tables moves fastest across the sky?"


@pytest.fixture
def run() -> RunSpec:
    """A hub's task, a generator's, and one over a file, which the validation guards."""
    sections = copy.deepcopy(SPECIFICATION)
    sections["evaluation"]["tasks"] = [
        {"kind": "harness", "name": "arc_easy"},
        {"kind": "reasoning_gym", "name": "sums", "dataset": "chain_sum"},
        {"kind": "nll", "name": "texts", "file": "texts.jsonl"},
    ]
    return RunSpec.model_validate(sections)


@pytest.fixture
def taught(validated: ValidatedSet, splits: SplitSet) -> list[Any]:
    return list(select_rows(validated, splits, TRAINING_SIDES))


def measure(
    questions: list[tuple[str, str]], validated: ValidatedSet, splits: SplitSet, run: RunSpec, folder: Path
) -> dict[str, Any]:
    """What is found after two models have been asked some (task, question)."""
    rows = [
        {
            "arm": arm,
            "seed": 0,
            "task": task,
            "prompt_id": str(idx),
            "sample_idx": 0,
            "question": text,
            "reference": "7",
        }
        for arm in ("sft", "proxy_kd")
        for idx, (task, text) in enumerate(questions)
    ]
    pq.write_table(pa.Table.from_pylist(rows, schema=ANSWERS), folder / "answers.parquet")
    return measure_contamination(folder / "answers.parquet", validated, splits, run, scratch=folder)


def test_questions_that_were_trained_on_are_found_and_others_are_not(
    taught: list[Any], validated: ValidatedSet, splits: SplitSet, run: RunSpec, tmp_path: Path
) -> None:
    leaked = taught[0]
    text = f"Question: {leaked.messages[-1].content} Answer:"
    found = measure([("arc_easy", text), ("sums", NEW)], validated, splits, run, tmp_path)
    assert found["tasks"] == ["arc_easy", "sums"]
    assert (found["num_questions"], found["measured"]) == (2, len(taught))
    same = [row for row in taught if row.prompt_id == leaked.prompt_id]
    assert len(same) <= found["broken"] < len(taught)
    assert "question 0 of arc_easy" in found["examples"][0]
    assert measure([("sums", NEW)], validated, splits, run, tmp_path)["broken"] == 0


def test_a_short_question_is_found_word_for_word(
    taught: list[Any], validated: ValidatedSet, splits: SplitSet, run: RunSpec, tmp_path: Path
) -> None:
    longer = run.model_copy(update={"validation": run.validation.model_copy(update={"overlap_ngram": 50})})
    text = taught[0].messages[-1].content
    found = measure([("sums", f"  {text.upper()}\n")], validated, splits, longer, tmp_path)
    assert found["broken"] == sum(row.messages[-1].content == text for row in taught) > 0


def test_questions_of_files_and_held_out_prompts_are_left_to_the_validation(
    validated: ValidatedSet, splits: SplitSet, run: RunSpec, tmp_path: Path
) -> None:
    text = next(select_rows(validated, splits, {Side.HELDOUT})).messages[-1].content
    assert measure([("texts", text), ("sums", NEW)], validated, splits, run, tmp_path)["num_questions"] == 1
    own = RunSpec.model_validate(SPECIFICATION)
    assert measure([("sums", text)], validated, splits, own, tmp_path) == {}


@pytest.mark.parametrize(("broken", "passed"), [(0, True), (4, True), (6, False)])
def test_the_gate_adds_them_to_what_the_validation_found(broken: int, passed: bool) -> None:
    asked = {"tasks": ["arc_easy"], "num_questions": 9, "measured": 100, "broken": broken}
    facts = {**FACTS, "contamination": asked}  # 1 of 60 rows overlap already: 1.7 %
    policy = GateSpec.model_validate({"max_contamination": 0.06})
    checks = {check.name: check for check in decide({"facts": facts}, policy, None).checks}
    assert checks["contamination"].passed is passed
    assert "arc_easy" in checks["contamination"].text

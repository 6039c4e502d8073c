"""What the steps read beside artifacts is what the run was submitted with: an image may hold older files."""

from pathlib import Path
from typing import Any

import pytest

from proxykd.data.accepted import hash_files
from proxykd.exceptions import InputError
from proxykd.own_code import code_hash
from steps.evaluate_student import SECTIONS as EVALUATED
from steps.evaluate_student import evaluate_student
from steps.settings import settings_for
from steps.validate_data import SECTIONS as VALIDATED
from steps.validate_data import validate_data

ARTIFACTS = {
    validate_data: ("prompts", "completions"),
    evaluate_student: ("completions", "validation", "validated", "splits", "proxy", "targets", "sft", "student"),
}


@pytest.fixture
def questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that a task and the validation read, and a workspace that no step may write into."""
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))
    file = tmp_path / "questions.jsonl"
    file.write_text('{"prompt": "How much is 1?", "reference": "1"}\n')
    return file


@pytest.mark.parametrize(("step", "sections"), [(validate_data, VALIDATED), (evaluate_student, EVALUATED)])
def test_files_that_differ_from_the_submitted_ones_are_not_used(
    make_run: Any, questions: Path, step: Any, sections: tuple[str, ...]
) -> None:
    task = {"kind": "exact_match", "name": "questions", "file": str(questions), "answer_pattern": "([0-9]+)"}
    run = make_run(evaluation={"tasks": [task]}).with_questions_guarded()
    told: dict[str, Any] = {**dict.fromkeys(ARTIFACTS[step]), "settings": settings_for(run, *sections), "models": {}}
    told |= {"files": hash_files([questions]), "code": code_hash(step.entrypoint.__module__)}
    told |= {"tokenizer": None} if step is validate_data else {}
    submitted = questions.read_text()
    questions.write_text('{"prompt": "How much is 2?", "reference": "2"}\n')
    with pytest.raises(InputError, match=r"that the run was submitted with .* found others"):
        step.entrypoint(**told)
    assert not (questions.parent / "home").exists()
    questions.write_text(submitted)
    with pytest.raises(AttributeError, match="NoneType"):  # it has gone on to the artifacts
        step.entrypoint(**told)

"""``proxykd correct`` as a user types it, against a real endpoint."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from proxykd.artifacts import TrajectorySet
from proxykd.cli import app
from proxykd.config import DataSplitSpec
from proxykd.data.splits import side_of
from proxykd.exceptions import InputError
from proxykd.records import Message, Side, prompt_id_of

QUESTIONS = [f"What is {number} + {number}?" for number in range(6)]
Correct = Callable[..., Result]


@pytest.fixture
def correct(endpoint: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Correct:
    """Runs the command on attempts of which the first ``num_wrong`` are wrong."""
    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("PROXYKD_PROGRESS", "off")
    rows = [{"prompt": question, "reference": str(2 * number)} for number, question in enumerate(QUESTIONS)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    specification = {
        "name": "run",
        "prompts": {"kind": "jsonl", "path": "rows.jsonl", "reference_field": "reference"},
        "teacher": {"kind": "openai", "base_url": endpoint.url, "model": "gpt"},
        "verifier": {"kind": "numeric"},
        "corrections": {"rounds": 1, "improve_ratio": 1.0},
        "split": {"heldout": 0.0, "development": 0.0},
        "proxy": {"model": {"source": "embedded:proxy"}},
        "student": {"model": {"source": "embedded:student"}},
        "registry": {"model_name": "student"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(specification))
    right = {question: str(2 * number) for number, question in enumerate(QUESTIONS)}

    def answer(request: str) -> tuple[int, Any]:
        question = next(question for question in QUESTIONS if question in request)
        return 200, endpoint.chat("too many" if "Do not write" in request else f"It is {right[question]}")

    endpoint.answer = answer

    def correct(num_wrong: int = 2, *, overrides: Sequence[str] = ()) -> Result:
        attempts = [
            {
                "prompt_id": prompt_id_of([Message("user", question)]),
                "text": f"It is {2 * number + (number < num_wrong)}",
            }
            for number, question in enumerate(QUESTIONS)
        ]
        (tmp_path / "attempts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in attempts))
        arguments = [str(tmp_path / name) for name in ("run.yaml", "attempts.jsonl", "out")]
        changes = [part for override in overrides for part in ("--set", override)]
        return CliRunner().invoke(app, ["correct", *arguments, *changes])

    return correct


def test_wrong_attempts_become_texts_with_weights(correct: Correct, endpoint: Any, tmp_path: Path) -> None:
    result = correct()
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert summary["ends"] == {"right": 4, "improved": 2, "wrong": 0, "unanswered": 0}
    assert (summary["kept"], summary["requests"]) == (4, 4)
    TrajectorySet(tmp_path / "out" / "trajectories").verify()
    lines = [json.loads(line) for line in (tmp_path / "out" / "trajectories.jsonl").read_text().splitlines()]
    assert len(lines) == 4
    first = lines[0]
    assert first["messages"] == [{"role": "user", "content": QUESTIONS[0]}]
    assert first["completion"] == "It is 1\n\nFeedback: too many\n\nImproved answer: It is 0"
    assert first["spans"] == [[0, 7, 0.0], [7, 27, 1.5], [27, 53, 1.5]]
    assert {path.name for path in tmp_path.iterdir()} == {"rows.jsonl", "run.yaml", "attempts.jsonl", "out", "home"}


def test_what_was_cut_off_goes_on_and_pays_nothing_twice(correct: Correct, endpoint: Any, tmp_path: Path) -> None:
    answer = endpoint.answer
    endpoint.answer = lambda request: (401, {}) if "Write the improved answer" in request else answer(request)
    assert correct().exception is not None
    assert not (tmp_path / "out").exists()
    paid = endpoint.asked.total() - sum("Write the improved answer" in request for request in endpoint.asked)
    assert paid == 2
    endpoint.answer = answer
    endpoint.asked.clear()
    assert correct().exit_code == 0
    assert endpoint.asked.total() == 2


def test_what_the_student_is_examined_on_is_neither_paid_for_nor_taught(correct: Correct, endpoint: Any) -> None:
    heldout = 0.4
    split = DataSplitSpec(heldout=heldout, development=0.0)
    ids = [prompt_id_of([Message("user", question)]) for question in QUESTIONS]
    taught = [question for question, id_ in zip(QUESTIONS, ids, strict=True) if side_of(id_, split) is not Side.HELDOUT]
    assert 0 < len(taught) < len(QUESTIONS)
    result = correct(num_wrong=6, overrides=[f"split.heldout={heldout}"])
    assert json.loads(result.stdout)["attempts"] == len(taught)
    assert {question for question in QUESTIONS if any(question in asked for asked in endpoint.asked)} == set(taught)


def test_an_existing_folder_is_left_alone(correct: Correct, endpoint: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    result = correct()
    assert isinstance(result.exception, InputError)
    assert "exists" in str(result.exception)
    assert not endpoint.asked

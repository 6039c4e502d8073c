"""When answers are removed: once what was made of them is stored, or nobody has asked for a month; never before."""

import os
import time
from pathlib import Path

import pytest

from proxykd.evaluation.generation_journal import ANSWERS, KEPT_S, AnswerJournal, mark_answers, remove_answers


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """A folder of journals below a folder of work."""
    folder = tmp_path / "work" / ANSWERS
    with AnswerJournal(folder / "model.jsonl") as journal:
        journal.put([("key", 1)])
    return folder


def test_answers_stay_until_what_was_made_of_them_comes_back(answers: Path, tmp_path: Path) -> None:
    remove_answers(tmp_path, made="a")
    assert answers.exists(), "the work is under way"
    mark_answers(answers, made="a")
    remove_answers(tmp_path, made="b")
    assert answers.exists(), "another artifact was stored"
    remove_answers(tmp_path, made="a")
    assert not answers.parent.exists()
    remove_answers(tmp_path, made="a")


def test_work_that_began_again_keeps_its_answers(answers: Path, tmp_path: Path) -> None:
    mark_answers(answers, made="a")
    mark_answers(answers, made=None)
    remove_answers(tmp_path, made="a")
    assert answers.exists()


def test_other_files_of_the_work_are_left_alone(answers: Path, tmp_path: Path) -> None:
    (answers.parent / "seed-0.safetensors").write_bytes(b"x")
    mark_answers(answers, made="a")
    remove_answers(tmp_path, made="a")
    assert [path.name for path in answers.parent.iterdir()] == ["seed-0.safetensors"]


def test_answers_that_nobody_asks_for_are_removed_after_a_month(answers: Path, tmp_path: Path) -> None:
    journal = answers / "model.jsonl"
    for age, is_kept in ((KEPT_S - 3600, True), (KEPT_S + 3600, False)):
        for path in (journal, answers):
            os.utime(path, (time.time() - age,) * 2)
        remove_answers(tmp_path, made="other")
        assert journal.exists() is is_kept


def test_nothing_is_marked_where_nothing_was_asked(tmp_path: Path) -> None:
    mark_answers(tmp_path / "none", made="a")
    mark_answers(tmp_path / "none", made=None)
    assert not (tmp_path / "none").exists()

"""Templates of requests: what must be there, what may, and that what is put in is not read again."""

from pathlib import Path

import pytest

from proxykd.exceptions import ConfigError
from proxykd.records import Message
from proxykd.teacher.wordings import question_text, read_template


def test_the_users_file_stands_in_for_the_packages(tmp_path: Path) -> None:
    path = tmp_path / "mine.txt"
    path.write_text("Cost: 3 $$. $question / $answer_1\n", encoding="utf-8")
    template = read_template(
        "proxykd.evaluation", "graded", path, key="evaluation.judge.template", needs={"question", "answer_1"}
    )
    assert template.substitute(question="$answer_1?", answer_1="four") == "Cost: 3 $. $answer_1? / four"


@pytest.mark.parametrize(
    ("text", "word"),
    [("$question", "answer_1"), ("$question $answer_1 $else", "else"), ("$question $answer_1 $", "$$")],
)
def test_a_file_without_its_places_is_refused(tmp_path: Path, text: str, word: str) -> None:
    path = tmp_path / "mine.txt"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"mine\.txt") as refused:
        read_template("proxykd.evaluation", "graded", path, key="judge.template", needs={"question", "answer_1"})
    assert word in str(refused.value)


def test_a_file_that_is_not_there_is_named_with_its_key(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"judge\.template.*absent\.txt"):
        read_template("proxykd.evaluation", "graded", tmp_path / "absent.txt", key="judge.template", needs=())


def test_a_conversation_is_written_out_without_its_system_message() -> None:
    one = (Message("system", "Be brief."), Message("user", "Why?"))
    assert question_text(one) == "Why?"
    assert question_text((*one, Message("assistant", "So."), Message("user", "And?"))) == (
        "User: Why?\n\nAssistant: So.\n\nUser: And?"
    )

"""The engine alone: questions in, answers out, by a function and by a command, and on again after a stop."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from proxykd.exceptions import BudgetError, ConfigError, InputError, TeacherError
from proxykd.querying import SCHEMA, query
from tests.support.command import Ended


def _read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def teacher(endpoint: Any) -> dict[str, Any]:
    """A section that points at the scripted endpoint."""
    price = {"input_usd_per_million": 1e5, "output_usd_per_million": 2e5}
    return {"kind": "openai", "base_url": endpoint.url, "model": "gpt", "price": price}


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    """Three questions in a file."""
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"question {n}"}) + "\n" for n in range(3)))
    return path


def test_a_few_lines_ask_and_answer(teacher: dict[str, Any], questions: Path, tmp_path: Path, endpoint: Any) -> None:
    output, journal = tmp_path / "answers.jsonl", tmp_path / "journal.sqlite"
    for _ in range(2):
        summary = query(questions, teacher, output=output, journal=journal)
        assert (summary.num_prompts, summary.outcomes["ok"], summary.prompt_tokens) == (3, 3, 30)
        assert summary.cost_usd == pytest.approx(3 * (10 * 0.1 + 5 * 0.2))
        rows = _read(output)
        assert [row["text"] for row in rows] == [f"QUESTION {n}" for n in range(3)]
        assert [row["messages"][-1]["content"] for row in rows] == [f"question {n}" for n in range(3)]
        assert set(rows[0]) == set(SCHEMA.names)
    assert endpoint.asked.total() == 3


@pytest.mark.parametrize("shape", ["texts", "messages", "section", "csv", "tsv"])
def test_questions_come_in_any_shape(
    teacher: dict[str, Any], questions: Path, tmp_path: Path, endpoint: Any, shape: str
) -> None:
    for ending, separator in (("csv", ","), ("tsv", "\t")):
        content = "".join(f"question {n}{separator}x\n" for n in range(3))
        (tmp_path / f"questions.{ending}").write_text(f"prompt{separator}other\n{content}")
    system = {"role": "system", "content": "Be brief."}
    prompts: Any = {
        "texts": [f"question {n}" for n in range(3)],
        "messages": [[system, {"role": "user", "content": f"question {n}"}] for n in range(3)],
        "section": {"kind": "jsonl", "path": str(questions), "system": "Be brief."},
        "csv": tmp_path / "questions.csv",
        "tsv": str(tmp_path / "questions.tsv"),
    }[shape]
    output = tmp_path / "answers.parquet"
    query(prompts, teacher, output=output, journal=tmp_path / "j.sqlite")
    rows = pq.read_table(output).to_pylist()
    assert sorted(row["text"] for row in rows) == [f"QUESTION {n}" for n in range(3)]
    assert all((row["messages"][0] == system) == (shape in ("messages", "section")) for row in rows)


def test_at_a_cap_the_file_holds_what_there_is_and_a_raised_cap_goes_on(
    teacher: dict[str, Any], questions: Path, tmp_path: Path, endpoint: Any
) -> None:
    output, journal = tmp_path / "answers.jsonl", tmp_path / "journal.sqlite"
    output.write_text("")
    with pytest.raises(BudgetError, match=r"1 of 3 requests .*; what there is, 2 ok, 1 failed, is in .*partial\.jsonl"):
        query(questions, {**teacher, "budget": {"requests": 2}}, output=output, journal=journal)
    assert output.read_text() == ""
    partial = tmp_path / "answers.partial.jsonl"
    assert sorted(row["outcome"] for row in _read(partial)) == ["failed", "ok", "ok"]
    query(questions, {**teacher, "budget": {"requests": 3}}, output=output, journal=journal)
    assert [row["outcome"] for row in _read(output)] == ["ok"] * 3
    assert endpoint.asked.total() == 3
    assert not partial.exists()


def test_where_nothing_was_answered_nothing_is_written(
    teacher: dict[str, Any], questions: Path, tmp_path: Path, endpoint: Any
) -> None:
    output, journal = tmp_path / "answers.jsonl", tmp_path / "journal.sqlite"
    query(questions, teacher, output=output, journal=journal)
    before, endpoint.answer = output.read_bytes(), lambda _: (404, {"error": {"message": "no such model"}})
    with pytest.raises(TeacherError, match="no such model"):
        query(questions, {**teacher, "model": "wrong"}, output=output, journal=journal)
    assert output.read_bytes() == before
    assert list(tmp_path.glob("*.partial.*")) == []


def test_a_file_of_something_else_is_never_replaced(
    teacher: dict[str, Any], questions: Path, tmp_path: Path, endpoint: Any
) -> None:
    before = questions.read_bytes()
    with pytest.raises(InputError, match="found another one; name another output"):
        query(questions, teacher, output=questions, journal=tmp_path / "j.sqlite")
    with pytest.raises(InputError, match=r"ends in \.jsonl or \.parquet"):
        query(questions, teacher, output=tmp_path / "answers.txt", journal=tmp_path / "j.sqlite")
    with pytest.raises(InputError, match="found none; make it"):
        query(questions, teacher, output=tmp_path / "no" / "answers.jsonl", journal=tmp_path / "j.sqlite")
    assert questions.read_bytes() == before
    assert endpoint.asked.total() == 0


def test_what_cannot_be_used_is_told(questions: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"teacher\.modle: unknown key; did you mean 'model'"):
        query(questions, {"kind": "openai", "modle": "gpt"}, output=tmp_path / "a.jsonl")
    with pytest.raises(InputError, match=r"\.jsonl, \.csv, \.tsv, \.parquet, got 'q\.txt'"):
        query(tmp_path / "q.txt", {"kind": "openai", "model": "gpt"}, output=tmp_path / "a.jsonl")


def test_the_command(
    proxykd: Callable[..., Ended],
    teacher: dict[str, Any],
    questions: Path,
    tmp_path: Path,
    endpoint: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "key-of-the-test")
    output = tmp_path / "answers.jsonl"
    arguments = ["query", questions, "--teacher", endpoint.url, "--model", "gpt", "--output", output, "--quiet"]
    more = ["--api-key", "TEACHER_KEY", "--set", "teacher.sampling.num_samples=2", "--usd", "0.01"]
    ended = proxykd(*map(str, arguments), *more, "--set", f"teacher.price={json.dumps(teacher['price'])}")
    assert ended.status == 2
    assert "teacher.budget.usd=0.01 (0.0000 spent) allows no further call" in ended.err
    ended = proxykd(*map(str, arguments), "--api-key", "${TEACHER_KEY}", "--set", "teacher.sampling.num_samples=2")
    assert (ended.status, len(_read(output))) == (0, 6)
    assert "answers.jsonl: 6 ok" in ended.out
    assert endpoint.secrets == {"Bearer key-of-the-test"}
    assert "key-of-the-test" not in ended.out + ended.err + output.read_text()


def test_the_command_takes_a_teacher_from_a_file(
    proxykd: Callable[..., Ended], teacher: dict[str, Any], questions: Path, tmp_path: Path
) -> None:
    (tmp_path / "teacher.yaml").write_text(json.dumps({"teacher": teacher}))
    output = str(tmp_path / "answers.parquet")
    ended = proxykd("query", str(questions), "--teacher", str(tmp_path / "teacher.yaml"), "-o", output, "-q")
    assert ended.status == 0, ended.err
    assert pq.read_table(output).num_rows == 3
    (tmp_path / "none.yaml").write_text("name: x")
    ended = proxykd("query", str(questions), "--teacher", str(tmp_path / "none.yaml"), "-o", output)
    assert (ended.status, "expected a section `teacher`" in ended.err) == (2, True)


def test_the_journal_is_looked_at_checked_and_carried_elsewhere(
    proxykd: Callable[..., Ended], teacher: dict[str, Any], questions: Path, tmp_path: Path
) -> None:
    journal, export = str(tmp_path / "journal.sqlite"), str(tmp_path / "export.jsonl")
    ended = proxykd("journal", "list", "--journal", journal)
    assert (ended.status, "found none; name one with --journal" in ended.err) == (2, True)
    query(questions, teacher, output=tmp_path / "answers.jsonl", journal=journal)
    listed = proxykd("journal", "list", "--journal", journal, "--limit", "2")
    assert listed.status == 0
    assert "3  ok  gpt-x" in listed.out
    assert listed.out.count("QUESTION") == 2
    verified = proxykd("journal", "verify", "--journal", journal)
    assert (verified.status, "3 rows, 3 final answers that are intact" in verified.out) == (0, True)
    assert proxykd("journal", "export", export, "--journal", journal).status == 0
    other = str(tmp_path / "other.sqlite")
    assert "3 of 3 rows were new" in proxykd("journal", "import", export, "--journal", other).out
    assert proxykd("journal", "verify", "--journal", other).out == verified.out
    assert proxykd("journal", "compact", "--journal", other).status == 0
    assert "expected a journal (.sqlite) or an export" in proxykd("journal", "import", str(questions)[:-1]).err


def test_a_damaged_row_is_told_dropped_and_asked_again(
    proxykd: Callable[..., Ended], teacher: dict[str, Any], questions: Path, tmp_path: Path, endpoint: Any
) -> None:
    from proxykd.teacher.journal_sql import connect

    journal = tmp_path / "journal.sqlite"
    query(questions, teacher, output=tmp_path / "answers.jsonl", journal=journal)
    connection = connect(journal)
    # Answers come in any order.
    ((row,),) = connection.execute("SELECT rowid FROM answers WHERE reply LIKE '%QUESTION 1%'").fetchall()
    connection.execute("UPDATE answers SET reply = replace(reply, '\"QUESTION 1', 'QUESTION 7')")
    connection.close()
    listed = proxykd("journal", "list", "--journal", str(journal))
    assert (listed.status, "2  ok  gpt-x" in listed.out) == (0, True)
    assert "1  damaged  see `proxykd journal verify`" in listed.out
    assert "QUESTION 7" not in listed.out
    ended = proxykd("journal", "verify", "--journal", str(journal))
    assert (ended.status, f"damaged: row {row}" in ended.out) == (2, True)
    assert "--drop-damaged" in ended.err
    dropped = proxykd("journal", "verify", "--journal", str(journal), "--drop-damaged")
    assert (dropped.status, "1 damaged rows removed" in dropped.out) == (0, True)
    query(questions, teacher, output=tmp_path / "answers.jsonl", journal=journal)
    assert [row["text"] for row in _read(tmp_path / "answers.jsonl")] == [f"QUESTION {n}" for n in range(3)]
    assert endpoint.asked.total() == 4

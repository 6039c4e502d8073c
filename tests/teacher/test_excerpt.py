"""The root of a run's journal entries: the same while they are, another when one byte is."""

import sqlite3
from pathlib import Path

import pytest

from proxykd.artifacts import CompletionSet, read_json, seal
from proxykd.exceptions import ArtifactError
from proxykd.records import Completion, Outcome, canonical_json, hash_text
from proxykd.teacher.archive import export, import_rows
from proxykd.teacher.entries import Entry
from proxykd.teacher.excerpt import Excerpt, read_excerpt, write_excerpt
from proxykd.teacher.journal import Journal
from proxykd.teacher.replies import Reply


def _asked(number: int) -> str:
    return canonical_json({"request": {"q": number}, "sample_idx": 0})


def _journal(path: Path, numbers: range) -> Path:
    with Journal(path) as journal:
        journal.commit(Entry(hash_text(_asked(n)), Reply(text=f"é {n}"), True, _asked(n)) for n in numbers)
    return path


def _completions(folder: Path, numbers: list[int], *, stage_of: int = 10**9) -> CompletionSet:
    found = CompletionSet(folder)
    found.write(
        Completion(
            f"{n:016x}", 0, Outcome.OK, "", "", "stop", 1, 1, 0.0, "m", hash_text(_asked(n)), stage=n // stage_of
        )
        for n in numbers
    )
    seal(found)
    return found


@pytest.fixture
def journal(tmp_path: Path) -> Path:
    return _journal(tmp_path / "journal.sqlite", range(30))


def _damage(path: Path, column: str, value: str) -> None:
    with sqlite3.connect(path) as database:
        database.execute(f"UPDATE answers SET {column} = {value} WHERE seq = 3")


def test_the_root_is_that_of_the_answers_and_not_of_the_file(journal: Path, tmp_path: Path) -> None:
    completions = _completions(tmp_path / "completions", list(range(5, 25)))
    root = read_excerpt(completions, journal).root
    with Journal(journal) as source:
        export(source, tmp_path / "rows.jsonl")
    with Journal(tmp_path / "copy.sqlite") as copy:
        import_rows(copy, tmp_path / "rows.jsonl")
    _journal(tmp_path / "copy.sqlite", range(100, 120))  # of another run
    assert read_excerpt(completions, tmp_path / "copy.sqlite").root == root
    with Journal(journal) as source:
        source.compact()
    assert read_excerpt(completions, journal).root == root
    other = _completions(tmp_path / "other", [*range(5, 24), 26])
    assert read_excerpt(other, journal).root != root


@pytest.mark.parametrize(
    ("column", "value"),
    [("reply", "replace(reply, '2', '3')"), ("request", "request || ' '"), ("answered_at", "answered_at + 1")],
)
def test_a_change_of_one_byte_changes_the_root_and_names_the_row(
    journal: Path, tmp_path: Path, column: str, value: str
) -> None:
    completions = _completions(tmp_path / "completions", list(range(30)))
    before = read_excerpt(completions, journal)
    assert (before.damaged, before.num_entries, before.num_missing) == ([], 30, 0)
    _damage(journal, column, value)
    after = read_excerpt(completions, journal)
    assert after.root != before.root
    assert after.damaged == [3]


def test_an_entry_that_is_gone_is_counted_and_changes_the_root(journal: Path, tmp_path: Path) -> None:
    completions = _completions(tmp_path / "completions", list(range(30)))
    before = read_excerpt(completions, journal).root
    with sqlite3.connect(journal) as database:
        database.execute("DELETE FROM answers WHERE seq = 3")
    after = read_excerpt(completions, journal)
    assert after.root != before
    assert (after.num_entries, after.num_missing) == (29, 1)


def test_every_teacher_has_its_dates(journal: Path, tmp_path: Path) -> None:
    completions = _completions(tmp_path / "completions", list(range(30)), stage_of=20)
    _damage(journal, "answered_at", "86400.0")
    sealed = write_excerpt(completions, journal, output=tmp_path / "excerpt")
    first, second = read_json(sealed.path / "journal.json")["stages"]
    assert (first["stage"], first["first_answer_at"]) == (0, "1970-01-02T00:00:00+00:00")
    assert second["first_answer_at"] <= second["last_answer_at"]
    assert sealed.manifest["made_from"] == {"completions": completions.hash}


def test_recorded_texts_have_no_root_and_a_missing_journal_is_said(tmp_path: Path) -> None:
    completions = _completions(tmp_path / "completions", [1])
    sealed = write_excerpt(completions, None, output=tmp_path / "excerpt")
    assert read_json(sealed.path / "journal.json") == {"root": None}
    with pytest.raises(ArtifactError, match="found none"):
        read_excerpt(completions, tmp_path / "none.sqlite")


def test_an_empty_excerpt_tells_nothing() -> None:
    assert Excerpt(root="0" * 64).to_json()["stages"] == []

"""What leaves a journal and comes back is the same, and what another tool wrote answers a run's own requests."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxykd.config.specification import RunSpec
from proxykd.exceptions import ArtifactError, InputError
from proxykd.records import canonical_json, hash_text
from proxykd.teacher.archive import export, import_rows, verify
from proxykd.teacher.entries import Entry
from proxykd.teacher.foreign import import_foreign, parse_answer
from proxykd.teacher.journal import Journal
from proxykd.teacher.journal_sql import connect
from proxykd.teacher.live import LiveTeacher
from proxykd.teacher.query import collect_prompts, query_teacher
from proxykd.teacher.replies import Reply


def _entry(number: int, *, is_final: bool = True, text: str = "é\u2028 x") -> Entry:
    asked = canonical_json({"request": {"q": number, "temperature": 0.7}, "sample_idx": 0})
    return Entry(hash_text(asked), Reply(text=text, prompt_tokens=number), is_final, asked)


def _journal(path: Path, numbers: range, **how: Any) -> Path:
    with Journal(path) as journal:
        journal.commit(_entry(number, **how) for number in numbers)
    return path


def _root(path: Path) -> str:
    with Journal(path) as journal:
        found = verify(journal)
    assert found.is_intact
    return found.root


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.parquet"])
def test_what_is_exported_and_imported_is_the_same(tmp_path: Path, name: str) -> None:
    source = _journal(tmp_path / "a.sqlite", range(30))
    _journal(source, range(25, 40), is_final=False, text="")
    with Journal(source) as journal:
        assert export(journal, tmp_path / name) == 40
        with pytest.raises(InputError, match="exists; name another"):
            export(journal, tmp_path / name)
        with pytest.raises(InputError, match="found none; make it"):
            export(journal, tmp_path / "no" / name)
    with Journal(tmp_path / "b.sqlite") as journal:
        assert import_rows(journal, tmp_path / name) == (40, 40)
        assert import_rows(journal, tmp_path / name)[0] == 40
        assert [row[1:] for row in journal.rows()][:30] == [row[1:] for row in Journal(source).rows()][:30]
    assert _root(tmp_path / "b.sqlite") == _root(source)


@pytest.mark.parametrize("num_rows", [1, 63, 64, 65, 128])
def test_answers_that_repeat_in_a_file_are_added_once(tmp_path: Path, num_rows: int) -> None:
    with Journal(_journal(tmp_path / "a.sqlite", range(num_rows))) as journal:
        export(journal, tmp_path / "rows.jsonl")
    text = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    (tmp_path / "both.jsonl").write_text(text + text, encoding="utf-8")
    with Journal(tmp_path / "b.sqlite") as journal:
        assert import_rows(journal, tmp_path / "both.jsonl") == (2 * num_rows, num_rows)
    assert _root(tmp_path / "b.sqlite") == _root(tmp_path / "a.sqlite")


def test_shards_merge_to_the_same_in_any_order(tmp_path: Path) -> None:
    shards = [_journal(tmp_path / f"{start}.sqlite", range(start, start + 20)) for start in (0, 15, 40)]
    for name, order in (("there", shards), ("back", shards[::-1])):
        with Journal(tmp_path / f"{name}.sqlite") as journal:
            assert sum(import_rows(journal, shard)[1] for shard in order) == 55
            assert sum(import_rows(journal, shard)[1] for shard in order) == 0
    keys = [{row.key for row in Journal(tmp_path / f"{name}.sqlite").rows()} for name in ("there", "back")]
    assert keys[0] == keys[1] == {_entry(number).key for number in (*range(35), *range(40, 60))}


def test_the_root_tells_answers_apart_and_not_their_order(tmp_path: Path) -> None:
    one = _journal(tmp_path / "one.sqlite", range(10))
    with Journal(one) as journal:
        rows = list(journal.rows())
    for name, chosen in (("reversed", rows[::-1]), ("fewer", rows[:-1])):
        with Journal(tmp_path / f"{name}.sqlite") as journal:
            journal.add_rows(chosen)
    assert _root(tmp_path / "reversed.sqlite") == _root(one) != _root(tmp_path / "fewer.sqlite")


@pytest.mark.parametrize("column", ["reply", "request", "answered_at", "key", "is_final"])
def test_damage_is_found_and_nothing_else_is_dropped(tmp_path: Path, column: str) -> None:
    path = _journal(tmp_path / "j.sqlite", range(10))
    connection = connect(path)
    change = {"is_final": "1 - is_final", "answered_at": "answered_at + 1"}.get(column, f"{column} || 1")
    connection.execute(f"UPDATE answers SET {column} = {change} WHERE seq = 4")
    connection.close()
    with Journal(path) as journal:
        with pytest.raises(ArtifactError, match=r"9 rows written .* 1 are damaged and left out \(rows \[4\]\)"):
            export(journal, tmp_path / "rows.parquet")
        found = verify(journal)
        assert ([row.seq for row in found.damaged], found.num_rows) == ([4], 10)
        journal.drop(found.damaged)
        assert verify(journal).is_intact
        assert not journal.has_final(_entry(3).key)
        assert journal.has_final(_entry(4).key)


@pytest.mark.parametrize("line", ['{"key": "x"}', "{", "[]", "null"])
def test_an_export_that_was_changed_is_refused(tmp_path: Path, line: str) -> None:
    with Journal(_journal(tmp_path / "a.sqlite", range(3))) as journal:
        export(journal, tmp_path / "rows.jsonl")
    lines = (tmp_path / "rows.jsonl").read_text(encoding="utf-8").split("\n")
    for changed in (line, lines[1].replace('"prompt_tokens": 1', '"prompt_tokens": 2')):
        (tmp_path / "rows.jsonl").write_text("\n".join([lines[0], changed, lines[2], ""]), encoding="utf-8")
        with Journal(tmp_path / "b.sqlite") as journal, pytest.raises(InputError, match="expected row 2"):
            import_rows(journal, tmp_path / "rows.jsonl")


CURATOR = {
    "response_message": "four",
    "response_errors": None,
    "generic_request": {
        "model": "gpt-4o-mini",
        "messages": [{"role": "user", "content": "2+2?"}],
        "original_row_idx": 0,
    },
    "finish_reason": "length",
    "token_usage": {"input": 10, "output": 5},
}
PAIR = {
    "request": {"messages": [{"role": "user", "content": "2+2?"}]},
    "response": {"model": "m", "choices": [{"message": {"content": "four"}, "finish_reason": "length"}]},
}
TUNING = {"messages": [{"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "four"}]}
PLAIN = {"instruction": "2+2?", "generation": "four", "model_name": "m", "finish_reason": "length"}


@pytest.mark.parametrize("line", [CURATOR, PAIR, TUNING, PLAIN])
def test_the_shapes_of_other_tools(line: dict[str, Any]) -> None:
    messages, reply = parse_answer(line)
    assert [message.content for message in messages] == ["2+2?"]
    assert reply.text == "four"
    assert reply.finish_reason == ("" if line is TUNING else "length")
    assert reply.prompt_tokens == 0


def test_what_another_tool_paid_for_is_not_asked_again(
    endpoint: Any, make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    teacher = {"kind": "openai", "base_url": endpoint.url, "model": "gpt", "sampling": {"num_samples": 2}}
    run = make_run(teacher, [{"prompt": f"question {number}"} for number in range(4)])
    lines = [{"prompt": f"question {number}", "completion": f"theirs {copy}"} for number in (0, 1, 9) for copy in "ab"]
    (tmp_path / "theirs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[1:]))
    prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / "prompts")
    with Journal(tmp_path / "journal.sqlite") as journal:
        found = import_foreign(journal, tmp_path / "theirs.jsonl", prompts, LiveTeacher(run.teacher, 0, None))  # type: ignore[arg-type]
        assert found == (5, 3, 3, 5)
    completions = query_teacher(prompts, run, journal_path=tmp_path / "journal.sqlite", output=tmp_path / "out")
    texts = [row.text for row in completions.rows()]
    assert texts == ["theirs b", "QUESTION 0", "theirs a", "theirs b", *["QUESTION 2"] * 2, *["QUESTION 3"] * 2]
    assert endpoint.asked.total() == 5


def test_a_line_of_no_known_shape_is_told(make_run: Callable[..., RunSpec], tmp_path: Path) -> None:
    run = make_run({"kind": "openai", "base_url": "http://127.0.0.1:9/v1", "model": "gpt"}, [{"prompt": "q"}])
    (tmp_path / "theirs.jsonl").write_text('{"prompt": "q", "completion": "c"}\n{"what": 1}\n')
    prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / "prompts")
    with Journal(tmp_path / "j.sqlite") as journal, pytest.raises(InputError, match=r"theirs\.jsonl, line 2: expected"):
        import_foreign(journal, tmp_path / "theirs.jsonl", prompts, LiveTeacher(run.teacher, 0, None))  # type: ignore[arg-type]

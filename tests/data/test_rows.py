"""Sources: the same table gives the same prompts from every kind of file, and each kind's faults are named."""

import csv
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from proxykd.config.prompts import FilePromptsSpec, PromptsSpec
from proxykd.data.prompts import hash_inputs, iter_recorded, load_prompts
from proxykd.data.rows import iter_rows
from proxykd.exceptions import InputError
from proxykd.records import Message, Prompt

Table = list[dict[str, Any]]


def spec_of(kind: str, path: Path, **changes: Any) -> Any:
    return TypeAdapter(PromptsSpec).validate_python({"kind": kind, "path": path, **changes})


def write_jsonl(path: Path, table: Table) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table), encoding="utf-8")


def write_csv(path: Path, table: Table) -> None:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        writer = csv.DictWriter(file, table[0])
        writer.writeheader()
        writer.writerows(table)


def write_parquet(path: Path, table: Table) -> None:
    pq.write_table(pa.Table.from_pylist(table), path)


def write_finetuning(path: Path, table: Table) -> None:
    turns = [[("user", row["prompt"]), ("assistant", row["completion"])] for row in table]
    chats = [[{"role": role, "content": text} for role, text in chat] for chat in turns]
    write_jsonl(path, [{"messages": chat, "weight": 1, "tools": []} for chat in chats])


WRITERS: dict[str, Callable[[Path, Table], None]] = {
    "jsonl": write_jsonl,
    "csv": write_csv,
    "parquet": write_parquet,
    "openai_finetuning": write_finetuning,
}

texts = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=20).filter(str.strip)
tables = st.lists(st.tuples(texts, texts), min_size=1, max_size=6, unique_by=lambda row: row[0])


def load(spec: FilePromptsSpec, folder: Path) -> list[Prompt]:
    prompts = load_prompts(spec, output=folder)
    prompts.verify()
    return list(prompts.rows())


def refusal(spec: FilePromptsSpec, folder: Path) -> str:
    with pytest.raises(InputError) as caught:
        load_prompts(spec, output=folder / "out")
    return str(caught.value)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(tables)
def test_every_kind_gives_the_same_prompts_and_completions(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]]
) -> None:
    folder, found = tmp_path_factory.mktemp("rows"), []
    for kind, write in WRITERS.items():
        write(folder / kind, [{"prompt": prompt, "completion": completion} for prompt, completion in rows])
        recorded = list(iter_recorded(spec_of(kind, folder / kind), "completion"))
        assert [prompt for prompt, _ in recorded] == load(spec_of(kind, folder / kind), folder / f"{kind}-out")
        found.append([(prompt.prompt_id, text) for prompt, text in recorded])
    assert found[0] == [(Prompt.build([Message("user", prompt)]).prompt_id, text) for prompt, text in rows]
    assert all(other == found[0] for other in found)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
def test_templates_tasks_and_references_come_from_columns(kind: str, tmp_path: Path) -> None:
    table = [
        {"q": "How many?", "context": "Cats\nand 1 dog", "set": "sums", "gold": "4", "persona": "Be brief.", "id": "1"},
        {"q": "Who?", "context": "", "set": "facts", "gold": "", "persona": " ", "id": "2"},
    ]
    WRITERS[kind](tmp_path / kind, table)
    spec = spec_of(
        kind,
        tmp_path / kind,
        template="{{ q }}{% if context %} ({{ context }}){% endif %}",
        system_template="{{ persona }}",
        task_field="set",
        reference_field="gold",
    )
    one, two = load(spec, tmp_path / "out")
    assert one.messages == (Message("system", "Be brief."), Message("user", "How many? (Cats\nand 1 dog)"))
    assert two.messages == (Message("user", "Who?"),)
    assert [(p.task, p.reference) for p in (one, two)] == [("sums", "4"), ("facts", None if kind == "csv" else "")]


@pytest.mark.parametrize(("kind", "place"), [("jsonl", "line 2"), ("csv", "line 3"), ("parquet", "row 2")])
def test_every_complaint_names_the_place_and_the_columns(kind: str, place: str, tmp_path: Path) -> None:
    path = tmp_path / kind
    WRITERS[kind](path, [{"question": "a", "n": "1"}, {"question": "", "n": "2"}])
    assert f"{path}, {place}: " in refusal(spec_of(kind, path, prompt_field="question"), tmp_path)
    message = refusal(spec_of(kind, path, prompt_field="quesiton"), tmp_path)
    assert "expected the field 'quesiton', found 'question', 'n' (did you mean 'question'?)" in message
    message = refusal(spec_of(kind, path, template="{{ quesiton }}"), tmp_path)
    assert "prompts.template asks for the column 'quesiton'" in message
    assert "did you mean 'question'?" in message
    assert "ZeroDivisionError" in refusal(spec_of(kind, path, template="{{ 1 / 0 }}"), tmp_path)
    WRITERS[kind](path, [{"question": "a"}, {"question": "a"}])
    first = place.replace("2", "1").replace("3", "2")
    assert f"{place}: expected a prompt that has not occurred before, found the one of {first} again" in refusal(
        spec_of(kind, path, prompt_field="question"), tmp_path
    )


def test_csv_with_other_delimiters_names_and_line_breaks(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_bytes(b'a\t"b\r\nc ""d"""\r\n\r\ne,f\tg\r\n')
    spec = spec_of("csv", tmp_path / "a.tsv", delimiter="\t", columns=["x", "prompt"])
    assert [(row.number, dict(row.value)) for row in iter_rows(spec)] == [
        (1, {"x": "a", "prompt": 'b\r\nc "d"'}),
        (4, {"x": "e,f", "prompt": "g"}),
    ]
    assert [prompt.source for prompt in load(spec, tmp_path / "out")] == ["a.tsv:1", "a.tsv:4"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"prompt,x\na,b\nc\n", "line 3: expected 2 cells as in the header, found 1"),
        (b"prompt,x\na,b\nc,d,e\n", "line 3: expected 2 cells as in the header, found 3"),
        (b"prompt,prompt\na,b\n", "line 1: expected a header of distinct names, found 'prompt' twice"),
        (b'prompt\na\n"b\nc\n', "line 3: expected a row of CSV, found none: unexpected end of data"),
        (b'prompt\n"a"b\n', "line 2: expected a row of CSV"),
        (b"prompt\na\n\xe9\n", "line 3: expected UTF-8, found the byte 0xe9"),
        (b"prompt\n", "at least one row"),
        (b"", "at least one row"),
    ],
)
def test_bad_csv_is_named_with_its_line(content: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    assert words in refusal(spec_of("csv", tmp_path / "a.csv"), tmp_path)


def test_a_quote_that_is_never_closed_does_not_swallow_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('prompt\n"' + "x" * 99 + "\n" * 1 + ("y" * 2**20 + "\n") * 20)
    assert "line 2: expected a row of CSV, found none: field larger" in refusal(
        spec_of("csv", tmp_path / "a.csv"), tmp_path
    )


def test_parquet_of_nested_and_other_types(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]
    table = pa.table(
        {
            "prompt": pa.array([turns]),
            "gold": pa.array([7], pa.int32()),
            "picture": pa.array([b"\xff" * 10]),
            "name": pa.array(["a"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    (prompt,) = load(spec_of("parquet", tmp_path / "a.parquet", reference_field="gold", task_field="name"), tmp_path)
    assert [message.role for message in prompt.messages] == ["system", "user"]
    assert (prompt.reference, prompt.task) == ("7", "a")
    assert "expected 'picture' to be a string, found bytes" in refusal(
        spec_of("parquet", tmp_path / "a.parquet", prompt_field="picture"), tmp_path
    )


def test_a_folder_of_parquet_files_is_one_table(tmp_path: Path) -> None:
    for name, text in (("b", "second"), ("a", "first")):
        write_parquet(tmp_path / f"{name}.parquet", [{"prompt": text}])
    spec = spec_of("parquet", tmp_path)
    assert [(p.messages[0].content, p.source) for p in load(spec, tmp_path / "out")] == [
        ("first", "a.parquet:1"),
        ("second", "b.parquet:1"),
    ]
    before = hash_inputs(spec)
    write_parquet(tmp_path / "b.parquet", [{"prompt": "other"}])
    assert hash_inputs(spec) != before
    (tmp_path / "empty").mkdir()
    assert "found none" in refusal(spec_of("parquet", tmp_path / "empty"), tmp_path)


@pytest.mark.parametrize("kind", ["csv", "parquet", "openai_finetuning"])
def test_missing_and_other_files_are_refused(kind: str, tmp_path: Path) -> None:
    assert "correct prompts.path" in refusal(spec_of(kind, tmp_path / "nowhere"), tmp_path)
    (tmp_path / "text").write_text("not\n\0a table\n")
    assert str(tmp_path / "text") in refusal(spec_of(kind, tmp_path / "text"), tmp_path)


@pytest.mark.integration
def test_memory_does_not_grow_with_a_parquet_file(tmp_path: Path) -> None:
    peaks = []
    for num_rows in (20_000, 80_000):
        rows = {"prompt": [f"question {idx} " + "x" * 200 for idx in range(num_rows)], "other": ["y" * 200] * num_rows}
        pq.write_table(pa.table(rows), tmp_path / "a.parquet", row_group_size=10_000)
        del rows
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        peak = max(pa.total_allocated_bytes() for _ in iter_rows(spec_of("parquet", tmp_path / "a.parquet")))
        peaks.append(peak - before + tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


def chat(*turns: tuple[str, Any], **more: Any) -> bytes:
    return json.dumps({"messages": [{"role": role, "content": content, **more} for role, content in turns]}).encode()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b'{"prompt": "a"}', "expected a list of messages under 'messages', found the keys 'prompt'"),
        (b'{"messages": []}', "expected a list of messages"),
        (b'{"messages": ["a"]}', r"expected messages[0] to be an object"),
        (chat(("user", "q"), ("tool", "4"), ("assistant", "a")), "messages[1] to be text, found a call of a tool"),
        (chat(("user", "q"), ("assistant", None), tool_calls=[{}]), "found a call of a tool"),
        (chat(("user", [{"type": "image_url", "image_url": {}}])), "a part of type 'image_url', which is not carried"),
        (chat(("user", "q"), ("assistant", None)), "the content of messages[1] to be text, found null"),
        (chat(("judge", "q")), "system, developer, user, assistant, found 'judge'"),
        (chat(("system", "s"), ("assistant", "a")), "'messages' to end in a question of the user's"),
    ],
)
def test_chats_that_cannot_be_carried_are_refused(line: bytes, words: str, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(chat(("user", "fine")) + b"\n" + line)
    message = refusal(spec_of("openai_finetuning", tmp_path / "a.jsonl"), tmp_path)
    assert "line 2: " in message
    assert words in message


def test_a_chat_may_have_turns_parts_and_a_developer(tmp_path: Path) -> None:
    turns = [("developer", "s"), ("user", "q"), ("assistant", "a"), ("user", [{"type": "text", "text": "r"}])]
    (tmp_path / "a.jsonl").write_bytes(chat(*turns, ("assistant", "b"), name="n"))
    ((prompt, text),) = iter_recorded(spec_of("openai_finetuning", tmp_path / "a.jsonl"), "completion")
    assert [(m.role, m.content) for m in prompt.messages] == [
        ("system", "s"),
        ("user", "q"),
        ("assistant", "a"),
        ("user", "r"),
    ]
    assert text == "b"


def test_a_chat_without_a_last_word_is_for_live_teachers(tmp_path: Path) -> None:
    spec = spec_of("openai_finetuning", tmp_path / "a.jsonl")
    spec.path.write_bytes(chat(("user", "q")))
    assert load(spec, tmp_path / "out")[0].messages == (Message("user", "q"),)
    with pytest.raises(InputError, match=r"line 1: .*or ask a live teacher"):
        list(iter_recorded(spec, "completion"))
    spec.path.write_bytes(chat(("user", "q"), ("assistant", "a"), weight=0))
    with pytest.raises(InputError, match=r"line 1: .*weight 0"):
        list(iter_recorded(spec, "completion"))


def test_a_task_that_no_row_has_is_told(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "task": "sums"}])
    messages = [{"text": "x", "tasks": ["sum"]}]
    spec = spec_of("jsonl", tmp_path / "a.jsonl", task_field="task", system_messages=messages)
    assert "prompts of the task 'sum'" in refusal(spec, tmp_path)


def test_a_row_with_a_system_message_of_its_own_takes_no_other(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(chat(("system", "s"), ("user", "q")))
    spec = spec_of("openai_finetuning", tmp_path / "a.jsonl", system_messages=[{"text": "x"}])
    assert "because prompts.system_messages sets one" in refusal(spec, tmp_path)


@pytest.mark.parametrize(
    "changes", [{"delimiter": ""}, {"delimiter": "ab"}, {"delimiter": '"'}, {"columns": ["a", "a"]}, {"columns": []}]
)
def test_settings_of_csv_that_do_not_fit_are_refused(changes: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="csv"):
        spec_of("csv", tmp_path, **changes)

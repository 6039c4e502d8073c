"""Prompts from JSONL: good lines come through in order, bad ones are named with their line."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from proxykd.config.prompts import JsonlPromptsSpec
from proxykd.data.prompts import iter_recorded, load_prompts
from proxykd.exceptions import InputError
from proxykd.records import Message, Prompt


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(folder: Path, *rows: Any, **settings: Any) -> list[Prompt]:
    spec = JsonlPromptsSpec(path=write(folder / "prompts.jsonl", *rows), **settings)
    prompts = load_prompts(spec, output=folder / "out")
    prompts.verify()
    return list(prompts.rows())


def refusal(folder: Path, content: bytes, **settings: Any) -> str:
    path = folder / "prompts.jsonl"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_prompts(JsonlPromptsSpec(path=path, **settings), output=folder / "out")
    return str(caught.value)


contents = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(str.strip)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(contents, min_size=1, max_size=8, unique=True))
def test_questions_come_through_in_order(tmp_path_factory: pytest.TempPathFactory, questions: list[str]) -> None:
    prompts = load(tmp_path_factory.mktemp("prompts"), *({"prompt": question} for question in questions))
    assert [prompt.messages for prompt in prompts] == [(Message("user", question),) for question in questions]
    assert prompts == [Prompt.build(p.messages, source=f"prompts.jsonl:{i}") for i, p in enumerate(prompts, start=1)]


def test_input_is_appended_after_a_blank_line_where_there_is_one(tmp_path: Path) -> None:
    rows = [{"prompt": "Add.", "input": "2, 3"}, {"prompt": "Sing.", "input": ""}, {"prompt": "Hum.", "input": None}]
    prompts = load(tmp_path, *rows, input_field="input")
    assert [prompt.messages[-1].content for prompt in prompts] == ["Add.\n\n2, 3", "Sing.", "Hum."]


def test_messages_system_task_and_reference(tmp_path: Path) -> None:
    turns = [{"role": role, "content": role} for role in ("user", "assistant", "user")]
    rows = [{"prompt": turns, "answer": "4"}, {"prompt": "q", "answer": 4}, {"prompt": "r", "answer": None}]
    prompts = load(tmp_path, *rows, reference_field="answer", system="Be brief.", task="sums")
    assert [message.role for message in prompts[0].messages] == ["system", "user", "assistant", "user"]
    assert [prompt.reference for prompt in prompts] == ["4", "4", None]
    assert {prompt.task for prompt in prompts} == {"sums"}


def test_limit_takes_the_first_and_reads_no_further(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "a"}\n\n{"prompt": "b"}\nnot json\n')
    spec = JsonlPromptsSpec(path=tmp_path / "prompts.jsonl", limit=2)
    assert [p.source for p in load_prompts(spec, output=tmp_path / "out").rows()] == [
        "prompts.jsonl:1",
        "prompts.jsonl:3",
    ]


def test_byte_order_mark_is_skipped(tmp_path: Path) -> None:
    (tmp_path / "prompts.jsonl").write_bytes(b'\xef\xbb\xbf{"prompt": "a"}\r\n{"prompt": "b"}')
    prompts = load_prompts(JsonlPromptsSpec(path=tmp_path / "prompts.jsonl"), output=tmp_path / "out")
    assert prompts.num_rows == 2


def test_duplicates_stop_with_both_lines_or_the_first_is_kept(tmp_path: Path) -> None:
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}]
    with pytest.raises(InputError, match=r"prompts\.jsonl, line 3: .*of line 1 again.*on_duplicate=drop"):
        load(tmp_path, *rows)
    assert [p.messages[0].content for p in load(tmp_path, *rows, on_duplicate="drop")] == ["a", "b"]


def test_same_words_in_other_roles_are_no_duplicate(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert len(load(tmp_path, {"prompt": turns}, {"prompt": "a\n\nb"})) == 2


BAD_LINES = [
    (b'{"prompt": "a"', r"line 2: expected one JSON object a line, found .* at column 15"),
    (b'["a"]', r"line 2: expected a JSON object, found a list"),
    (b'{"question": "a"}', r"line 2: expected the field 'prompt', found 'question'"),
    (b'{"prompt": 3}', r"line 2: expected 'prompt' to be a string, found a number \(3\)"),
    (b'{"prompt": null}', r"line 2: expected 'prompt' to be a string, found null"),
    (b'{"prompt": "  "}', r"line 2: .*empty prompt"),
    (b'{"prompt": []}', r"line 2: .*empty prompt"),
    (b'{"prompt": [{"role": "bot", "content": "a"}]}', r"line 2: .*system, user, assistant, found 'bot'"),
    (b'{"prompt": [{"role": "user"}]}', r"line 2: expected prompt\[0\] .*content of text"),
    (b'{"prompt": ["a"]}', r"line 2: expected prompt\[0\] to be an object"),
    (b'{"prompt": [{"role": "assistant", "content": "a"}]}', r"line 2: .*another role at its end"),
    (b'{"prompt": "\\ud800"}', r"line 2: .*surrogate"),
    (b'{"prompt": "\xe9"}', r"line 2: expected UTF-8, found the byte 0xe9"),
    (b"[" * 100_000, r"line 2: .*nested too deeply"),
]


@pytest.mark.parametrize(("line", "message"), BAD_LINES)
def test_bad_lines_are_named(tmp_path: Path, line: bytes, message: str) -> None:
    assert re.search(message, refusal(tmp_path, b'{"prompt": "fine"}\n' + line))


def test_utf16_files_are_refused(tmp_path: Path) -> None:
    assert "line 1: expected UTF-8" in refusal(tmp_path, '{"prompt": "a"}'.encode("utf-16"))


def test_named_fields_must_be_there(tmp_path: Path) -> None:
    line = b'{"prompt": "a", "input": 3, "answer": [1]}'
    assert "expected the field 'inputs'" in refusal(tmp_path, line, input_field="inputs")
    assert "expected 'input' to be a string" in refusal(tmp_path, line, input_field="input")
    assert "expected 'answer' to be a string, found a list" in refusal(tmp_path, line, reference_field="answer")


def test_two_system_messages_are_refused(tmp_path: Path) -> None:
    row = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}]}
    assert "prompts.system" in refusal(tmp_path, json.dumps(row).encode(), system="t")


@pytest.mark.parametrize("content", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_empty_files_are_refused(tmp_path: Path, content: bytes) -> None:
    assert "at least one JSON object" in refusal(tmp_path, content)


def test_missing_files_and_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No such file.*correct prompts\.path"):
        load_prompts(JsonlPromptsSpec(path=tmp_path / "nowhere.jsonl"), output=tmp_path / "out")
    with pytest.raises(InputError, match="Is a directory"):
        load_prompts(JsonlPromptsSpec(path=tmp_path), output=tmp_path / "out")


def test_recorded_completions_follow_the_prompts(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "text": "A"}, {"prompt": "a", "text": "B"}, {"prompt": "b", "text": ""}]
    spec = JsonlPromptsSpec(path=write(tmp_path / "prompts.jsonl", *rows), on_duplicate="drop")
    recorded = list(iter_recorded(spec, "text"))
    assert [prompt for prompt, _ in recorded] == list(load_prompts(spec, output=tmp_path / "out").rows())
    assert [text for _, text in recorded] == ["A", ""]


@pytest.mark.parametrize(("row", "message"), [({}, "the field 'text'"), ({"text": 3}, "'text' to be a string")])
def test_recorded_completions_must_be_text(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    spec = JsonlPromptsSpec(path=write(tmp_path / "prompts.jsonl", {"prompt": "a", **row}))
    with pytest.raises(InputError, match=f"line 1: .*{message}"):
        list(iter_recorded(spec, "text"))


def test_artifact_depends_on_the_content_and_not_on_the_folder(tmp_path: Path) -> None:
    hashes = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        path = write(tmp_path / name / "prompts.jsonl", {"prompt": "a"})
        hashes.append(load_prompts(JsonlPromptsSpec(path=path), output=tmp_path / name / "out").hash)
    assert hashes[0] == hashes[1]

"""The recorded teacher over every kind of data: its texts, and what changes behind its back."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from proxykd.config import RunSpec
from proxykd.exceptions import InputError
from proxykd.teacher.query import collect_prompts, query_teacher

ROWS = [{"prompt": f"q{idx}", "completion": f"a{idx}"} for idx in range(4)]


def write(kind: str, folder: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    """The prompts' section of a specification, and the data that it names."""
    path = folder / "rows"
    if kind == "csv":
        with path.open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerows([("prompt", "completion"), *((row["prompt"], row["completion"]) for row in rows)])
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif kind == "huggingface":
        path.mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), path / "train-00000-of-00001.parquet")
        return {"kind": kind, "source": str(path)}
    else:
        chats = [[("user", row["prompt"]), ("assistant", row["completion"])] for row in rows]
        lines = [{"messages": [{"role": role, "content": text} for role, text in chat]} for chat in chats]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return {"kind": kind, "path": str(path)}


@pytest.mark.parametrize("kind", ["csv", "parquet", "huggingface", "openai_finetuning"])
def test_texts_come_from_the_rows_and_a_change_of_the_data_is_told(
    kind: str, make_run: Callable[..., RunSpec], tmp_path: Path
) -> None:
    run = make_run({"kind": "recorded"}, prompts=write(kind, tmp_path, ROWS))
    prompts = collect_prompts(run.prompts, seed=0, output=tmp_path / "prompts")
    completions = query_teacher(prompts, run, journal_path=tmp_path / "journal", output=tmp_path / "completions")
    assert [row.text for row in completions.rows()] == [row["completion"] for row in ROWS]
    for changed in ([{"prompt": "q9", "completion": "a"}, *ROWS[1:]], [*ROWS[:3], {**ROWS[3], "completion": "b"}]):
        write(kind, tmp_path, changed)
        with pytest.raises(InputError, match="the data has changed"):
            query_teacher(prompts, run, journal_path=tmp_path / "journal", output=tmp_path / "again")


@pytest.mark.parametrize(
    ("prompts", "teacher", "words"),
    [
        ({"kind": "embedded"}, {}, "set prompts.kind=jsonl, say"),
        ({"kind": "jsonl", "path": "x", "examples": [{"prompt": "a", "completion": "b"}]}, {}, "system_template"),
        ({"kind": "jsonl", "path": "x", "system_messages": "explanation_traces"}, {}, "leave out"),
        ({"kind": "openai_finetuning", "path": "x"}, {"completion_field": "c"}, "leave out teacher.completion_field"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    prompts: dict[str, Any], teacher: dict[str, Any], words: str, make_run: Callable[..., RunSpec]
) -> None:
    with pytest.raises(ValueError, match=words):
        make_run({"kind": "recorded", **teacher}, prompts=prompts)

"""What is asked is what was planned."""

import json
from pathlib import Path
from typing import Any

import pytest

from proxykd.config import RunSpec
from proxykd.exceptions import InputError
from proxykd.own_code import code_hash

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]


def test_prompts_that_changed_after_the_plan_are_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from steps.query_teacher import query_teacher

    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))
    rows = [{"prompt": f"How much is {n}?", "completion": "Much."} for n in range(3)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "seed": 0,
        "prompts": {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")},
        "teacher": {"kind": "recorded"},
    }
    with pytest.raises(InputError, match="planned with"):
        query_teacher.entrypoint(answers=[], settings=settings, code=code_hash("steps.query_teacher"), inputs="0" * 64)
    assert not (tmp_path / "home").exists()


def test_a_run_without_shards_asks_nothing_that_shards_were_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, endpoint: Any
) -> None:
    from proxykd.teacher.query import collect_prompts, inputs_of
    from steps import query_teacher, query_teacher_portion

    monkeypatch.setenv("PROXYKD_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"How much is {n}?"} for n in range(9)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings: dict[str, Any] = {
        "seed": 0,
        "prompts": {"kind": "jsonl", "path": str(tmp_path / "rows.jsonl")},
        "teacher": {"kind": "openai", "base_url": endpoint.url, "model": "m"},
        "staging": None,
        "split": {},
    }
    prompts = collect_prompts(RunSpec.view(settings).prompts, seed=0, output=tmp_path / "prompts")
    told = {"settings": settings, "inputs": inputs_of(prompts)}
    query_teacher_portion.query_teacher_portion.entrypoint(
        **told, code=code_hash("steps.query_teacher_portion"), number=0, of=2
    )
    num_asked = endpoint.asked.total()
    query_teacher.query_teacher.entrypoint(**told, code=code_hash("steps.query_teacher"), answers=[])
    assert 0 < num_asked < endpoint.asked.total() == len(rows)

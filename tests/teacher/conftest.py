"""Run specifications that point at a scripted endpoint."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxykd.config.specification import RunSpec


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., RunSpec]:
    """Builds a run specification from a teacher and rows of a JSONL file (none = embedded prompts)."""

    def make(teacher: dict[str, Any], rows: list[dict[str, Any]] | None = None, **changes: Any) -> RunSpec:
        prompts: dict[str, Any] = {"kind": "embedded", "count": 30}
        if rows is not None:
            path = tmp_path / "rows.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            prompts = {"kind": "jsonl", "path": str(path)}
        sections = {
            "name": "run",
            "prompts": prompts,
            "teacher": teacher,
            "proxy": {"model": {"source": "embedded:proxy"}},
            "student": {"model": {"source": "embedded:student"}},
            "registry": {"model_name": "student"},
        }
        return RunSpec.model_validate({**sections, **changes})

    return make

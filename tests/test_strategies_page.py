"""The page on strategies: its parts of specifications load, and its program prints what the page says."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import TypeAdapter

import proxykd
from proxykd.config import DataSplitSpec
from proxykd.config.corrections import CorrectionsSpec
from proxykd.config.models import StudentSpec
from proxykd.config.staging import StagingSpec
from proxykd.config.teacher import TeacherSpec
from proxykd.config.verifiers import VerifierSpec

PAGE = (Path(proxykd.__file__).parents[1] / "docs" / "strategies.md").read_text(encoding="utf-8")
PARTS = [yaml.safe_load(part) for part in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)]
SECTIONS: dict[str, TypeAdapter[Any]] = {
    "teacher": TypeAdapter(TeacherSpec),
    "staging": TypeAdapter(StagingSpec),
    "split": TypeAdapter(DataSplitSpec),
    "verifier": TypeAdapter(VerifierSpec),
    "corrections": TypeAdapter(CorrectionsSpec),
    "student": TypeAdapter(StudentSpec),
}


@pytest.mark.parametrize("part", PARTS, ids=str)
def test_every_part_of_a_specification_loads(part: dict[str, Any]) -> None:
    for name, value in part.items():
        SECTIONS[name].validate_python(value)


def test_every_kind_of_verifier_is_shown() -> None:
    kinds = {part["verifier"]["kind"] for part in PARTS if "verifier" in part}
    assert kinds == {"exact", "numeric", "program", "tests", "json_schema"}


@pytest.mark.integration
def test_the_program_prints_what_the_page_says() -> None:
    found = re.search(r"```python\n(.*?)```\n```\n(.*?)```", PAGE, re.DOTALL)
    assert found is not None
    program, printed = found.groups()
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=True)
    assert finished.stdout == printed

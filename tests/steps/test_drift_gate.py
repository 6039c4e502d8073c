"""Drift as an artifact: silent without a baseline and against itself, a gate where the specification says so."""

from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import DriftReport, ValidationResult, read_json, seal, write_json
from proxykd.config import ValidationSpec
from proxykd.data.accepted import accept, read_baseline
from proxykd.data.summary import RULES
from proxykd.exceptions import GateError
from steps.adapters.drift_gate import report_drift, require_no_drift
from steps.adapters.validation_page import DRIFT_HERE

pytestmark = pytest.mark.integration  # Great Expectations takes seconds to import


def validation(folder: Path, rows: str, **broken: int) -> ValidationResult:
    rules = {rule.value: {"broken": broken.get(rule.value, 0), "measured": 1000} for rule in RULES}
    lengths = {"chars": {"12": 600, "13": 400}, "tokens": {}}
    write_json(folder / "result.json", {"num_rows": 1000, "rules": rules, "lengths": lengths})
    (folder / "index.html").write_text(f"<h1>Validation</h1>{DRIFT_HERE}<p>end</p>")
    seal(ValidationResult(folder), {"validated": rows})
    return ValidationResult(folder)


def report(folder: Path, now: ValidationResult, baseline: dict[str, Any] | None, **rules: Any) -> DriftReport:
    spec = ValidationSpec.model_validate({"rules": rules})
    return report_drift(now, baseline, spec, output=folder / "drift", scratch=folder)


def test_a_first_run_has_nothing_to_compare_with(tmp_path: Path) -> None:
    found = report(tmp_path, validation(tmp_path / "now", "a"), None)
    require_no_drift(found)
    found.verify()
    assert read_json(found.path / "drift.json") == {"baseline": None, "measures": [], "reasons": [], "warnings": []}
    assert "No accepted run of this name" in (found.path / "index.html").read_text()


def test_a_repeated_run_gives_the_same_report_as_the_first(tmp_path: Path) -> None:
    now, accepted = validation(tmp_path / "now", "a"), tmp_path / "accepted.json"
    first = report(tmp_path / "1", now, None)
    accept(now, accepted)
    assert report(tmp_path / "2", now, read_baseline(accepted)).hash == first.hash


@pytest.mark.parametrize("action", ["warn", "fail"])
def test_drift_warns_or_stops_the_run(tmp_path: Path, action: str) -> None:
    accepted = tmp_path / "accepted.json"
    accept(validation(tmp_path / "before", "a", refused=20), accepted)
    now = validation(tmp_path / "now", "b", refused=150, empty=5)
    found = report(tmp_path, now, read_baseline(accepted), refused={"on_drift": action})
    content = read_json(found.path / "drift.json")
    lines = content["reasons"] if action == "fail" else content["warnings"]
    assert len(lines) == len(content["reasons"] + content["warnings"]) == 1
    assert lines[0].startswith("refused: 2.00% of the rows before, 15.00% now; at most 5.0% of change expected (p = ")
    page = (found.path / "index.html").read_text()
    assert "drifted" in page
    assert "http" not in page
    assert page.endswith("<p>end</p>")
    if action == "warn":
        require_no_drift(found)
        return
    with pytest.raises(GateError, match=r"differs from that of the last accepted run:\n  refused: 2"):
        require_no_drift(found)

"""Drift against the last accepted run, as Great Expectations see it: one column a measure, one expectation each."""

from pathlib import Path
from typing import Any

from proxykd.artifacts import DriftReport, ValidationResult, read_json, seal, write_json
from proxykd.config.validation import ValidationSpec
from proxykd.data.accepted import choose_baseline
from proxykd.data.drift import Drift, compare
from proxykd.data.scratch import scratch_database
from proxykd.exceptions import GateError
from proxykd.records import hash_json
from steps.adapters.great_expectations_gate import PAGE, RESULT, check_table, import_expectations
from steps.adapters.validation_page import add_drift

DRIFT = "drift.json"
TABLE = "drift"


def report_drift(
    validation: ValidationResult,
    baseline: dict[str, Any] | None,
    spec: ValidationSpec,
    *,
    output: Path,
    scratch: Path,
) -> DriftReport:
    """Compare a validation with the last accepted one on other rows.

    Args:
        validation: Of this run.
        baseline: As ``proxykd.data.accepted`` keeps it; None = no run was accepted yet.
        spec: Bounds and actions.
        output: Folder of the new artifact: ``drift.json``, and the validation's page with the drift in it.
        scratch: Folder for a temporary database.
    """
    before = choose_baseline(baseline, validation.manifest["made_from"]["validated"])
    measures = [] if before is None else compare(read_json(validation.path / RESULT), before, spec)
    checked = _check(measures, scratch / "drift.sqlite") if measures else None
    content = {
        "baseline": None if before is None else {name: before[name] for name in ("validated", "num_rows")},
        "measures": [found._asdict() for found in measures],
        "reasons": [_describe(found) for found in measures if found.has_drifted and found.action == "fail"],
        "warnings": [_describe(found) for found in measures if found.has_drifted and found.action == "warn"],
    }
    report = DriftReport(output)
    write_json(output / DRIFT, content)
    page = (validation.path / PAGE).read_text(encoding="utf-8")
    (output / PAGE).write_text(add_drift(page, content, checked), encoding="utf-8")
    seal(report, {"validation": validation.hash, "baseline": hash_json(before)})
    return report


def require_no_drift(report: DriftReport) -> None:
    """Go on only if nothing drifted whose drift is to stop the run.

    Raises:
        GateError: with every reason.
    """
    if reasons := read_json(report.path / DRIFT)["reasons"]:
        lines = "\n".join(f"  {reason}" for reason in reasons)
        raise GateError(
            f"the corpus differs from that of the last accepted run:\n{lines}\nread {report.path / PAGE}; then mend "
            "the data, or accept the change: set on_drift=warn for those rules (on_length_drift for lengths) in the "
            "section `validation`, and run once"
        )


def _check(measures: list[Drift], path: Path) -> Any:
    """Great Expectations on a table of one row: how far each share moved where that is significant, and each PSI."""
    gxe = import_expectations()
    values = [0.0 if found.p_value is not None and not found.has_drifted else abs(found.distance) for found in measures]
    with scratch_database(path) as database:
        database.execute(f"CREATE TABLE {TABLE} ({', '.join(f'{found.name} REAL' for found in measures)})")
        database.execute(f"INSERT INTO {TABLE} VALUES ({', '.join('?' * len(values))})", values)
    expectations = [
        gxe.ExpectColumnMaxToBeBetween(
            column=found.name,
            min_value=0.0,
            max_value=found.bound,
            notes=f"{found.name} is as in the last accepted run (0 = no significant change)",
            severity="critical" if found.action == "fail" else "warning",
        )
        for found in measures
    ]
    try:
        return check_table(path, TABLE, expectations)
    finally:
        path.unlink()


def _describe(found: Drift) -> str:
    if found.before is None or found.now is None:
        return f"{found.name}: population stability index {found.distance:.3f}, at most {found.bound:.3f} expected"
    return (
        f"{found.name}: {found.before:.2%} of the rows before, {found.now:.2%} now; at most "
        f"{found.bound:.1%} of change expected (p = {found.p_value:.1g})"
    )

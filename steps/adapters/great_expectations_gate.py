"""Validation of the teacher's texts with Great Expectations 1.x, called directly: verdicts, result, gate, data docs.

Rows stream from the two artifacts through ``proxykd.data.judging`` into the validated artifact and, without their
texts, into a temporary SQLite table. The expectations are SQL aggregates over that table, so memory does not grow
with the rows. Critical expectations are the gate; the others are reported. A closed gate does not raise here:
callers save both artifacts first and then call ``require_open_gate``, so that the user can read what was wrong.

Great Expectations takes seconds to import: it is imported when it is called.
"""

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from sqlite3 import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from proxykd.artifacts import (
    CompletionSet,
    PromptSet,
    QuarantineSet,
    ValidatedSet,
    ValidationResult,
    batched,
    read_json,
    seal,
    write_json,
)
from proxykd.config import RunSpec
from proxykd.data.judging import Environment, JudgedRow, judge
from proxykd.data.quality import Verdict
from proxykd.data.quarantine import build_quarantine
from proxykd.data.scratch import scratch_database
from proxykd.data.summary import RULES, Summary
from proxykd.exceptions import GateError
from proxykd.progress import stage, track
from proxykd.records import Outcome, ValidatedRow, hash_json
from steps.adapters.validation_page import render_page

if TYPE_CHECKING:
    from great_expectations.core import ExpectationSuiteValidationResult

RESULT, PAGE = "result.json", "index.html"

TABLE = "completions"
COLUMNS = {
    "prompt_id": "TEXT",
    "sample_idx": "INTEGER",
    "outcome": "TEXT",
    "finish_reason": "TEXT",
    "verdict": "TEXT",
    "num_chars": "INTEGER",
    "num_tokens": "INTEGER",
    "is_kept": "INTEGER",
    **{rule.value: "INTEGER" for rule in RULES},
}
"""Of the rules, 1 = broken, 0 = kept, NULL = not measured."""

FINISH_REASONS = ("", "stop", "eos", "end_turn", "stop_sequence", "length", "max_tokens", "content_filter")
"""What endpoints are known to say."""

_RESULT_FORMAT = {"result_format": "SUMMARY", "partial_unexpected_count": 5}
_OFFENDERS_IN_MESSAGE = 5
_EXCERPT_IN_MESSAGE = 100
_SEVERITY = {"warn": "warning", "fail": "critical"}


class Validation(NamedTuple):
    """The artifacts of a validation.

    Attributes:
        validated: Every row with its verdict.
        result: The gate, counts, the Great Expectations result and its page.
        quarantine: The rows that may not teach, for a person to look at.
    """

    validated: ValidatedSet
    result: ValidationResult
    quarantine: QuarantineSet


class Folders(NamedTuple):
    """Where the artifacts of a validation go: the folder of each, by the names in ``Validation``."""

    validated: Path
    docs: Path
    quarantine: Path


def validate(
    prompts: PromptSet, completions: CompletionSet, run: RunSpec, output: Folders, around: Environment
) -> Validation:
    """Judge every row, and the whole.

    Args:
        prompts: The questions.
        completions: At least one for each prompt, in the order of ``prompts``.
        run: Its sections ``validation`` and ``split`` are used.
        output: Where the artifacts go.
        around: Scratch space and what the rules need to run.

    Returns:
        The artifacts, sealed, whether the gate is open or closed.
    """
    made_from = {
        "prompts": prompts.hash,
        "completions": completions.hash,
        "validation": hash_json([run.validation.model_dump(mode="json"), run.split.model_dump(mode="json")]),
    }
    validated, result, summary = ValidatedSet(output.validated), ValidationResult(output.docs), Summary()
    table_path = around.scratch / "expectations.sqlite"
    with scratch_database(table_path) as database:
        judged = judge(prompts, completions, run.validation, run.split, around)
        validated.write(_record(track(judged, "Validating", total=completions.num_rows), database, summary))
    seal(validated, made_from)
    quarantine = build_quarantine(validated, output=output.quarantine)
    content = summary.to_json()
    with stage("Great Expectations", unit="expectation") as progress:
        expectations = list(_expectations(run, content["rules"]))
        checked = check_table(table_path, TABLE, expectations)
        progress.advance(len(checked.results))
    table_path.unlink()
    _write_result(result, content, run, checked)
    seal(result, {**made_from, "validated": validated.hash})
    return Validation(validated, result, quarantine)


def require_open_gate(result: ValidationResult) -> None:
    """Go on only if the gate is open.

    Raises:
        GateError: with every reason and the first offending rows.
    """
    found = read_json(result.path / RESULT)
    if found["gate"]["is_open"]:
        return
    reasons = "\n".join(f"  {reason}" for reason in found["gate"]["reasons"])
    rows = "\n".join(map(_describe, found["offending_rows"][:_OFFENDERS_IN_MESSAGE]))
    first = f"\nfirst rows that may not teach:\n{rows}" if rows else ""
    raise GateError(
        f"the validation gate is closed:\n{reasons}{first}\n"
        f"read {result.path / PAGE}; then mend the data, or change the section `validation` of the specification"
    )


def check_table(path: Path, table: str, expectations: list[Any]) -> "ExpectationSuiteValidationResult":
    """The Great Expectations result of a table in the SQLite file ``path``."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside Great Expectations, which its users cannot mend
        import great_expectations as gx

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        source = context.data_sources.add_sqlite(table, connection_string=f"sqlite:///{path}")
        batches = source.add_table_asset(table, table_name=table).add_batch_definition_whole_table(table)
        suite = context.suites.add(gx.ExpectationSuite(name=table, expectations=expectations))
        definition = gx.ValidationDefinition(name=table, data=batches, suite=suite)
        try:
            return context.validation_definitions.add(definition).run(result_format=_RESULT_FORMAT)
        finally:
            source.get_execution_engine().close()


def import_expectations() -> Any:
    """The module of Great Expectations' expectations, imported without its deprecation warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import great_expectations.expectations

        return great_expectations.expectations


def _expectations(run: RunSpec, counts: Mapping[str, Mapping[str, int]]) -> Iterator[Any]:
    """The suite: what the table must be, the share of rows that may teach, and the share that breaks each rule.

    Args:
        run: The thresholds.
        counts: Rule -> rows measured; a rule that was measured on no row is not in the suite.
    """
    gxe = import_expectations()
    spec, critical = run.validation, {"severity": "critical"}
    yield gxe.ExpectTableColumnsToMatchSet(column_set=list(COLUMNS), notes="the table has its columns", **critical)
    yield gxe.ExpectTableRowCountToBeBetween(min_value=1, notes="there are rows", **critical)
    yield gxe.ExpectCompoundColumnsToBeUnique(
        column_list=["prompt_id", "sample_idx"], notes="every sample of a prompt occurs once", **critical
    )
    yield gxe.ExpectColumnValueLengthsToEqual(column="prompt_id", value=16, notes="ids have 16 digits", **critical)
    yield gxe.ExpectColumnValuesToBeInSet(
        column="outcome", value_set=[o.value for o in Outcome], notes="every outcome is known", **critical
    )
    yield gxe.ExpectColumnMeanToBeBetween(
        column="is_kept", min_value=spec.min_keep_fraction, max_value=1.0, notes="validation.min_keep_fraction",
        **critical,
    )  # fmt: skip
    yield gxe.ExpectColumnValuesToBeInSet(
        column="finish_reason", value_set=list(FINISH_REASONS), notes="known finish reasons", severity="info"
    )
    for name in (rule.value for rule in RULES if counts[rule]["measured"]):
        if (bound := spec.rules[name].max_fraction) is not None:
            yield gxe.ExpectColumnMeanToBeBetween(
                column=name, min_value=0.0, max_value=bound, notes=f"validation.rules.{name}.max_fraction",
                severity=_SEVERITY[spec.rules[name].on_breach],
            )  # fmt: skip


def _record(rows: Iterable[JudgedRow], database: Connection, summary: Summary) -> Iterator[ValidatedRow]:
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    database.execute(f"CREATE TABLE {TABLE} ({columns})")
    insert = f"INSERT INTO {TABLE} VALUES ({', '.join('?' * len(COLUMNS))})"
    for batch in batched(rows, 1024):
        database.executemany(insert, map(_columns_of, batch))
        for judged in batch:
            summary.add(judged)
            yield judged.row


def _columns_of(judged: JudgedRow) -> tuple[str | int | None, ...]:
    row, broken = judged.row, {found.rule for found in judged.row.findings}
    return (
        row.prompt_id,
        row.sample_idx,
        row.outcome.value,
        judged.finish_reason,
        row.verdict,
        len(row.text),
        judged.num_tokens,
        int(row.verdict == Verdict.KEEP),
        *(int(rule in broken) if rule in judged.measured else None for rule in RULES),
    )


def _write_result(
    result: ValidationResult, counts: dict[str, Any], run: RunSpec, checked: "ExpectationSuiteValidationResult"
) -> None:
    expectations = [plain(item) for item in checked.to_json_dict()["results"]]
    broken = {name: [item for item in expectations if item["severity"] == name and not item["success"]]
              for name in ("critical", "warning")}  # fmt: skip
    content = {
        "gate": {"is_open": not broken["critical"], "reasons": [reason_of(item) for item in broken["critical"]]},
        "warnings": [reason_of(item) for item in broken["warning"]],
        **counts,
        "thresholds": run.validation.rules.model_dump(mode="json"),
        "great_expectations": {"success": checked.success, "results": expectations},
    }
    write_json(result.path / RESULT, content)
    (result.path / PAGE).write_text(render_page(content, checked), encoding="utf-8")


def plain(item: dict[str, Any]) -> dict[str, Any]:
    """An expectation and its result without random ids and times: the same rows give the same file."""
    config = item["expectation_config"]
    kwargs = {key: value for key, value in config["kwargs"].items() if key != "batch_id"}
    return {
        "success": item["success"],
        "type": config["type"],
        "severity": config["severity"],
        "notes": config["notes"],
        "kwargs": kwargs,
        "result": item["result"],
        "exception": item["exception_info"].get("exception_message"),
    }


def reason_of(item: dict[str, Any]) -> str:
    """What an expectation wanted and what it found, in a line."""
    kwargs, notes, observed = item["kwargs"], item["notes"], item["result"].get("observed_value")
    if item["type"] == "expect_column_mean_to_be_between" and observed is not None:
        low, high = kwargs["min_value"], kwargs["max_value"]
        bound = f"at most {high:.1%}" if low == 0.0 else f"at least {low:.1%}"
        return f"expected {kwargs['column']} for {bound} of the rows ({notes}), found {observed:.2%}"
    return f"expected that {notes} ({item['type']}), found {item['result'] if observed is None else observed}"


def _describe(row: dict[str, Any]) -> str:
    also = f" (also {', '.join(row['also'])})" if row["also"] else ""
    why = row["reason"][:_EXCERPT_IN_MESSAGE]
    return f"  {row['verdict']}: prompt {row['prompt_id']}, sample {row['sample_idx']}: {why}{also}"

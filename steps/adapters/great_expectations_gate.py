"""Validation of the teacher's texts with Great Expectations 1.x, called directly: verdicts, result, gate, data docs.

Rows stream from the two artifacts through ``proxykd.data.judging`` into the validated artifact and, without their
texts, into a temporary SQLite table. The expectations are SQL aggregates over that table, so memory does not grow
with the rows. Critical expectations are the gate; the others are reported. A closed gate does not raise here:
callers save both artifacts first and then call ``require_open_gate``, so that the user can read what was wrong.

Great Expectations takes seconds to import: it is imported when it is called.
"""

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from sqlite3 import Connection
from typing import TYPE_CHECKING, Any, NamedTuple

from proxykd.artifacts import (
    CompletionSet,
    PromptSet,
    ValidatedSet,
    ValidationResult,
    batched,
    read_json,
    seal,
    write_json,
)
from proxykd.config import RunSpec
from proxykd.data.judging import JudgedRow, judge, question_of
from proxykd.data.quality import Verdict
from proxykd.data.scratch import scratch_database
from proxykd.exceptions import GateError
from proxykd.progress import stage, track
from proxykd.records import Outcome, Side, ValidatedRow, hash_json
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
    "is_kept": "INTEGER",
    "is_failed": "INTEGER",
    "is_refused": "INTEGER",
    "is_empty": "INTEGER",
    "is_duplicate": "INTEGER",
    "is_near_duplicate": "INTEGER",
    "has_overlap": "INTEGER",
}

FINISH_REASONS = ("", "stop", "eos", "end_turn", "stop_sequence", "length", "max_tokens", "content_filter")
"""What endpoints are known to say."""

_RESULT_FORMAT = {"result_format": "SUMMARY", "partial_unexpected_count": 5}
_OFFENDERS_PER_VERDICT = 3
_OFFENDERS_IN_MESSAGE = 5
_EXCERPT_CHARS = 200
_EXCERPT_IN_MESSAGE = 100


class Validation(NamedTuple):
    """The two artifacts of a validation.

    Attributes:
        validated: Every row with its verdict.
        result: The gate, counts, the Great Expectations result and its page.
    """

    validated: ValidatedSet
    result: ValidationResult


@dataclass
class _Summary:
    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    kept_by_side: Counter[str] = field(default_factory=Counter)
    measures: Counter[str] = field(default_factory=Counter)
    offenders: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, judged: JudgedRow) -> None:
        row = judged.row
        self.outcomes[row.outcome] += 1
        self.verdicts[row.verdict] += 1
        self.measures.update(name for name, holds in judged.measures._asdict().items() if holds)
        if row.verdict == Verdict.KEEP:
            self.kept_by_side[judged.side] += 1
        elif len(found := self.offenders.setdefault(row.verdict, [])) < _OFFENDERS_PER_VERDICT:
            found.append(_offender(judged))

    def to_json(self) -> dict[str, Any]:
        return {
            "num_rows": self.verdicts.total(),
            "outcomes": {outcome.value: self.outcomes[outcome] for outcome in Outcome},
            "verdicts": {verdict.value: self.verdicts[verdict] for verdict in Verdict},
            "kept_by_side": {side.value: self.kept_by_side[side] for side in Side},
            "measures": {name: self.measures[name] for name in ("is_duplicate", "is_near_duplicate", "has_overlap")},
            "offending_rows": [row for verdict in Verdict for row in self.offenders.get(verdict, [])],
        }


def validate(
    prompts: PromptSet,
    completions: CompletionSet,
    run: RunSpec,
    *,
    output: Path,
    docs: Path,
    scratch: Path,
) -> Validation:
    """Judge every row, and the whole.

    Args:
        prompts: The questions.
        completions: At least one for each prompt, in the order of ``prompts``.
        run: Its sections ``validation`` and ``split`` are used.
        output: Folder of the rows.
        docs: Folder of the result and its page.
        scratch: Folder for temporary files; they are removed.

    Returns:
        Both artifacts, sealed, whether the gate is open or closed.
    """
    made_from = {
        "prompts": prompts.hash,
        "completions": completions.hash,
        "validation": hash_json([run.validation.model_dump(mode="json"), run.split.model_dump(mode="json")]),
    }
    validated, result, summary = ValidatedSet(output), ValidationResult(docs), _Summary()
    table_path = scratch / "expectations.sqlite"
    with scratch_database(table_path) as database:
        judged = judge(prompts, completions, run.validation, run.split, scratch=scratch)
        validated.write(_record(track(judged, "Validating", total=completions.num_rows), database, summary))
    seal(validated, made_from)
    with stage("Great Expectations", unit="expectation") as progress:
        checked = check_table(table_path, run)
        progress.advance(len(checked.results))
    table_path.unlink()
    _write_result(result, summary, checked)
    seal(result, {**made_from, "validated": validated.hash})
    return Validation(validated, result)


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


def check_table(path: Path, run: RunSpec) -> "ExpectationSuiteValidationResult":
    """The Great Expectations result of the table in the SQLite file ``path``."""
    os.environ.setdefault("GX_ANALYTICS_ENABLED", "false")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside Great Expectations, which its users cannot mend
        import great_expectations as gx

        context = gx.get_context(mode="ephemeral")
        context.variables.progress_bars = {"globally": False}
        source = context.data_sources.add_sqlite(TABLE, connection_string=f"sqlite:///{path}")
        batches = source.add_table_asset(TABLE, table_name=TABLE).add_batch_definition_whole_table(TABLE)
        suite = context.suites.add(gx.ExpectationSuite(name=TABLE, expectations=list(_expectations(run))))
        definition = gx.ValidationDefinition(name=TABLE, data=batches, suite=suite)
        try:
            return context.validation_definitions.add(definition).run(result_format=_RESULT_FORMAT)
        finally:
            source.get_execution_engine().close()


def _expectations(run: RunSpec) -> Iterator[Any]:
    import great_expectations.expectations as gxe
    from great_expectations.expectations.row_conditions import Column

    spec, is_ok = run.validation, Column("outcome") == Outcome.OK.value
    critical = {"severity": "critical"}
    yield gxe.ExpectTableColumnsToMatchSet(column_set=list(COLUMNS), notes="the table has its columns", **critical)
    yield gxe.ExpectTableRowCountToBeBetween(min_value=1, notes="there are rows", **critical)
    yield gxe.ExpectCompoundColumnsToBeUnique(
        column_list=["prompt_id", "sample_idx"], notes="every sample of a prompt occurs once", **critical
    )
    yield gxe.ExpectColumnValueLengthsToEqual(column="prompt_id", value=16, notes="ids have 16 digits", **critical)
    yield gxe.ExpectColumnValuesToBeInSet(
        column="outcome", value_set=[o.value for o in Outcome], notes="every outcome is known", **critical
    )
    for column, minimum, maximum, name in (
        ("is_kept", spec.min_keep_fraction, 1.0, "min_keep_fraction"),
        ("is_failed", 0.0, spec.max_failed_fraction, "max_failed_fraction"),
        ("is_refused", 0.0, spec.max_refused_fraction, "max_refused_fraction"),
    ):
        yield gxe.ExpectColumnMeanToBeBetween(
            column=column, min_value=minimum, max_value=maximum, notes=f"validation.{name}", **critical
        )
    yield gxe.ExpectColumnValuesToBeInSet(
        column="finish_reason", value_set=list(FINISH_REASONS), notes="known finish reasons", severity="info"
    )
    yield gxe.ExpectColumnValuesToBeBetween(
        column="num_chars", min_value=spec.min_chars, max_value=spec.max_chars, row_condition=is_ok,
        notes="usable lengths, in characters", severity="warning",
    )  # fmt: skip
    for column in ("is_empty", "is_duplicate", "is_near_duplicate", "has_overlap"):
        yield gxe.ExpectColumnValuesToBeInSet(column=column, value_set=[0], notes="no such rows", severity="warning")


def _record(rows: Iterable[JudgedRow], database: Connection, summary: _Summary) -> Iterator[ValidatedRow]:
    columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
    database.execute(f"CREATE TABLE {TABLE} ({columns})")
    insert = f"INSERT INTO {TABLE} VALUES ({', '.join('?' * len(COLUMNS))})"
    for batch in batched(rows, 1024):
        database.executemany(insert, map(_columns_of, batch))
        for judged in batch:
            summary.add(judged)
            yield judged.row


def _columns_of(judged: JudgedRow) -> tuple[str | int, ...]:
    row, verdict = judged.row, judged.row.verdict
    return (
        row.prompt_id,
        row.sample_idx,
        row.outcome.value,
        judged.finish_reason,
        verdict,
        len(row.text),
        int(verdict == Verdict.KEEP),
        int(verdict == Verdict.FAILED),
        int(verdict == Verdict.REFUSED),
        int(verdict == Verdict.EMPTY),
        *map(int, judged.measures),
    )


def _offender(judged: JudgedRow) -> dict[str, Any]:
    row = judged.row
    return {
        "prompt_id": row.prompt_id,
        "sample_idx": row.sample_idx,
        "verdict": row.verdict,
        "reason": judged.reason,
        "question": question_of(row.messages)[:_EXCERPT_CHARS],
        "text": row.text[:_EXCERPT_CHARS],
    }


def _write_result(result: ValidationResult, summary: _Summary, checked: "ExpectationSuiteValidationResult") -> None:
    expectations = [_plain(item) for item in checked.to_json_dict()["results"]]
    reasons = [_reason(item) for item in expectations if item["severity"] == "critical" and not item["success"]]
    content = {
        "gate": {"is_open": not reasons, "reasons": reasons},
        **summary.to_json(),
        "great_expectations": {"success": checked.success, "results": expectations},
    }
    write_json(result.path / RESULT, content)
    (result.path / PAGE).write_text(render_page(content, checked), encoding="utf-8")


def _plain(item: dict[str, Any]) -> dict[str, Any]:
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


def _reason(item: dict[str, Any]) -> str:
    kwargs, notes, observed = item["kwargs"], item["notes"], item["result"].get("observed_value")
    if item["type"] == "expect_column_mean_to_be_between" and observed is not None:
        bounds = f"{kwargs['min_value']:.1%} to {kwargs['max_value']:.1%}"
        return f"expected {kwargs['column']} for {bounds} of the rows ({notes}), found {observed:.1%}"
    return f"expected that {notes} ({item['type']}), found {item['result'] if observed is None else observed}"


def _describe(row: dict[str, Any]) -> str:
    why = (row["reason"] or row["text"])[:_EXCERPT_IN_MESSAGE]
    return f"  {row['verdict']}: prompt {row['prompt_id']}, sample {row['sample_idx']}: {why!r}"

"""The teacher engine alone, for who wants answers to many questions and nothing else of the project.

    from proxykd.querying import query

    teacher = {"kind": "openai", "model": "gpt-4o-mini", "api_key": "${OPENAI_API_KEY}", "budget": {"usd": 5}}
    summary = query("questions.jsonl", teacher, output="answers.jsonl")
    print(summary.outcomes, summary.cost_usd)

The journal makes it safe to call this again after a crash, a kill or a raised cap: it asks only what is missing, and
writes the same file.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.artifacts import CompletionSet, PromptSet, batched, read_json, seal
from proxykd.config.loading import load_query
from proxykd.config.specification import QuerySpec
from proxykd.exceptions import InputError, TeacherError
from proxykd.records import Completion, Message, Prompt, hash_json
from proxykd.teacher.query import SUMMARY, collect_prompts, query_teacher
from proxykd.workspace import Workspace

KINDS = {".jsonl": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}
"""Ending of a file of prompts -> its kind."""

_OF_PROMPT = ["prompt_id", "messages", "task", "reference"]
_OF_COMPLETION = [name for name in Completion.schema.names if name != "stage"]
SCHEMA = pa.schema(
    [*map(Prompt.schema.field, _OF_PROMPT), *(Completion.schema.field(name) for name in _OF_COMPLETION[1:])]
)
"""Columns of the answers; all are of one teacher."""

_BATCH = 2000

Question = str | Sequence[Mapping[str, str]]


@dataclass(frozen=True, slots=True)
class QuerySummary:
    """What came of asking.

    Attributes:
        path: The file of answers.
        num_prompts: Questions.
        num_samples: Answers to each.
        outcomes: How many answers are ok, refused, truncated, filtered, failed.
        prompt_tokens: In all.
        completion_tokens: In all.
        cost_usd: At the price that is known; 0 = none is.
    """

    path: Path
    num_prompts: int
    num_samples: int
    outcomes: dict[str, int]
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float


def query(
    prompts: Path | str | Mapping[str, Any] | Sequence[Question],
    teacher: Mapping[str, Any],
    *,
    output: Path | str,
    journal: Path | str | None = None,
    seed: int = 0,
) -> QuerySummary:
    """Ask a teacher all questions, once, and write the answers.

    Args:
        prompts: A file (.jsonl, .csv, .tsv, .parquet), a section ``prompts`` of a run specification, or the questions
            themselves: texts, or lists of messages with role and content.
        teacher: A section ``teacher`` of a run specification.
        output: File that ends in .jsonl or .parquet: a row an answer, in the order of the questions. One that holds
            answers already is replaced.
        journal: Remembers every answer; None = that of the workspace (``.proxykd`` below the current folder).
        seed: Of the run; another one asks for other samples.

    Raises:
        ConfigError: if the sections cannot be used.
        InputError: if the questions cannot be read, or the output is another file than one of answers.
        TeacherError: if the endpoint cannot be used, a cap is reached or calls got no answer; what there is goes into
            ``partial_of(output)``, and the same call goes on from there.
    """
    where: dict[str, Any] = {"output": Path(output), "journal": None if journal is None else Path(journal)}
    if isinstance(prompts, str | Path | Mapping):
        spec = load_query({"seed": seed, "prompts": prompts_section(prompts), "teacher": teacher})
        return run_query(spec, **where)
    no_file = {"kind": "jsonl", "path": "questions"}
    return run_query(load_query({"seed": seed, "prompts": no_file, "teacher": teacher}), **where, questions=prompts)


def run_query(
    spec: QuerySpec, *, output: Path, journal: Path | None = None, questions: Sequence[Question] | None = None
) -> QuerySummary:
    """As ``query``, of a specification.

    Args:
        spec: Prompts and teacher.
        output: File of the answers.
        journal: None = that of the workspace.
        questions: In place of ``spec.prompts``; None = those count.
    """
    _check_output(output)
    workspace = Workspace.default()
    with tempfile.TemporaryDirectory(prefix="proxykd-query-") as folder:
        asked = _collect(spec, Path(folder) / "prompts", questions)
        path = journal or workspace.journal
        try:
            completions = query_teacher(asked, spec, journal_path=path, output=Path(folder) / "answers")
        except TeacherError as error:
            if not path.exists():
                raise
            part = query_teacher(asked, spec, journal_path=path, output=Path(folder) / "part", asks=False)
            found = read_json(part.path / SUMMARY)["outcomes"]
            if sum(found.values()) == found["failed"]:
                raise
            _write(partial_of(output), asked, part)
            raise type(error)(f"{error}; what there is, {_told(found)}, is in {partial_of(output)}") from None
        _write(output, asked, completions)
        partial_of(output).unlink(missing_ok=True)
        return QuerySummary(path=output, **read_json(completions.path / SUMMARY))


def partial_of(output: Path) -> Path:
    """Where the answers go that there are when a query ends before its time; the output itself stays as it was."""
    return output.with_name(f"{output.stem}.partial{output.suffix}")


def _told(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in outcomes.items() if count)


def prompts_section(prompts: Path | str | Mapping[str, Any]) -> dict[str, Any]:
    """The section ``prompts`` of a run specification for a file, by its ending.

    Raises:
        InputError: if its ending tells no kind.
    """
    if isinstance(prompts, Mapping):
        return dict(prompts)
    path = Path(prompts)
    if (kind := KINDS.get(path.suffix)) is None:
        raise InputError(
            f"expected prompts in a file that ends in {', '.join(KINDS)}, got {path.name!r}; for other data give the "
            "section prompts of a run specification"
        )
    return {"kind": kind, "path": str(path), **({"delimiter": "\t"} if path.suffix == ".tsv" else {})}


def _collect(spec: QuerySpec, folder: Path, questions: Sequence[Question] | None) -> PromptSet:
    if questions is None:
        return collect_prompts(spec.prompts, seed=spec.seed, output=folder)
    prompts = PromptSet(folder)
    prompts.write(_prompt(number, question) for number, question in enumerate(questions))
    seal(prompts, {"prompts": hash_json([prompt.prompt_id for prompt in prompts.rows()])})
    return prompts


def _prompt(number: int, question: Question) -> Prompt:
    if isinstance(question, str):
        return Prompt.build([Message("user", question)], source=f"question {number}")
    return Prompt.build([Message(turn["role"], turn["content"]) for turn in question], source=f"question {number}")


def _check_output(path: Path) -> None:
    if path.suffix not in (".jsonl", ".parquet"):
        raise InputError(f"expected an output that ends in .jsonl or .parquet, got {path.name!r}; name one")
    if not path.parent.is_dir():
        raise InputError(f"expected the folder {path.parent} for the output, found none; make it")
    if path.exists() and not _holds_answers(path):
        raise InputError(f"expected a new file, or one of answers, at {path}, found another one; name another output")


def _holds_answers(path: Path) -> bool:
    try:
        if path.suffix == ".parquet":
            return bool(pq.read_schema(path).equals(SCHEMA))
        with path.open(encoding="utf-8") as file:
            line = file.readline()
        return not line or set(json.loads(line)) == set(SCHEMA.names)
    except (OSError, ValueError, TypeError, pa.ArrowException):
        return False


def _write(path: Path, prompts: PromptSet, completions: CompletionSet) -> None:
    """Write the answers beside the file's place and then put them there, so that it is whole at any moment."""
    part = path.with_name(f".{path.name}.part")
    rows = _rows(prompts, completions)
    if path.suffix == ".parquet":
        with pq.ParquetWriter(part, SCHEMA) as writer:
            for batch in batched(rows, _BATCH):
                writer.write_table(pa.Table.from_pylist(list(batch), schema=SCHEMA))
    else:
        with part.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    part.replace(path)


def _rows(prompts: PromptSet, completions: CompletionSet) -> Iterator[dict[str, Any]]:
    groups = groupby(_plain_rows(completions, _OF_COMPLETION), key=itemgetter("prompt_id"))
    for prompt, (_, samples) in zip(_plain_rows(prompts, _OF_PROMPT), groups, strict=True):
        yield from ({**prompt, **sample} for sample in samples)


def _plain_rows(rows: PromptSet | CompletionSet, columns: list[str]) -> Iterator[dict[str, Any]]:
    return (row for batch in rows.batches(columns=columns) for row in batch.to_pylist())

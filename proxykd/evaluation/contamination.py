"""Were the questions of a task trained on? Those that the models were asked, against every row that teaches.

The validation looks for the held-out prompts and the questions of files (``validation.evaluation_files``), which are
known before anything is trained. The questions of a hub's data set or of a generator are known when they have been
asked: they are looked for here, in the same way. A row overlaps if its prompt or its text shares a run of
``validation.overlap_ngram`` words with a question or its reference; a question too short to have one, if the prompt
says the same words.

    report["facts"]["contamination"] = {
        tasks, num_questions, measured: rows that teach, broken: those that overlap, examples: a few of these in words,
    }

The sets are on disk; in memory are a filter of fixed size and 8 bytes a short question.
"""

from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from proxykd.artifacts import SplitSet, ValidatedSet, batched
from proxykd.config import RunSpec
from proxykd.config.evaluation import HarnessTaskSpec, ReasoningGymTaskSpec
from proxykd.data.duplicates import CorpusIndex
from proxykd.data.judging import question_of
from proxykd.data.measuring import Measurer
from proxykd.data.quality import hash_word_runs
from proxykd.data.scratch import scratch_database
from proxykd.data.splits import TRAINING_SIDES, select_rows
from proxykd.progress import stage
from proxykd.records import ValidatedRow, hash_text

_ROWS_AT_ONCE = 1024
_MAX_EXAMPLES = 5


def unguarded_tasks(run: RunSpec) -> tuple[str, ...]:
    """The tasks whose questions the validation could not know: of the harness, and of generators."""
    return tuple(task.name for task in run.evaluation.tasks if isinstance(task, HarnessTaskSpec | ReasoningGymTaskSpec))


def measure_contamination(
    answers: Path, validated: ValidatedSet, splits: SplitSet, run: RunSpec, *, scratch: Path
) -> dict[str, Any]:
    """``facts["contamination"]``; {} where the validation has seen all questions.

    Args:
        answers: ``answers.parquet``.
        validated: The teacher's texts.
        splits: Which of them teach.
        run: Its tasks and the validation's rules.
        scratch: Folder for a temporary database.
    """
    if not (tasks := unguarded_tasks(run)):
        return {}
    num_words, short, count = run.validation.overlap_ngram, set[int](), 0
    with (
        scratch_database(scratch / "questions.sqlite") as database,
        stage("looking for questions", unit="row") as progress,
    ):
        index = CorpusIndex(database, near_duplicate_threshold=1.0)
        for row in _questions(answers, tasks):
            name, count = f"question {row['prompt_id']} of {row['task']}", count + 1
            for what, text in ((name, row["question"]), (f"the reference of {name}", row["reference"] or "")):
                index.add_evaluation(hash_word_runs(text, num_words), what)
            if not len(hash_word_runs(row["question"], num_words)):
                short.add(_words_key(row["question"]))
        measurer = Measurer(run.validation, index.evaluation, ())
        measured, broken, examples = 0, 0, list[str]()
        for rows in batched(select_rows(validated, splits, TRAINING_SIDES), _ROWS_AT_ONCE):
            found = [one for one in _overlaps(rows, measurer, index, short) if one]
            measured, broken = measured + len(rows), broken + len(found)
            examples += found[: _MAX_EXAMPLES - len(examples)]
            progress.advance(len(rows))
    return {
        "tasks": list(tasks),
        "num_questions": count,
        "measured": measured,
        "broken": broken,
        "examples": examples,
    }


def _questions(answers: Path, tasks: Collection[str]) -> Iterator[Mapping[str, Any]]:
    """The questions of some tasks as the first model was asked them, one row an answer."""
    with pq.ParquetFile(answers) as file:
        first: tuple[str, int] | None = None
        columns = ["arm", "seed", "task", "prompt_id", "sample_idx", "question", "reference"]
        for batch in file.iter_batches(columns=columns):
            for row in batch.to_pylist():
                first = first or (row["arm"], row["seed"])
                if (row["arm"], row["seed"]) == first and row["task"] in tasks and not row["sample_idx"]:
                    yield row


def _overlaps(
    rows: Collection[ValidatedRow], measurer: Measurer, index: CorpusIndex, short: Collection[int]
) -> Iterator[str]:
    """What each row shares with a question; "" = nothing."""
    prompts = [question_of(row.messages) for row in rows]
    runs = zip(measurer.find_runs(prompts), measurer.find_runs([row.text for row in rows]), strict=True)
    for row, prompt, (in_prompt, in_text) in zip(rows, prompts, runs, strict=True):
        found = index.find_overlap(in_prompt) or index.find_overlap(in_text)
        if not found and short and _words_key(prompt) in short:
            found = "the prompt is a question of a task, word for word"
        yield f"prompt {row.prompt_id}: {found}" if found else ""


def _words_key(text: str) -> int:
    return int(hash_text(" ".join(text.casefold().split()))[:16], 16)

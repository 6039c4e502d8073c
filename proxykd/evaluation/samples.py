"""Answers side by side for a person to read: the prompts on which the student lost most come first.

A regression is a task that the bar answered right and the student did not; among equals, the prompt whose held-out NLL
a token rose most. Nothing is generated here: what the arms answered stands in ``predictions.parquet``.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxykd.artifacts import Evaluation, SplitSet, ValidatedSet
from proxykd.data.splits import select_rows
from proxykd.evaluation.rules import CANDIDATE, CHAMPION
from proxykd.records import Side

BASELINE = "sft"
SHOWN_SAMPLES = 12
SHOWN_CHARS = 700
"""Characters of one text on the page."""

_COLUMNS = ["arm", "seed", "prompt_id", "nll_sum", "num_tokens", "answers"]


@dataclass(slots=True)
class _Found:
    """What one arm made of one prompt: NLL a token, and task -> whether its answer was right."""

    nll: float | None
    is_correct: dict[str, bool] = field(default_factory=dict)


def worst_samples(
    evaluation: Evaluation, champion: Path, validated: ValidatedSet, splits: SplitSet
) -> list[dict[str, Any]]:
    """The prompts on which the candidate lost most to the champion, or to the SFT arm where there is none.

    Args:
        evaluation: Of the candidate.
        champion: File of ``PREDICTIONS`` of the champion; need not exist.
        validated: The teacher's texts.
        splits: Which prompts are held out.
    """
    files = [evaluation.path / "predictions.parquet", *([champion] if champion.exists() else [])]
    against = CHAMPION if champion.exists() else BASELINE
    return collect_samples(files, validated, splits, candidate=CANDIDATE, against=against)


def collect_samples(
    predictions: Sequence[Path],
    validated: ValidatedSet,
    splits: SplitSet,
    *,
    candidate: str,
    against: str,
    limit: int = SHOWN_SAMPLES,
) -> list[dict[str, Any]]:
    """The prompts on which ``candidate`` lost most to ``against``.

    Args:
        predictions: Files of ``PREDICTIONS``; the first seed of each arm is shown.
        validated: The teacher's texts.
        splits: Which prompts are held out.
        candidate: The arm that is judged.
        against: The arm that it is compared with; where no file has it, the samples are the candidate's worst.
        limit: Most samples.

    Returns:
        One mapping a sample, the worst first: ``prompt_id``, ``task`` ("" = none), ``question``, ``reference``,
        ``teacher`` (its text), ``against``, ``change`` (``is_lost``: right before and wrong now; ``nll``: by how much
        the NLL a token differs, None if it was not measured) and ``answers``, one mapping an arm: ``arm``, ``text``
        (None = it was not asked), ``is_correct``, ``nll``.
    """
    ours, theirs = _measured(predictions, candidate), _measured(predictions, against)
    worst = sorted(_changes(ours, theirs), key=lambda one: one["rank"])[:limit]
    wanted = {one["prompt_id"] for one in worst}
    answers, texts = _answers(predictions, wanted), _texts(validated, splits, wanted)
    return [
        {
            "prompt_id": one["prompt_id"],
            "task": one["task"],
            "against": against if theirs else "",
            "change": one["change"],
            **texts[one["prompt_id"]],
            "answers": [
                {"arm": arm, **_answer(rows.get(one["prompt_id"], {}), one["task"])} for arm, rows in answers.items()
            ],
        }
        for one in worst
        if one["prompt_id"] in texts
    ]


def _changes(ours: dict[str, _Found], theirs: dict[str, _Found]) -> Iterator[dict[str, Any]]:
    """Every prompt and task with how much was lost on it; ``rank`` is small where much was."""
    for prompt_id, found in ours.items():
        other = theirs.get(prompt_id, _Found(None))
        nll = found.nll - other.nll if found.nll is not None and other.nll is not None else None
        for task in found.is_correct or {"": True}:
            is_right, was_right = found.is_correct.get(task, True), other.is_correct.get(task, False)
            is_lost = was_right and not is_right
            by = nll if nll is not None else found.nll if found.nll is not None else 0.0
            yield {
                "prompt_id": prompt_id,
                "task": task,
                "change": {"is_lost": is_lost, "nll": nll},
                "rank": (not is_lost, is_right, -by, prompt_id, task),
            }


def _rows(predictions: Sequence[Path], column: str, values: Collection[str]) -> Iterator[dict[str, Any]]:
    """Rows of the first seed of each arm whose ``column`` is one of ``values``."""
    wanted, seeds = pa.array(sorted(values), pa.string()), dict[str, int]()
    for path in predictions:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(columns=_COLUMNS):
                for row in batch.filter(pc.is_in(batch[column], value_set=wanted)).to_pylist():
                    # The seeds of an arm stand one after the other: its first row has the first one.
                    if seeds.setdefault(row["arm"], row["seed"]) == row["seed"]:
                        yield row


def _measured(predictions: Sequence[Path], arm: str) -> dict[str, _Found]:
    return {
        row["prompt_id"]: _Found(_nll(row), {one["task"]: bool(one["is_correct"]) for one in row["answers"] or ()})
        for row in _rows(predictions, "arm", [arm])
    }


def _answers(predictions: Sequence[Path], wanted: Collection[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """Arm -> prompt id -> its row."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for row in _rows(predictions, "prompt_id", wanted):
        found.setdefault(row["arm"], {})[row["prompt_id"]] = row
    return found


def _answer(row: dict[str, Any], task: str) -> dict[str, Any]:
    given: dict[str, Any] = next((one for one in row.get("answers") or () if one["task"] == task), {})
    return {"text": given.get("text"), "is_correct": given.get("is_correct"), "nll": _nll(row) if row else None}


def _nll(row: dict[str, Any]) -> float | None:
    return row["nll_sum"] / row["num_tokens"] if row["num_tokens"] and row["nll_sum"] is not None else None


def _texts(validated: ValidatedSet, splits: SplitSet, wanted: set[str]) -> dict[str, dict[str, Any]]:
    """Prompt id -> question, reference and the teacher's first text."""
    found: dict[str, dict[str, Any]] = {}
    for row in select_rows(validated, splits, {Side.HELDOUT}):
        if row.prompt_id in wanted and row.prompt_id not in found:
            question = "\n\n".join(message.content for message in row.messages)
            found[row.prompt_id] = {"question": question, "reference": row.reference, "teacher": row.text}
        if len(found) == len(wanted):
            break
    return found

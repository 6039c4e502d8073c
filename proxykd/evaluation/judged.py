"""The free answers of the arms -> the judge's verdicts -> the section ``judge`` of the report, and a metric.

A duel against the teacher's own text gives every arm the metric ``win_rate/teacher``: a common opponent, so that arms,
and the champion, are compared by it as by any other metric. Other duels stand in ``report["judge"]`` alone. One model
of an arm is judged, its first seed: the one that may be registered.
"""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.artifacts import SplitSet, ValidatedSet
from proxykd.config import RunSpec
from proxykd.config.judge import JudgeSpec
from proxykd.data.splits import select_rows
from proxykd.evaluation.comparing import Sums
from proxykd.evaluation.drift import FREE_ANSWERS
from proxykd.evaluation.judge import Judge
from proxykd.evaluation.verdicts import Answers, Judged, duel_sums, judge_answers
from proxykd.exceptions import ConfigError
from proxykd.records import Message, Side

TEACHER = "teacher"
VERDICTS_FILE, REQUESTS_FILE = "verdicts.parquet", "judge-requests.parquet"

_SCORES = pa.list_(pa.float64())
VERDICTS = pa.schema(
    [
        ("arm", pa.string()),
        ("against", pa.string()),
        ("prompt_id", pa.string()),
        ("forward", _SCORES),
        ("backward", _SCORES),
    ]
)
"""One row a verdict: the scores of arm and other in each order; ``against`` is null where answers were graded alone."""


class Referee(NamedTuple):
    """A judge and what it knows of the held-out prompts.

    Attributes:
        judge: Who judges.
        messages: Prompt id -> chat turns.
        teacher_texts: Prompt id -> the teacher's first text.
    """

    judge: Judge
    messages: Mapping[str, tuple[Message, ...]]
    teacher_texts: Mapping[str, str]

    def judge_arms(self, answers: Answers) -> Judged:
        """The duels of the specification, as far as both sides have answers."""
        return judge_answers(self.judge, self.messages, {**answers, TEACHER: self.teacher_texts})

    def win_rates(self, judged: Judged) -> dict[str, Sums]:
        """Arm -> the sums of ``WIN_RATE``, for the duels against the teacher."""
        margin = self.judge.spec.tie_margin
        duels = ((arm, pairs) for (arm, against), pairs in judged.pairs.items() if against == TEACHER)
        return {arm: duel_sums(pairs, margin)[0] for arm, pairs in duels}


def open_referee(
    spec: JudgeSpec,
    run: RunSpec,
    validated: ValidatedSet,
    splits: SplitSet,
    *,
    journal_path: Path | None,
    scratch: Path,
    counted: Iterable[str] = (),
    before: Mapping[str, float] | None = None,
) -> Referee:
    """A judge of the answers to the held-out prompts.

    Args:
        spec: How it judges.
        run: Its seed is read.
        validated: The teacher's texts.
        splits: Which prompts are held out.
        journal_path: The journal of paid answers.
        scratch: Folder for temporary files.
        counted: Hashes of the requests whose cost is counted elsewhere.
        before: What those cost (``FollowUp.costs``), so that the judge's caps hold for both; None = nothing.

    Raises:
        ConfigError: if there is no journal, or the user's template cannot be used.
    """
    if journal_path is None:
        raise ConfigError("expected a journal for evaluation.judge, whose answers cost money, got none")
    messages: dict[str, tuple[Message, ...]] = {}
    texts: dict[str, str] = {}
    for row in select_rows(validated, splits, {Side.HELDOUT}):
        messages.setdefault(row.prompt_id, row.messages)
        texts.setdefault(row.prompt_id, row.text)
    folder = Path(tempfile.mkdtemp(prefix="judge-", dir=scratch))
    judge = Judge.of(spec, seed=run.seed, journal_path=journal_path, folder=folder)
    judge.asking.counted.update(counted)
    judge.asking.before = before or {}
    return Referee(judge, messages, texts)


def free_answers(path: Path, first_seeds: Mapping[str, int]) -> dict[str, dict[str, str]]:
    """Arm -> prompt id -> what its first seed answered freely.

    Args:
        path: ``answers.parquet``.
        first_seeds: Arm -> the seed that is judged.
    """
    rows = pq.read_table(
        path, columns=["arm", "seed", "prompt_id", "text"], filters=[("task", "=", FREE_ANSWERS)]
    ).to_pylist()
    found: dict[str, dict[str, str]] = {arm: {} for arm in first_seeds}
    for row in rows:
        if row["seed"] == first_seeds.get(row["arm"]):
            found[row["arm"]][row["prompt_id"]] = row["text"]
    return found


def duels_with_teacher(spec: JudgeSpec, arms: Sequence[str]) -> JudgeSpec:
    """The same judge, who is to compare these arms with the teacher's texts."""
    return spec.model_copy(
        update={"duels": tuple(spec.duels[0].model_copy(update={"arm": arm, "against": TEACHER}) for arm in arms)}
    )


def write_verdicts(referee: Referee, judged: Judged, folder: Path) -> None:
    """Write every verdict, and the hashes of the requests that were paid for, to Parquet files."""
    pq.write_table(pa.Table.from_pylist(judged.rows(), schema=VERDICTS), folder / VERDICTS_FILE)
    pq.write_table(pa.table({"request_hash": sorted(referee.judge.asking.counted)}), folder / REQUESTS_FILE)


def counted_requests(folder: Path) -> set[str]:
    """Hashes of the requests that an evaluation's judge was paid for; empty if nobody judged."""
    path = folder / REQUESTS_FILE
    return set(pq.read_table(path)["request_hash"].to_pylist()) if path.exists() else set()

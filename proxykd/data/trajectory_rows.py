"""Trajectories that ``proxykd correct`` wrote -> rows that a student learns from beside the teacher's answers.

A trajectory teaches where the corrections kept it, where the prompt that it answers is one of the run's, and where that
prompt lies on a side that the stage may learn from: one at a prompt of the held-out or the development side never does,
whatever specification it was made under. Nor does one at a prompt that validation drops for the prompt's own sake.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from proxykd.artifacts import MANIFEST, SplitSet, TrajectorySet, ValidatedSet
from proxykd.data.scratch import scratch_database
from proxykd.data.segments import WeightedRow, render_trajectory, segment_spans
from proxykd.exceptions import InputError
from proxykd.records import Outcome, Side, ValidatedRow, hash_json
from proxykd.trajectories import Trajectory

FOLDER = "trajectories"
"""Name of the artifact's folder in what ``proxykd correct`` writes."""
PROMPT_RULES = frozenset({"near_duplicate", "overlap"})
"""Rules of the validation that speak of a prompt, whoever answers it."""
_BARRED = "barred"


class TrajectoryCounts(NamedTuple):
    """What became of the trajectories that the corrections kept.

    Attributes:
        taught: They became rows.
        other_side: Passed over: their prompt is held out, of the development side, or of another stage's.
        barred: Passed over: validation drops rows of their prompt by a rule of ``PROMPT_RULES``.
        unknown: Passed over: their prompt is none of the run's.
    """

    taught: int
    other_side: int
    barred: int
    unknown: int


def open_trajectories(paths: Iterable[Path]) -> list[TrajectorySet]:
    """The trajectories in folders that ``proxykd correct`` wrote; each may also be the artifact's folder itself.

    Raises:
        InputError: if a folder holds none.
        ArtifactError: if one was changed after it was written.
    """
    return [_open(path) for path in paths]


def _open(path: Path) -> TrajectorySet:
    folder = path / FOLDER if (path / FOLDER).is_dir() else path
    if not (folder / MANIFEST).is_file():
        raise InputError(
            f"expected a folder that `proxykd correct` wrote for student.trajectories, found no {FOLDER}/{MANIFEST} in "
            f"{path}; name the folder that the command was given as its output"
        )
    found = TrajectorySet(folder)
    found.verify()
    return found


def trajectories_identity(paths: Iterable[Path]) -> str:
    """Hash of the trajectories in some folders, in order; "" = there are no folders.

    Raises:
        InputError, ArtifactError: as ``open_trajectories``.
    """
    hashes = [found.hash for found in open_trajectories(paths)]
    return hash_json(hashes) if hashes else ""


def check_trajectories(paths: Iterable[Path], identity: str) -> None:
    """Check that the trajectories in some folders are those that a run was planned with.

    Args:
        paths: The folders.
        identity: ``trajectories_identity`` of what was planned with.

    Raises:
        InputError: if they are others, or a folder holds none.
        ArtifactError: if they were changed after they were written.
    """
    if trajectories_identity(paths) != identity:
        raise InputError(
            "expected the trajectories that the run was planned with, found others in student.trajectories: they "
            "changed meanwhile; run the same command again to plan with what is there now"
        )


def count_kept(found: Iterable[TrajectorySet]) -> int:
    """Trajectories that the corrections kept."""
    batches = (batch for one in found for batch in one.batches(columns=["is_kept"]))
    return sum(pc.sum(batch["is_kept"]).as_py() or 0 for batch in batches)


class TrajectoryRows:
    """The rows of some trajectories, which can be read once.

    Args:
        found: The trajectories.
        validated: Rows of the run with verdicts.
        splits: Side of each prompt.
        sides: Sides to take.
    """

    def __init__(
        self, found: Sequence[TrajectorySet], validated: ValidatedSet, splits: SplitSet, sides: Collection[Side]
    ) -> None:
        self._found, self._validated, self._splits, self._sides = found, validated, splits, sides
        self._counts: Counter[str] = Counter()

    @property
    def counts(self) -> TrajectoryCounts:
        """What became of those that were read."""
        return TrajectoryCounts(**{name: self._counts[name] for name in TrajectoryCounts._fields})

    def after(self, rows: Iterable[ValidatedRow]) -> Iterator[ValidatedRow]:
        """Some rows, and behind them the trajectories as rows of the last of the rows' stages.

        A row's ``sample_idx`` is -1, -2, ...: no completion of the teacher's has such a number.
        """
        last_stage = 0
        for row in rows:
            last_stage = max(last_stage, row.stage)
            yield row
        if not self._found:
            return
        with scratch_database() as database:
            database.execute("CREATE TABLE prompt (prompt_id TEXT PRIMARY KEY, side TEXT) WITHOUT ROWID")
            for batch in self._splits.batches():
                pairs = zip(batch["prompt_id"].to_pylist(), batch["side"].to_pylist(), strict=True)
                database.executemany("INSERT INTO prompt VALUES (?, ?)", pairs)
            barred = ((_BARRED, prompt_id) for prompt_id in self._barred())
            database.executemany("UPDATE prompt SET side = ? WHERE prompt_id = ?", barred)
            for trajectory in self._kept():
                query = "SELECT side FROM prompt WHERE prompt_id = ?"
                side = database.execute(query, (trajectory.prompt_id,)).fetchone()
                fate = self._fate(None if side is None else str(side[0]))
                self._counts[fate] += 1
                if fate == "taught":
                    yield _row(trajectory, -self._counts["taught"], last_stage)

    def _kept(self) -> Iterator[Trajectory]:
        return (trajectory for one in self._found for trajectory in one.rows() if trajectory.is_kept)

    def _barred(self) -> Iterator[str]:
        for batch in self._validated.batches(columns=["prompt_id", "verdict", "findings"]):
            dropped = batch.filter(pc.not_equal(batch["verdict"], "keep"))
            yield from _prompts_at_fault(dropped)

    def _fate(self, side: str | None) -> str:
        if side is None:
            return "unknown"
        if side == _BARRED:
            return "barred"
        return "taught" if Side(side) in self._sides else "other_side"


def _prompts_at_fault(dropped: pa.RecordBatch) -> Iterator[str]:
    for prompt_id, findings in zip(dropped["prompt_id"].to_pylist(), dropped["findings"].to_pylist(), strict=True):
        if any(finding["drops"] and finding["rule"] in PROMPT_RULES for finding in findings):
            yield prompt_id


def _row(trajectory: Trajectory, sample_idx: int, stage: int) -> WeightedRow:
    return WeightedRow(
        trajectory.prompt_id,
        sample_idx,
        trajectory.messages,
        render_trajectory(trajectory),
        trajectory.task,
        trajectory.reference,
        Outcome.OK,
        "keep",
        "",
        stage=stage,
        spans=tuple(segment_spans(trajectory)),
    )

"""Trajectories at the embedded teacher's prompts: a wrong attempt, feedback, the teacher's own text as the update."""

from collections.abc import Iterable
from pathlib import Path

from proxykd.artifacts import TrajectorySet, ValidatedSet, seal
from proxykd.records import ValidatedRow
from proxykd.trajectories import Segment, SegmentKind, Trajectory, TrajectoryEnd

FEEDBACK = "The result is wrong; add the two numbers again."


def corrected(row: ValidatedRow, *, weights: tuple[float, float, float] = (0.0, 1.5, 0.5)) -> Trajectory:
    """A trajectory at the prompt of a row; ``weights`` of attempt, feedback and update."""
    texts = ("It is 1000.", FEEDBACK, row.text)
    parts = zip(SegmentKind, texts, weights, strict=True)
    segments = tuple(Segment(kind, text, weight) for kind, text, weight in parts)
    return Trajectory(row.prompt_id, 0, row.messages, "", row.reference, segments, TrajectoryEnd.IMPROVED, True)


def write_trajectories(trajectories: Iterable[Trajectory], folder: Path) -> TrajectorySet:
    """An artifact as ``proxykd correct`` leaves it, in ``folder/trajectories``."""
    written = TrajectorySet(folder / "trajectories")
    written.write(trajectories)
    seal(written)
    return written


def correct_all(validated: ValidatedSet, folder: Path) -> TrajectorySet:
    """A trajectory at every prompt, whatever its side."""
    return write_trajectories(map(corrected, validated.rows()), folder)

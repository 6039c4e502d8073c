"""What a trajectory is: a student's attempt at a prompt and what led from it to a right answer, as a record."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

import pyarrow as pa

from proxykd.records import MESSAGES, Message, Record


class SegmentKind(StrEnum):
    """Who wrote a part of a trajectory, and why."""

    ATTEMPT = "attempt"
    FEEDBACK = "feedback"
    UPDATE = "update"


class TrajectoryEnd(StrEnum):
    """How a trajectory ended: the attempt was right at once; an update was; none was; the teacher did not answer."""

    RIGHT = "right"
    IMPROVED = "improved"
    WRONG = "wrong"
    UNANSWERED = "unanswered"


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of a trajectory.

    Attributes:
        kind: The student's attempt, the teacher's feedback on the text before, or the teacher's improved attempt.
        text: What was written.
        weight: Weight of its tokens in the loss, >= 0; 0 = read, not learnt.
    """

    kind: SegmentKind
    text: str
    weight: float


@dataclass(frozen=True, slots=True)
class Trajectory(Record):
    """A student's attempt and what led from it to a right one (TriPosT, arXiv 2310.13522).

    Attributes:
        prompt_id: 16 hex digits.
        attempt_idx: 0, 1, ...: which attempt at the prompt.
        messages: The prompt's chat turns, without examples that were shown to the teacher alone.
        task: Name of the task; "" if none.
        reference: Reference answer; None where there is none.
        segments: An attempt, then feedback and update by turns.
        end: How it ended.
        is_kept: Whether it teaches: it ended right, and the balance of improving and other samples has room for it.
    """

    schema: ClassVar[pa.Schema] = pa.schema(
        [
            ("prompt_id", pa.string()),
            ("attempt_idx", pa.int32()),
            ("messages", MESSAGES),
            ("task", pa.string()),
            ("reference", pa.string()),
            (
                "segments",
                pa.list_(pa.struct([("kind", pa.string()), ("text", pa.string()), ("weight", pa.float64())])),
            ),
            ("end", pa.string()),
            ("is_kept", pa.bool_()),
        ]
    )

    prompt_id: str
    attempt_idx: int
    messages: tuple[Message, ...]
    task: str
    reference: str | None
    segments: tuple[Segment, ...]
    end: TrajectoryEnd
    is_kept: bool

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Trajectory":
        """The trajectory from a dict with one entry a column."""
        messages = tuple(Message(**message) for message in row["messages"])
        segments = tuple(
            Segment(SegmentKind(segment["kind"]), segment["text"], segment["weight"]) for segment in row["segments"]
        )
        return cls(**{**row, "messages": messages, "segments": segments, "end": TrajectoryEnd(row["end"])})

"""A trajectory as one text with a loss weight for every character, and from there for every token.

The text that the student learns is attempt, feedback, update, ... one after the other with a heading each (TriPosT,
arXiv 2310.13522); the headings weigh what their segments weigh. A weighted loss over tokens t with weights w_t is

    loss = sum_t w_t * nll_t / sum_t w_t

and the sums belong to the trainer (``student.objective``); here every token gets exactly one weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.records import ValidatedRow
from proxykd.trajectories import SegmentKind, Trajectory

HEADINGS = {
    SegmentKind.ATTEMPT: "",
    SegmentKind.FEEDBACK: "\n\nFeedback: ",
    SegmentKind.UPDATE: "\n\nImproved answer: ",
}


class Span(NamedTuple):
    """A stretch of a text.

    Attributes:
        start: First character.
        end: One past the last character.
        weight: Of its tokens in the loss, >= 0.
    """

    start: int
    end: int
    weight: float


@dataclass(frozen=True, slots=True)
class WeightedRow(ValidatedRow):
    """A row of which some parts count more in the loss than others.

    Attributes:
        spans: They cover ``text`` without gaps, in order.
    """

    spans: tuple[Span, ...] = ()


def render_trajectory(trajectory: Trajectory) -> str:
    """The completion that a trajectory is: its segments, each after its heading."""
    return "".join(HEADINGS[segment.kind] + segment.text for segment in trajectory.segments)


def segment_spans(trajectory: Trajectory) -> list[Span]:
    """The spans of ``render_trajectory``'s text, in order, without gaps: one for each segment, heading included."""
    spans, start = [], 0
    for segment in trajectory.segments:
        end = start + len(HEADINGS[segment.kind]) + len(segment.text)
        spans.append(Span(start, end, segment.weight))
        start = end
    return spans


def token_weights(offsets: Sequence[tuple[int, int]], spans: Sequence[Span]) -> NDArray[np.float32]:
    """The weight of every token: that of the span in which its first character lies.

    A token across a border (a full stop and the line break after it) belongs to the text that it ends. A token without
    characters, such as an end-of-sequence token, weighs what the token before it weighs.

    Args:
        offsets: (start, end) of each token in the text, in order, as a fast tokenizer returns them with
            ``return_offsets_mapping``.
        spans: Of ``segment_spans``, at least one.

    Returns:
        float32 [tokens], >= 0.

    Raises:
        ValueError: if there is no span.
    """
    if not spans:
        raise ValueError("expected at least one span, got none")
    firsts = np.asarray([start if start < end else -1 for start, end in offsets], np.int64)
    positions = np.maximum(np.maximum.accumulate(firsts), 0) if len(firsts) else firsts
    index = np.searchsorted(np.asarray([span.end for span in spans], np.int64), positions, side="right")
    weights: NDArray[np.float32] = np.asarray([span.weight for span in spans], np.float32)
    return weights[np.minimum(index, len(spans) - 1)]

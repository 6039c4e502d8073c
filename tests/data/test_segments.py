"""Every character and every token of a trajectory has exactly one weight."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.config.models import ModelSpec
from proxykd.data.segments import HEADINGS, Span, render_trajectory, segment_spans, token_weights
from proxykd.models.tokenizers import load_tokenizer
from proxykd.records import Message
from proxykd.trajectories import Segment, SegmentKind, Trajectory, TrajectoryEnd

WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 1.5])
SEGMENTS = st.lists(
    st.builds(Segment, st.sampled_from(SegmentKind), st.text(max_size=12), WEIGHTS), min_size=1, max_size=6
)


def trajectory_of(segments: list[Segment]) -> Trajectory:
    messages = (Message("user", "q"),)
    return Trajectory("0" * 16, 0, messages, "", "1", tuple(segments), TrajectoryEnd.IMPROVED, True)


@st.composite
def cut_texts(draw: st.DrawFn) -> tuple[str, list[Span], list[tuple[int, int]]]:
    """A rendered trajectory, its spans, and tokens that partition it."""
    trajectory = trajectory_of(draw(SEGMENTS))
    text = render_trajectory(trajectory)
    cuts = sorted({0, len(text), *draw(st.lists(st.integers(0, len(text)), max_size=10))})
    return text, segment_spans(trajectory), list(pairwise(cuts))


@given(segments=SEGMENTS)
def test_the_spans_partition_the_text_and_hold_the_segments(segments: list[Segment]) -> None:
    trajectory = trajectory_of(segments)
    text, spans = render_trajectory(trajectory), segment_spans(trajectory)
    assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert spans[-1].end == len(text)
    for span, segment in zip(spans, segments, strict=True):
        assert text[span.start : span.end] == HEADINGS[segment.kind] + segment.text
        assert span.weight == segment.weight


@given(cut=cut_texts())
def test_every_token_has_the_weight_of_its_first_character(cut: tuple[str, list[Span], list[tuple[int, int]]]) -> None:
    text, spans, offsets = cut
    of_characters = [span.weight for span in spans for _ in range(span.start, span.end)]
    assert len(of_characters) == len(text)
    assert token_weights(offsets, spans).tolist() == [of_characters[start] for start, _ in offsets]


@given(cut=cut_texts())
def test_one_token_a_character_weighs_what_the_spans_weigh(cut: tuple[str, list[Span], list[tuple[int, int]]]) -> None:
    text, spans, _ = cut
    weights = token_weights([(start, start + 1) for start in range(len(text))], spans)
    assert weights.sum() == sum(span.weight * (span.end - span.start) for span in spans)


@pytest.mark.parametrize("end_of_sequence", [(6, 6), (0, 0)])
def test_a_token_without_characters_weighs_what_the_one_before_weighs(end_of_sequence: tuple[int, int]) -> None:
    spans = [Span(0, 3, 0.0), Span(3, 6, 1.5)]
    assert token_weights([(0, 0), (0, 3), (3, 6), end_of_sequence], spans).tolist() == [0.0, 0.0, 1.5, 1.5]


def test_no_tokens_have_no_weights_and_no_spans_are_refused() -> None:
    assert token_weights([], [Span(0, 1, 1.0)]).tolist() == []
    with pytest.raises(ValueError, match="at least one span"):
        token_weights([(0, 1)], [])


def test_with_a_real_tokenizer_no_token_of_a_wrong_attempt_teaches() -> None:
    tokenizer = load_tokenizer(ModelSpec(source="embedded:student"))
    segments = [
        Segment(SegmentKind.ATTEMPT, "There are 3 times 4 apples. Answer: 13", 0.0),
        Segment(SegmentKind.FEEDBACK, "3 times 4 is 12.", 1.5),
        Segment(SegmentKind.UPDATE, "There are 3 times 4 apples. Answer: 12", 1.0),
    ]
    trajectory = trajectory_of(segments)
    text = render_trajectory(trajectory)
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    weights = token_weights(encoded["offset_mapping"], segment_spans(trajectory))
    assert len(weights) == len(encoded["input_ids"])
    learnt = "".join(text[a:b] for (a, b), weight in zip(encoded["offset_mapping"], weights, strict=True) if weight)
    assert "13" not in learnt
    assert learnt.strip().endswith("12")
    assert "3 times 4 is 12." in learnt

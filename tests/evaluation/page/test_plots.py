"""Axes show every value, ticks are round, and a front holds whom nobody beats."""

import math

from hypothesis import given
from hypothesis import strategies as st

from proxykd.evaluation.page.plots import axis, line, pareto_front, smoothed, staircase, tick_text

values = st.lists(st.floats(-1e9, 1e9, allow_subnormal=False), min_size=1, max_size=20)


@given(values, st.booleans())
def test_every_value_stands_on_its_axis_in_its_order(drawn: list[float], may_be_log: bool) -> None:
    found = axis(drawn, may_be_log=may_be_log)
    places = [found.across(value) for value in sorted(drawn)]
    assert places == sorted(places)
    assert all(3 <= place <= 97 for place in places)
    assert all(found.low <= value <= found.high for value in drawn)


@given(values)
def test_ticks_are_few_and_stand_between_the_ends(drawn: list[float]) -> None:
    found = axis(drawn)
    at = [value for value, _ in found.ticks]
    assert len(at) <= 6
    assert at == sorted(set(at))
    room = 1e-6 * (found.high - found.low)
    assert all(found.low - room <= value <= found.high + room for value in at)


@given(st.lists(st.floats(1e-6, 1e6), min_size=2, max_size=20))
def test_logarithmic_axis_has_ticks_within_it(drawn: list[float]) -> None:
    found = axis(drawn, may_be_log=True)
    if found.is_log:
        assert found.ticks
        assert all(found.low <= value <= found.high for value, _ in found.ticks)
        middle = math.sqrt(found.low * found.high)
        assert math.isclose(found.share(middle), 0.5, abs_tol=1e-9)


def test_axis_of_one_value_or_of_none_has_room() -> None:
    assert axis([2.0]).across(2.0) == 50
    assert axis([]).low < axis([]).high
    assert axis([math.nan, math.inf, 1.0, 2.0]).high == 2.0


def test_what_lies_beyond_an_axis_stands_at_its_end() -> None:
    found = axis([0.0, 1.0])
    assert (found.across(-5.0), found.across(5.0)) == (3, 97)
    assert (found.down(0.0, 100), found.down(1.0, 100)) == (100, 0)
    assert axis([1.0, 1000.0], may_be_log=True).across(0.0) == 3


def test_lines_are_coordinates_in_a_square() -> None:
    assert line([(0, 0), (1, 1)], axis([0, 1]), axis([0, 1])) == "3,100 97,0"


def test_text_of_ticks() -> None:
    assert [tick_text(value, 0) for value in (2_000_000, 3e9, 1234)] == ["2M", "3G", "1,234"]


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=50), st.integers(1, 9))
def test_smoothing_stays_between_the_ends_and_keeps_a_constant(drawn: list[float], width: int) -> None:
    found = smoothed(drawn, width)
    assert len(found) == len(drawn)
    assert all(min(drawn) - 1e-9 <= value <= max(drawn) + 1e-9 for value in found)
    assert smoothed([2.0] * 5, width) == [2.0] * 5


points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=20)


@given(points, st.booleans())
def test_nobody_beats_the_front_and_the_front_beats_the_others(drawn: list[tuple[int, int]], is_lower: bool) -> None:
    def beats(one: tuple[int, int], other: tuple[int, int]) -> bool:
        better = one[1] <= other[1] if is_lower else one[1] >= other[1]
        return one != other and one[0] <= other[0] and better

    front = [drawn[idx] for idx in pareto_front(drawn, is_lower_better=is_lower)]
    assert not [one for one in front if any(beats(other, one) for other in drawn)]
    assert all(one in front or any(beats(other, one) for other in front) for one in drawn)


def test_staircase_joins_the_points() -> None:
    steps = staircase([(1, 5.0), (2, 4.0), (4, 1.0)])
    assert [end for _, end in steps[:-1]] == [start for start, _ in steps[1:]]
    assert (steps[0][0], steps[-1][1]) == ((1, 5.0), (4, 1.0))

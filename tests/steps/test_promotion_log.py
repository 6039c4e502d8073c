"""What a log of promotions means: exactly one of several rivals takes effect, whatever the order and whoever dies."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steps.adapters.promotion_log import MAX_LINE, Entry, Standing, replay

VERSIONS = st.sampled_from(["1", "2", "3", "4"])


def entry(number: int, version: str | None, after: int, replaced: str | None = None, action: str = "promote") -> Entry:
    return Entry(number, f"intent {number}", action, version, after, replaced)  # type: ignore[arg-type]


@st.composite
def logs(draw: st.DrawFn) -> list[Entry]:
    """Writers that saw the log at any earlier moment, and promote or go back from what they saw."""
    found: list[Entry] = []
    for number in range(1, draw(st.integers(0, 12)) + 1):
        seen = draw(st.integers(0, len(found)))
        effective = replay(found[:seen])
        standing = effective[-1][1] if effective else Standing()
        if standing.line and draw(st.booleans()):
            found.append(entry(number, standing.previous, standing.number, standing.champion, "rollback"))
        else:
            found.append(entry(number, draw(VERSIONS), standing.number, standing.champion))
    return found


@given(logs())
def test_one_entry_at_most_follows_another(log: list[Entry]) -> None:
    effective = [one for one, _ in replay(log)]
    afters = [one.after for one in effective]
    assert len(set(afters)) == len(afters)
    assert afters == [0, *(one.number for one in effective)][: len(effective)]


@given(logs())
def test_the_first_of_several_rivals_takes_effect(log: list[Entry]) -> None:
    numbers = {one.number for one, _ in replay(log)}
    for after in {0, *numbers}:
        rivals = [one.number for one in log if one.after == after]
        assert [number for number in rivals if number in numbers] == rivals[:1]


@given(logs(), st.data())
def test_what_comes_later_changes_nothing_that_was_decided(log: list[Entry], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(log)))
    before = replay(log[:cut])
    start = before[-1][1] if before else Standing()
    assert before + replay(log[cut:], start) == replay(log)


@given(logs())
def test_repeated_writes_of_the_same_attempt_count_once(log: list[Entry]) -> None:
    twice: list[Entry] = []
    renumbered = {0: 0}
    for one in log:
        renumbered[one.number] = len(twice) + 1
        after = renumbered[one.after]
        twice += [entry(len(twice) + shift, one.version, after, one.replaced, one.action) for shift in (1, 2)]
    assert [standing.champion for _, standing in replay(twice)] == [standing.champion for _, standing in replay(log)]


@given(st.lists(VERSIONS, min_size=1, max_size=30))
def test_rollbacks_undo_promotions_in_reverse(versions: Sequence[str]) -> None:
    changes = [version for idx, version in enumerate(versions) if idx == 0 or version != versions[idx - 1]]
    log, champion = [], None
    for number, version in enumerate(changes, 1):
        log.append(entry(number, version, number - 1, champion))
        champion = version
    standing = replay(log)[-1][1]
    for expected in changes[:-1][::-1][:MAX_LINE]:
        assert standing.previous == expected
        back = entry(standing.number + 1, expected, standing.number, standing.champion, "rollback")
        ((_, standing),) = replay([back], standing)
        assert standing.champion == expected


def test_a_line_by_hand() -> None:
    log = [
        entry(1, "1", 0),
        entry(2, "2", 1, "1"),
        entry(3, "3", 1, "1"),  # came second
        entry(4, "3", 2, "2"),
        entry(5, "2", 4, "3", "rollback"),
        entry(6, "7", 5, "9"),  # somebody had moved the alias to 9
    ]
    assert [(one.number, standing.champion, standing.line) for one, standing in replay(log)] == [
        (1, "1", ()),
        (2, "2", ("1",)),
        (4, "3", ("1", "2")),
        (5, "2", ("1",)),
        (6, "7", ("1", "9")),
    ]


def test_no_more_former_champions_are_kept_than_stated() -> None:
    log = [entry(n, str(n), n - 1, str(n - 1) if n > 1 else None) for n in range(1, MAX_LINE + 10)]
    assert replay(log)[-1][1].line == tuple(map(str, range(9, MAX_LINE + 9)))


@pytest.mark.parametrize(("replaced", "line"), [("1", ("1",)), (None, ())])
def test_a_deleted_champion_is_no_way_back(replaced: str | None, line: tuple[str, ...]) -> None:
    assert replay([entry(1, "1", 0), entry(2, "2", 1, replaced)])[-1][1].line == line


def test_an_undone_promotion_leaves_what_was_before() -> None:
    log = [entry(1, "1", 0), entry(2, "2", 1, "1"), entry(3, "3", 2, "2"), entry(4, "2", 3, None, "undo")]
    assert replay(log)[-1][1] == Standing(4, "2", ("1",))

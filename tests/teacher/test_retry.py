"""The retry policy by hand and by property; no clock, no network."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxykd.teacher.retry import RetryPolicy, is_retryable_status, parse_retry_after

_POLICY = RetryPolicy(max_attempts=5, base_s=0.5, cap_s=3.0, longest_retry_after_s=60.0)
draws = st.floats(0.0, 1.0, exclude_max=True)


def test_which_statuses_are_tried_again() -> None:
    tried = [status for status in range(200, 600) if is_retryable_status(status)]
    assert tried == [408, 409, 429, *range(500, 600)]


def test_waits_by_hand() -> None:
    # draw 0.5 of 0.5 * 2**(n - 1), capped at 3: 0.5, 1, 2, 3 (4 without the cap).
    waits = [_POLICY.wait_s(n, retry_after_s=None, draw=0.5) for n in range(1, 6)]
    assert waits == [0.25, 0.5, 1.0, 1.5, None]


@given(st.integers(1, 4), draws)
def test_jitter_stays_between_zero_and_the_bound(num_attempts: int, draw: float) -> None:
    wait_s = _POLICY.wait_s(num_attempts, retry_after_s=None, draw=draw)
    assert wait_s is not None
    assert 0.0 <= wait_s < min(3.0, 0.5 * 2 ** (num_attempts - 1))


@given(st.integers(1, 4), st.floats(0.0, 60.0), draws)
def test_the_servers_wish_is_waited_out_in_full(num_attempts: int, wish_s: float, draw: float) -> None:
    wait_s = _POLICY.wait_s(num_attempts, retry_after_s=wish_s, draw=draw)
    assert wait_s is not None
    backoff_s = _POLICY.wait_s(num_attempts, retry_after_s=None, draw=draw)
    assert backoff_s is not None
    assert max(wish_s, backoff_s) <= wait_s <= max(wish_s + 0.5, backoff_s)


def test_a_wish_of_zero_does_not_use_up_the_attempts_at_once() -> None:
    # As without a wish: draw 0.5 of 0.5, 1, 2, 3.
    assert [_POLICY.wait_s(n, retry_after_s=0.0, draw=0.5) for n in range(1, 5)] == [0.25, 0.5, 1.0, 1.5]


def test_too_long_a_wish_ends_the_tries() -> None:
    assert _POLICY.wait_s(1, retry_after_s=61.0, draw=0.0) is None


def test_a_large_number_of_attempts_does_not_overflow() -> None:
    assert RetryPolicy(10**6, cap_s=2.0).wait_s(10**5, retry_after_s=None, draw=0.5) == 1.0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, None),
        ("7", 7.0),
        (" 1.5 ", 1.5),
        ("Thu, 01 Jan 1970 00:01:40 GMT", 90.0),
        ("Thu, 01 Jan 1970 00:00:05 GMT", 0.0),
        ("soon", None),
        ("-3", None),
        ("nan", None),
        ("", None),
    ],
)
def test_retry_after_in_seconds_and_as_a_date(header: str | None, seconds: float | None) -> None:
    assert parse_retry_after(header, now_s=10.0) == seconds


@pytest.mark.parametrize(
    ("server_date", "seconds"),
    [("Thu, 01 Jan 1970 00:01:30 GMT", 10.0), ("Thu, 01 Jan 1970 00:02:00 GMT", 0.0), ("?", 90.0), (None, 90.0)],
)
def test_a_date_is_measured_on_the_servers_clock_where_it_is_told(server_date: str | None, seconds: float) -> None:
    header = "Thu, 01 Jan 1970 00:01:40 GMT"
    assert parse_retry_after(header, now_s=10.0, server_date=server_date) == seconds
    assert parse_retry_after("7", now_s=10.0, server_date=server_date) == 7.0


@given(st.text(), st.text())
def test_any_header_is_read_or_ignored(header: str, server_date: str) -> None:
    seconds = parse_retry_after(header, now_s=0.0, server_date=server_date)
    assert seconds is None or seconds >= 0.0

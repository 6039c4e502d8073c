"""What headers tell of limits, in the words of each API, and nothing that cannot be read."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from proxykd.teacher.rate_headers import Told, parse_reset, read_rate_headers


def test_openais_words() -> None:
    headers = {
        "x-ratelimit-limit-requests": "5000",
        "x-ratelimit-limit-tokens": "160000",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-remaining-tokens": "159000",
        "x-ratelimit-reset-requests": "12ms",
        "x-ratelimit-reset-tokens": "6m0s",
    }
    assert read_rate_headers(headers, now_s=0.0) == Told({"calls": 5000.0, "tokens": 160000.0}, pytest.approx(0.012))


def test_anthropics_words() -> None:
    headers = {
        "anthropic-ratelimit-requests-limit": "50",
        "anthropic-ratelimit-input-tokens-limit": "40000",
        "anthropic-ratelimit-output-tokens-limit": "8000",
        "anthropic-ratelimit-output-tokens-remaining": "0",
        "anthropic-ratelimit-output-tokens-reset": "1970-01-01T00:01:00Z",
    }
    told = read_rate_headers(headers, now_s=45.0)
    assert told == Told({"calls": 50.0, "input_tokens": 40000.0, "output_tokens": 8000.0}, 15.0)


@pytest.mark.parametrize(
    ("text", "seconds"), [("1s", 1.0), ("20ms", 0.02), ("1h2m3.5s", 3723.5), ("7", 7.0), ("1d", 86400.0), ("soon", 0.0)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_reset(text, now_s=0.0) == pytest.approx(seconds)


NAMES = [f"x-ratelimit-{what}-{unit}" for what in ("limit", "remaining", "reset") for unit in ("requests", "tokens")]


@given(st.dictionaries(st.sampled_from(NAMES), st.text(max_size=20)))
@example({"x-ratelimit-limit-requests": "0\x1f"})
def test_nothing_in_a_header_raises_or_makes_a_limit_that_is_none(headers: dict[str, str]) -> None:
    told = read_rate_headers(headers, now_s=0.0)
    assert told.wait_s >= 0.0
    assert all(limit > 0 for limit in told.limits.values())

"""What an endpoint tells of its limits in the headers of an answer: pure functions.

    OpenAI and many others   x-ratelimit-limit-requests, -remaining-requests, -reset-requests (6m0s), and -tokens
    Anthropic                anthropic-ratelimit-requests-limit, -remaining, -reset (RFC 3339), and -tokens,
                             -input-tokens, -output-tokens

A limit counts as one a minute. Where an endpoint means a longer span by it, it allows more than the endpoint does, and
refusals do the rest.
"""

import re
from collections.abc import Mapping
from datetime import datetime
from typing import NamedTuple

_NAMES = {
    "calls": ("x-ratelimit-{}-requests", "anthropic-ratelimit-requests-{}"),
    "tokens": ("x-ratelimit-{}-tokens", "anthropic-ratelimit-tokens-{}"),
    "input_tokens": ("x-ratelimit-{}-input-tokens", "anthropic-ratelimit-input-tokens-{}"),
    "output_tokens": ("x-ratelimit-{}-output-tokens", "anthropic-ratelimit-output-tokens-{}"),
}
_OF_BUCKET = {
    bucket: [tuple(name.format(what) for what in ("limit", "remaining", "reset")) for name in names]
    for bucket, names in _NAMES.items()
}
_NUMBER = re.compile(r"[0-9]{1,12}(?:\.[0-9]{1,9})?")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s|m|h|d)")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


class Told(NamedTuple):
    """What the headers say.

    Attributes:
        limits: Bucket -> limit a minute, > 0; only of those that were told.
        wait_s: Seconds until an exhausted limit is there again; 0 = none is exhausted.
    """

    limits: dict[str, float]
    wait_s: float


def read_rate_headers(headers: Mapping[str, str], *, now_s: float) -> Told:
    """The limits in the headers of an answer; what cannot be read is left out.

    Args:
        headers: By name, of whatever case.
        now_s: Wall clock, seconds since 1970 UTC.
    """
    limits: dict[str, float] = {}
    wait_s = 0.0
    if not any("ratelimit" in name.lower() for name in headers):
        return Told(limits, wait_s)
    for bucket, names in _OF_BUCKET.items():
        for limit_name, remaining_name, reset_name in names:
            if limit := _number(headers.get(limit_name)):
                limits[bucket] = limit
            if _number(headers.get(remaining_name)) == 0.0:
                wait_s = max(wait_s, parse_reset(headers.get(reset_name, ""), now_s=now_s))
    return Told(limits, wait_s)


def parse_reset(text: str, *, now_s: float) -> float:
    """Seconds until a limit is there again: ``6m0s``, ``1.2s``, ``20ms``, plain seconds or an RFC 3339 time; else 0.

    Example:
        >>> parse_reset("6m0.5s", now_s=0.0), parse_reset("1970-01-01T00:00:10Z", now_s=4.0)
        (360.5, 6.0)
    """
    text = text.strip()
    if _NUMBER.fullmatch(text):
        return float(text)
    if text and not _DURATION.sub("", text):
        return sum(float(count) * _SECONDS[unit] for count, unit in _DURATION.findall(text))
    try:
        return max(0.0, datetime.fromisoformat(text).timestamp() - now_s)
    except (ValueError, OverflowError, OSError):
        return 0.0


def _number(text: str | None) -> float | None:
    plain = (text or "").strip()
    return float(plain) if _NUMBER.fullmatch(plain) else None

"""When to ask again and how long to wait: pure functions, no clock, no network, no random state.

Full jitter: before attempt n + 1 the wait is uniform in [0, min(cap, base * 2**(n - 1))], so that many callers that
failed together do not come back together.

References: Brooker, Exponential Backoff and Jitter, AWS Architecture Blog, 2015. RFC 9110, section 10.2.3.
"""

import re
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime

_SECONDS = re.compile(r"[0-9]{1,9}(\.[0-9]{1,9})?")


def is_retryable_status(status: int) -> bool:
    """Whether the same request may succeed later: time-out, conflict, too many requests, any server error."""
    return status in (408, 409, 429) or 500 <= status <= 599


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often and how patiently.

    Attributes:
        max_attempts: Most tries of one request, the first one included.
        base_s: Upper bound of the first wait, in seconds.
        cap_s: Upper bound of every jittered wait, in seconds.
        longest_retry_after_s: A server that asks for more patience than this ends the tries, in seconds.
    """

    max_attempts: int
    base_s: float = 0.5
    cap_s: float = 30.0
    longest_retry_after_s: float = 600.0

    def wait_s(self, num_attempts: int, *, retry_after_s: float | None, draw: float) -> float | None:
        """Seconds to wait before the next try; None = give up.

        Args:
            num_attempts: Tries made so far, >= 1.
            retry_after_s: What the server asked for; None = nothing. It is waited out in full, and the jitter of the
                first wait comes on top; if that is less than the wait without it (the server said 0, say), the
                longer one holds.
            draw: Uniform in [0, 1).
        """
        if num_attempts >= self.max_attempts:
            return None
        backoff_s = draw * min(self.cap_s, self.base_s * 2.0 ** min(num_attempts - 1, 60))
        if retry_after_s is None:
            return backoff_s
        if retry_after_s > self.longest_retry_after_s:
            return None
        return max(retry_after_s + draw * self.base_s, backoff_s)


def parse_retry_after(value: str | None, *, now_s: float, server_date: str | None = None) -> float | None:
    """Seconds that a Retry-After header asks for.

    Args:
        value: The header: seconds or an HTTP date; None = no header.
        now_s: Wall clock, seconds since 1970 UTC.
        server_date: The Date header of the same response; an HTTP date is taken relative to it, where it can be read,
            and not to our clock, which may differ from the server's.

    Returns:
        >= 0; None if there is no header or it cannot be read.
    """
    if value is None:
        return None
    text = value.strip()
    if _SECONDS.fullmatch(text):
        return float(text)
    until_s, sent_s = _parse_date_s(text), _parse_date_s(server_date or "")
    return None if until_s is None else max(0.0, until_s - (now_s if sent_s is None else sent_s))


def _parse_date_s(text: str) -> float | None:
    """Seconds since 1970 UTC; None if it cannot be read."""
    try:
        date = parsedate_to_datetime(text)
        return (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

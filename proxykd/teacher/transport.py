"""One HTTP request: the seam between the engine and the network.

The secret lives here alone: it goes into a header, and should an endpoint repeat it in a body, it is blotted out
before anybody sees it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import aiohttp

from proxykd.exceptions import TeacherUnreachableError
from proxykd.teacher.providers.openai import OpenAIProvider

_bearer = OpenAIProvider().headers
_LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What came back.

    Attributes:
        status: HTTP status.
        headers: Header values by lower-case name.
        body: Raw body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Sends one request."""

    async def send(self, body: Mapping[str, Any]) -> HttpResponse:
        """Send ``body`` and return the response, whatever its status.

        Raises:
            TeacherUnreachableError: if no response came.
        """


class AiohttpTransport:
    """The real transport: keep-alive connections to one URL.

    Args:
        url: Where to POST.
        secret: The key; None = none is sent.
        timeout_s: Seconds that one request may take.
        concurrency: Most connections.
        headers: The headers that tell the endpoint the secret.
    """

    def __init__(
        self,
        url: str,
        *,
        secret: str | None,
        timeout_s: float,
        concurrency: int,
        headers: Callable[[str | None], dict[str, str]] = _bearer,
    ) -> None:
        self._url, self._headers, self._timeout_s = url, headers(secret), timeout_s
        self._spellings = _spellings(secret)
        self._concurrency = concurrency
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            connector=aiohttp.TCPConnector(limit=self._concurrency),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            trust_env=urlsplit(self._url).hostname not in _LOOPBACK,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection pool."""
        if self._session is not None:
            await self._session.close()

    async def send(self, body: Mapping[str, Any]) -> HttpResponse:
        """POST ``body`` as JSON.

        Raises:
            TeacherUnreachableError: if no complete response came in time.
        """
        if self._session is None:
            raise RuntimeError("expected an open transport; use it in `async with`")
        try:
            async with self._session.post(self._url, json=body, allow_redirects=False) as response:
                content = await response.read()
        except TimeoutError:
            raise TeacherUnreachableError(f"no answer from {self._url} within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            reason = self._hide(str(error).encode()).decode("utf-8", "replace")
            failure = TeacherUnreachableError(f"no answer from {self._url}: {reason}")
            failure.was_sent = not isinstance(error, aiohttp.ClientConnectorError)
            raise failure from None
        headers = {name.lower(): value for name, value in response.headers.items()}
        return HttpResponse(response.status, headers, self._hide(content))

    def _hide(self, content: bytes) -> bytes:
        for spelling in self._spellings:
            content = content.replace(spelling, b"***")
        return content


def _spellings(secret: str | None) -> list[bytes]:
    """The secret as it is and as JSON may write it."""
    if not secret:
        return []
    escaped = json.dumps(secret)[1:-1]
    return [spelling.encode() for spelling in {secret, escaped, escaped.replace("/", "\\/")}]

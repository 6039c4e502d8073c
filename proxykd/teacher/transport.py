"""One HTTP request: the seam between the asking and the network.

The secret lives here alone: it goes into a header, and should an endpoint repeat it in a body, a header or the reason
of a failure, it is blotted out before anybody sees it (``proxykd.teacher.blotting``).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import urlsplit

import aiohttp

from proxykd.config.addresses import is_loopback
from proxykd.exceptions import StorageError, TeacherUnreachableError
from proxykd.teacher.blotting import Blotter
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.replies import Request

_bearer = OpenAIProvider().headers
_JSON = {"Content-Type": "application/json"}
_CHUNK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What came back.

    Attributes:
        status: HTTP status.
        headers: Header values by name, of whatever case.
        body: Raw body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes


class Transport(Protocol):
    """Sends one request."""

    async def send(self, request: Request) -> HttpResponse:
        """Send the body of ``request`` and return the response, whatever its status.

        Raises:
            TeacherUnreachableError: if no response came.
        """


class HttpClient:
    """Keep-alive connections to one host, with the headers that identify us; follows no redirect.

    Args:
        url: Of the host; loopback is reached without a proxy.
        secret: The key; None = none is sent.
        timeout_s: Seconds that one request may take, or may be silent where it moves a file.
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
        self._blotter = Blotter(secret)
        self._concurrency = concurrency
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        """Open the connection pool."""
        self._session = aiohttp.ClientSession(
            headers=self._headers,
            cookie_jar=aiohttp.DummyCookieJar(),
            connector=aiohttp.TCPConnector(limit=self._concurrency),
            timeout=aiohttp.ClientTimeout(total=self._timeout_s),
            trust_env=not is_loopback(urlsplit(self._url).hostname or ""),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the connection pool."""
        if self._session is not None:
            await self._session.close()

    async def exchange(
        self, method: str, url: str, *, moves_file: bool = False, into: Path | None = None, **options: Any
    ) -> HttpResponse:
        """Send one request and return the response, whatever its status.

        Args:
            method: GET or POST.
            url: Where to.
            moves_file: The time-out counts silence, not the whole.
            into: File for the body of a response with status 200, which is left out of the result; None = keep it.
            options: What aiohttp sends: ``json``, ``data`` or ``params``.

        Raises:
            TeacherUnreachableError: if no complete response came in time.
            StorageError: if ``into`` cannot be written.
        """
        if self._session is None:
            raise RuntimeError("expected an open connection; use it in `async with`")
        if moves_file:
            options["timeout"] = aiohttp.ClientTimeout(sock_connect=self._timeout_s, sock_read=self._timeout_s)
        try:
            async with self._session.request(method, url, allow_redirects=False, **options) as response:
                if into is not None and response.status == 200:
                    await self._save(response, into)
                    content = b""
                else:
                    content = await response.read()
        except StorageError:
            raise
        except TimeoutError:
            raise TeacherUnreachableError(f"no answer from {url} within {self._timeout_s:g} s") from None
        except (aiohttp.ClientError, OSError) as error:
            failure = TeacherUnreachableError(f"no answer from {url}: {self._blotter.clean_text(str(error))}")
            failure.was_sent = not isinstance(error, aiohttp.ClientConnectorError)
            raise failure from None
        return HttpResponse(
            response.status, self._blotter.clean_headers(response.headers), self._blotter.clean(content)
        )

    async def _save(self, response: aiohttp.ClientResponse, path: Path) -> None:
        """Write a body line by line, so that no key is split between two parts."""
        rest = b""
        with _opened(path) as write:
            async for part in response.content.iter_chunked(_CHUNK_BYTES):
                *lines, rest = (rest + part).split(b"\n")
                write(b"".join(self._blotter.clean(line) + b"\n" for line in lines))
            write(self._blotter.clean(rest))


@contextmanager
def _opened(path: Path) -> Iterator[Callable[[bytes], None]]:
    """A way to write a file, whose disk's refusals are not taken for an endpoint's silence."""
    with _told_as_the_disks(path):
        file = path.open("wb")

    def write(data: bytes) -> None:
        with _told_as_the_disks(path):
            file.write(data)

    try:
        yield write
    finally:
        with _told_as_the_disks(path):
            file.close()


@contextmanager
def _told_as_the_disks(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(f"expected to write what was downloaded to {path}: {error}; free its disk") from error


class AiohttpTransport(HttpClient):
    """The real transport: POSTs JSON to one URL."""

    async def send(self, request: Request) -> HttpResponse:
        """POST the body of ``request`` as JSON.

        Raises:
            TeacherUnreachableError: if no complete response came in time.
        """
        return await self.exchange("POST", self._url, data=request.payload.encode(), headers=_JSON)

"""What a batch API looks like from here, whatever its own words are."""

from collections.abc import Awaitable, Collection
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from proxykd.exceptions import TeacherUnreachableError
from proxykd.teacher.batches.chunks import Chunk
from proxykd.teacher.clock import Clock
from proxykd.teacher.endpoint import Endpoint
from proxykd.teacher.providers.base import Provider
from proxykd.teacher.replies import Request, Verdict, parse_json
from proxykd.teacher.retry import RetryPolicy, parse_retry_after
from proxykd.teacher.transport import HttpClient, HttpResponse

ValueT = TypeVar("ValueT")
CLOCKS_DIFFER_S = 600.0
"""By how much an endpoint's clock may be behind ours."""


class Status(NamedTuple):
    """How far a batch is.

    Attributes:
        is_ended: Nothing more will come of it.
        num_done: Requests that it has dealt with, one way or another.
        failure: Why the endpoint did not take it up at all; "" = it did.
        may_pass: Whether the same batch may be taken up later: a queue is full, say.
    """

    is_ended: bool
    num_done: int
    failure: str = ""
    may_pass: bool = False


class Result(NamedTuple):
    """What came of one request of a batch.

    Attributes:
        key: Of the request.
        status: HTTP status that a call of its own would have had; 503 = it was never worked on.
        verdict: What it means.
    """

    key: str
    status: int
    verdict: Verdict


class NotNow(Exception):
    """Whether a batch exists cannot be told yet."""


class RefusedError(Exception):
    """The endpoint answered a call of the batch API with an error.

    Attributes:
        response: As it came.
        verdict: What it means.
    """

    def __init__(self, response: HttpResponse, verdict: Verdict) -> None:
        super().__init__(verdict.reply.error)
        self.response, self.verdict = response, verdict


class BatchApi(Protocol):
    """An API's batches."""

    def row(self, request: Request) -> bytes:
        """A request as a part of what is submitted."""

    def envelope(self) -> tuple[bytes, bytes, bytes]:
        """What stands before the first row, between two and after the last one."""

    async def create(self, chunk: Chunk, rows: Path) -> str:
        """Submit a batch and return its id.

        Args:
            chunk: What it is called here.
            rows: File of the enveloped rows.

        Raises:
            RefusedError: if the endpoint did not take it.
            TeacherUnreachableError: if it may have taken it.
        """

    async def find(self, chunk: Chunk, keys: Collection[str], others: Collection[str]) -> str:
        """The id of the batch that a chunk became; "" = it never did.

        Args:
            chunk: What it is called here.
            keys: Of its requests.
            others: Ids of batches that are other chunks'.

        Raises:
            NotNow: if that cannot be told yet.
            RefusedError, TeacherUnreachableError: as any call.
        """

    async def status(self, batch_id: str) -> Status:
        """How far a batch is."""

    async def fetch(self, batch_id: str, folder: Path) -> list[Path]:
        """Download the results of a batch that is ended: files with a result a line."""

    def result(self, line: bytes) -> Result | None:
        """What a line says; None = nothing that can be read."""


class Caller:
    """Calls that may be repeated, with the engine's patience.

    Args:
        client: The connection.
        provider: Reads errors.
        policy: When to try again.
        clock: Time.
        endpoint: For messages; stops where no other call would fare better.
    """

    def __init__(
        self, client: HttpClient, provider: Provider, policy: RetryPolicy, clock: Clock, endpoint: Endpoint
    ) -> None:
        self._client, self._provider, self._policy = client, provider, policy
        self._clock, self._endpoint = clock, endpoint

    async def once(self, method: str, url: str, **options: Any) -> Any:
        """The JSON value that one call answers with.

        Raises:
            RefusedError: if it answers with an error.
            TeacherUnreachableError: if it may have been carried out: no answer came, or a server's error.
            TeacherAuthError, TeacherError: if the key is refused or the account has no credit.
        """
        response = await self._client.exchange(method, url, **options)
        if not 200 <= response.status < 300:
            verdict = self._provider.judge(response.status, response.body)
            self._endpoint.stop_if_hopeless(response, verdict)
            if response.status >= 500 or response.status == 408:
                raise TeacherUnreachableError(f"{url} answered with {verdict.reply.error}")
            raise RefusedError(response, verdict)
        if options.get("into") is not None:
            return None
        try:
            return parse_json(response.body)
        except ValueError as error:
            raise TeacherUnreachableError(f"{url} answered with no JSON: {error}") from None

    async def call(self, method: str, url: str, **options: Any) -> Any:
        """As ``once``, tried again where that may help; for calls that change nothing, or nothing that is paid for."""
        num_attempts = 0
        while True:
            num_attempts += 1
            retry_after_s = None
            try:
                return await self.once(method, url, **options)
            except TeacherUnreachableError as error:
                failure: Exception = error
            except RefusedError as error:
                if not error.verdict.is_retryable:
                    raise
                failure, headers = error, error.response.headers
                retry_after_s = parse_retry_after(headers.get("retry-after"), now_s=self._clock.now_s())
            wait_s = self._policy.wait_s(num_attempts, retry_after_s=retry_after_s, draw=0.5)
            if wait_s is None:
                raise failure
            await self._clock.sleep(wait_s)


async def checked(answer: Awaitable[ValueT]) -> ValueT:
    """What an API call gives, or the project's error where its JSON is of another shape."""
    try:
        return await answer
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise TeacherUnreachableError(f"the batch API gave an answer of another shape: {error!r:.200}") from None

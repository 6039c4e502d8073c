"""Asks through a batch API what the journal lacks; settles what earlier runs submitted."""

import tempfile
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from pathlib import Path

from proxykd.config.teacher import AnthropicTeacherSpec, BatchSpec, OpenAITeacherSpec
from proxykd.teacher.batches.anthropic import AnthropicBatches
from proxykd.teacher.batches.api import BatchApi, Caller
from proxykd.teacher.batches.asker import Asker, End, Listener
from proxykd.teacher.batches.chunks import Chunks
from proxykd.teacher.batches.openai import OpenAIBatches
from proxykd.teacher.budget import Cost
from proxykd.teacher.calls import Lookups
from proxykd.teacher.clock import WallClock, run_loop
from proxykd.teacher.endpoint import Endpoint
from proxykd.teacher.journal import Journal
from proxykd.teacher.live import LiveTeacher
from proxykd.teacher.providers.anthropic import AnthropicProvider
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.retry import RetryPolicy
from proxykd.teacher.transport import HttpClient

_CONNECTIONS = 4


def ask_in_batches(
    teacher: LiveTeacher,
    lookups: Lookups,
    journal: Journal,
    listener: Listener,
    *,
    spent: Callable[[], Cost],
    only_settles: bool = False,
) -> End | None:
    """Settle what the journal lacks, or as much of it as the caps let pass.

    Where the specification asks for one call a request, or nothing is to be asked, only batches that earlier runs
    submitted are settled, so that none of their requests is paid for twice.

    Args:
        teacher: Who is asked.
        lookups: Looks all calls up in the journal, each time that it is called.
        journal: Keeps the answers.
        listener: Hears of what happens.
        spent: Tells what the run's calls have cost before; asked when nobody else can spend any more.
        only_settles: Whether nothing is to be asked.

    Returns:
        How it ended; None = nothing was asked here.

    Raises:
        TeacherError: if the endpoint cannot be used or refuses a batch; what was submitted is not lost.
        StorageError: if the journal cannot be used.
        BusyError: if another process spends under a cap on the same journal.
    """
    spec = teacher.spec
    if not isinstance(spec, OpenAITeacherSpec | AnthropicTeacherSpec):
        return None
    url, clock = spec.base_url.rstrip("/"), WallClock()
    asks = spec.batch is not None and not only_settles

    async def drive(chunks: Chunks, folder: Path, work: Callable[[Asker], Awaitable[End | None]]) -> End | None:
        async with HttpClient(
            url,
            secret=teacher.secret,
            timeout_s=spec.timeout_s,
            concurrency=_CONNECTIONS,
            headers=teacher.provider.headers,
        ) as client:
            endpoint, policy = Endpoint(url, teacher.model, teacher.secret_name), RetryPolicy(spec.max_attempts)
            api = batch_api(spec, Caller(client, teacher.provider, policy, clock, endpoint))
            # What is settled for calls of their own is counted with what the journal had.
            heard = listener if spec.batch or only_settles else listener._replace(on_settled=lambda _: None)
            batch = spec.batch or BatchSpec()
            return await work(Asker(teacher, journal, chunks, api, endpoint, batch, heard, folder, clock))

    async def work(asker: Asker) -> End | None:
        await asker.take_up_all(spent())
        if not asks:
            await asker.settle_all()
            return None
        return await asker.run(lookups)

    with Chunks(journal.path) as chunks:
        if not asks and not chunks.has_any():
            return None
        alone = journal.spending() if teacher.budget.is_set else nullcontext()
        with alone, tempfile.TemporaryDirectory(prefix="proxykd-batches-") as folder:
            return run_loop(drive(chunks, Path(folder), work))


def batch_api(spec: OpenAITeacherSpec | AnthropicTeacherSpec, caller: Caller) -> BatchApi:
    """The batches of a teacher's API."""
    url = spec.base_url.rstrip("/")
    if isinstance(spec, AnthropicTeacherSpec):
        return AnthropicBatches(url, caller, AnthropicProvider())
    return OpenAIBatches(url, caller, OpenAIProvider(spec.max_tokens_parameter))

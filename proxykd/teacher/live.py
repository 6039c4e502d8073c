"""A teacher that answers over HTTP: which requests a run makes to it, what they cost, and an engine to send them."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import cast

import pyarrow as pa

from proxykd.artifacts import PromptSet
from proxykd.config.base import read_secret, read_secret_file
from proxykd.config.prices import PriceSpec
from proxykd.config.specification import QuerySpec
from proxykd.config.teacher import (
    AnthropicTeacherSpec,
    ApiTeacherSpec,
    BudgetSpec,
    EmbeddedTeacherSpec,
    GeminiTeacherSpec,
    LimitsSpec,
    OpenAITeacherSpec,
    TeacherSpec,
)
from proxykd.data.shares import Share
from proxykd.progress import report
from proxykd.records import Prompt
from proxykd.teacher.budget import Cost, Ledger, Tariff, spent_on
from proxykd.teacher.calls import CALLS_AT_ONCE, Calls, RequestKeys
from proxykd.teacher.clock import run_loop
from proxykd.teacher.endpoint import Endpoint
from proxykd.teacher.engine import Engine
from proxykd.teacher.entries import Entry
from proxykd.teacher.journal import Journal
from proxykd.teacher.limits import SharedState, StateStore, shared_path
from proxykd.teacher.providers.anthropic import AnthropicProvider
from proxykd.teacher.providers.base import Provider, build_request
from proxykd.teacher.providers.gemini import GeminiProvider
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.replies import Reply, Request
from proxykd.teacher.retry import RetryPolicy
from proxykd.teacher.server import MODEL
from proxykd.teacher.serving import embedded_teacher
from proxykd.teacher.structured import OutcomeRule, outcome_rule
from proxykd.teacher.transport import AiohttpTransport
from proxykd.teacher.truncation import follow_up, is_truncated, join

LiveTeacherSpec = OpenAITeacherSpec | AnthropicTeacherSpec | GeminiTeacherSpec | EmbeddedTeacherSpec


def provider_of(spec: TeacherSpec) -> str:
    """Host and path of the endpoint, without its port, which changes when a local server starts again; "" = none."""
    return spec.provider if isinstance(spec, ApiTeacherSpec) else ""


def secret_of(spec: TeacherSpec) -> str | None:
    """The key of a teacher; None = it needs none.

    Raises:
        ConfigError: if it is not where the specification says.
    """
    if not isinstance(spec, ApiTeacherSpec):
        return None
    if spec.api_key_file is not None:
        return read_secret_file(spec.api_key_file)
    return read_secret(spec.api_key) if spec.api_key else None


def provider_for(spec: LiveTeacherSpec) -> Provider:
    """The shape of a teacher's API."""
    if isinstance(spec, AnthropicTeacherSpec):
        return AnthropicProvider()
    if isinstance(spec, GeminiTeacherSpec):
        return GeminiProvider()
    return OpenAIProvider(spec.max_tokens_parameter if isinstance(spec, OpenAITeacherSpec) else "max_tokens")


@dataclass(frozen=True)
class LiveTeacher:
    """A teacher that answers over HTTP, and how requests to it are made.

    Attributes:
        spec: Which teacher.
        seed: Seed of the run.
        secret: The key itself; None = no key is sent. Never part of a message.
        share: Which prompts it is asked; None = all.
    """

    spec: LiveTeacherSpec
    seed: int
    secret: str | None = field(repr=False)
    share: Share | None = None

    @classmethod
    def of(cls, run: QuerySpec, spec: LiveTeacherSpec, share: Share | None = None) -> "LiveTeacher":
        """A live teacher of a run.

        Raises:
            ConfigError: if its key is not where the specification says.
        """
        return cls(spec, run.seed, secret_of(spec), share)

    @property
    def model(self) -> str:
        """Model name that is asked for."""
        return self.spec.model if isinstance(self.spec, ApiTeacherSpec) else MODEL

    @property
    def secret_name(self) -> str | None:
        """Where the key is, as the specification says it; None = none is sent."""
        if not isinstance(self.spec, ApiTeacherSpec):
            return None
        return self.spec.api_key or (str(self.spec.api_key_file) if self.spec.api_key_file else None)

    @cached_property
    def price(self) -> PriceSpec | None:
        """Price of a token; None = not known."""
        return self.spec.known_price if isinstance(self.spec, ApiTeacherSpec) else None

    @cached_property
    def outcome_of(self) -> OutcomeRule:
        """How its replies end."""
        return outcome_rule(self.spec.sampling.json_schema)

    @cached_property
    def provider(self) -> Provider:
        """The shape of its API."""
        return provider_for(self.spec)

    @cached_property
    def endpoint(self) -> str:
        """What tells it from other endpoints in the journal."""
        return provider_of(self.spec)

    def serving(self) -> AbstractContextManager[str]:
        """The base URL; the embedded teacher is served while the context lasts."""
        if isinstance(self.spec, ApiTeacherSpec):
            return nullcontext(self.spec.base_url.rstrip("/"))
        return embedded_teacher(seed=self.seed)

    def request(self, prompt: Prompt, sample_idx: int) -> Request:
        """The call for one sample of one prompt."""
        return build_request(
            prompt,
            sample_idx,
            provider=self.provider,
            model=self.model,
            sampling=self.spec.sampling,
            seed=self.seed,
            endpoint=self.endpoint,
        )

    @cached_property
    def _keys(self) -> RequestKeys:
        return RequestKeys(
            provider=self.provider,
            model=self.model,
            sampling=self.spec.sampling,
            seed=self.seed,
            endpoint=self.endpoint,
        )

    def requests_of(self, prompt: Prompt) -> Iterator[tuple[int, Request]]:
        """Every (sample index, call) of one prompt; none if the teacher is not asked it."""
        if self.share is None or self.share.has(prompt.split_key):
            for sample_idx in range(self.spec.sampling.num_samples):
                yield sample_idx, self.request(prompt, sample_idx)

    def requests(self, prompts: PromptSet) -> Iterator[tuple[Prompt, int, Request]]:
        """Every (prompt, sample index, call), in the order of the prompts."""
        for prompt in prompts.rows():
            for sample_idx, request in self.requests_of(prompt):
                yield prompt, sample_idx, request

    def calls_about(self, batch: pa.RecordBatch) -> Calls:
        """Every call about a batch of prompts."""
        rows = range(batch.num_rows) if self.share is None else self.share.rows(batch)
        return Calls.about(batch, rows, num_samples=self.spec.sampling.num_samples, keys=self._keys, build=self.request)

    def calls(self, prompts: PromptSet) -> Iterator[Calls]:
        """The calls of ``requests``, in the same order, a batch of prompts at a time."""
        return (self.calls_about(batch) for batch in prompts.batches(batch_rows=self.prompts_at_once))

    @property
    def prompts_at_once(self) -> int:
        """Prompts whose calls are few enough to be looked up together."""
        return max(1, CALLS_AT_ONCE // self.spec.sampling.num_samples)

    def num_prompts(self, prompts: PromptSet) -> int:
        """How many of the prompts it is asked."""
        return prompts.num_rows if self.share is None else self.share.count(prompts)

    def num_requests(self, prompts: PromptSet) -> int:
        """How many calls ``requests`` gives."""
        return self.num_prompts(prompts) * self.spec.sampling.num_samples

    @property
    def asks_further(self) -> bool:
        """Whether truncated answers are followed by a further call."""
        return isinstance(self.spec, ApiTeacherSpec) and self.spec.on_truncated != "keep"

    def further(self, prompt: Prompt, request: Request, journal: Journal) -> Request | None:
        """The further call that a truncated answer in the journal asks for; None = there is none to make.

        Raises:
            StorageError: if the journal cannot be read.
        """
        if not self.asks_further or (entry := journal.get(request.key)) is None:
            return None
        return follow_up(cast(ApiTeacherSpec, self.spec), self.provider, prompt, request, entry.reply)

    def furthers(self, prompts: PromptSet, journal: Journal) -> Iterator[Request]:
        """Every further call that truncated answers in the journal ask for, in the order of the prompts."""
        for calls in self.calls(prompts) if self.asks_further else ():
            entries = calls.entries(journal.get_many)
            cut = [idx for idx, (_, entry) in enumerate(entries) if entry is not None and is_truncated(entry.reply)]
            for prompt, _, request in calls.select(cut):
                if (further := self.further(prompt, request, journal)) is not None:
                    yield further

    def reply_to(self, prompt: Prompt, request: Request, entry: Entry, journal: Journal) -> Reply:
        """What the journal has in answer to a call and to the one that followed it.

        Args:
            prompt: What was asked.
            request: The call.
            entry: The journal's entry of it.
            journal: Knows the further call.

        Raises:
            StorageError: if the journal cannot be read.
        """
        further = self.further(prompt, request, journal)
        then = further and journal.get(further.key)
        if not then:
            return entry.reply
        return join(cast(ApiTeacherSpec, self.spec), entry.reply, then.reply)

    @cached_property
    def tariff(self) -> Tariff:
        """What calls cost."""
        return Tariff(self.price)

    @property
    def budget(self) -> BudgetSpec:
        """The caps on what the run's calls cost."""
        return self.spec.budget if isinstance(self.spec, ApiTeacherSpec) else BudgetSpec()

    def spent(self, prompts: PromptSet, journal: Journal) -> Cost:
        """What the run's calls have cost so far; not looked up where no cap is set.

        Raises:
            StorageError: if the journal cannot be read.
        """
        if not self.budget.is_set or journal.is_empty():
            return Cost()
        first = (key for calls in self.calls(prompts) for key in calls.keys)
        keys = chain(first, (request.key for request in self.furthers(prompts, journal)))
        return spent_on(keys, tariff=self.tariff, get_many=journal.get_many, open_attempts=journal.open_attempts())

    def drive(self, journal: Journal, work: Callable[[Engine], Awaitable[None]], *, spent: Callable[[], Cost]) -> None:
        """Run ``work`` with an engine on an event loop of its own.

        Args:
            journal: Of the engine.
            work: What to do.
            spent: Tells what the run's calls have cost before; asked when nobody else can spend any more.

        Raises:
            BusyError: if another process spends under a cap on the same journal.
        """
        alone = journal.spending() if self.budget.is_set else nullcontext()
        with alone, self.serving() as base_url, self._limits(base_url) as store:
            run_loop(self._drive(self.provider.url(base_url, self.model), journal, work, spent(), store))

    @contextmanager
    def _limits(self, base_url: str) -> Iterator[StateStore | None]:
        """The state of the limits, shared with all processes of this machine that use the same account."""
        if not isinstance(self.spec, ApiTeacherSpec):
            yield None
            return
        path = shared_path(base_url, self.model, self.secret_name or "")
        try:
            store = SharedState(path)
        except OSError as error:
            report(f"limits are not shared with other processes: cannot use {path}: {error.strerror}")
            yield None
            return
        try:
            yield store
        finally:
            store.close()

    async def _drive(
        self,
        url: str,
        journal: Journal,
        work: Callable[[Engine], Awaitable[None]],
        spent: Cost,
        store: StateStore | None,
    ) -> None:
        spec, provider = self.spec, self.provider
        async with AiohttpTransport(
            url,
            secret=self.secret,
            timeout_s=spec.timeout_s,
            concurrency=spec.concurrency,
            headers=provider.headers,
        ) as transport:
            endpoint, policy = Endpoint(url, self.model, self.secret_name), _retry_policy(spec)
            ledger, patience = Ledger(self.budget, self.tariff, spent, provider), _patience(spec)
            engine = Engine(
                endpoint,
                transport,
                journal,
                policy,
                spec.concurrency,
                ledger,
                patience,
                provider=provider,
                limits=spec.limits if isinstance(spec, ApiTeacherSpec) else LimitsSpec(),
                limit_store=store,
            )
            await work(engine)


def _retry_policy(spec: LiveTeacherSpec) -> RetryPolicy:
    if isinstance(spec, ApiTeacherSpec):
        return RetryPolicy(spec.max_attempts, base_s=spec.retry_wait_s)
    return RetryPolicy(spec.max_attempts)


def _patience(spec: LiveTeacherSpec) -> int | None:
    """Requests in a row without an answer after which a run stops; more than one bad moment of all calls in flight."""
    return max(20, 2 * spec.concurrency) if spec.on_unanswered == "stop" else None

"""Hard caps on what a teacher may cost: the worst case of a call is reserved before it is sent, settled after.

    spent + reserved <= cap        at every moment, at any concurrency, across kills

A reservation is a row of the journal, durable before the call leaves. It goes away once the call's price is known: when
the answer's usage is journaled, when the endpoint refused the call with an error of the caller's (4xx) or did not work
at all (503), or when the call never left. A call that ends otherwise (a time-out, a dropped connection, another error
of the server's, a kill, a body without usage) keeps its row and counts as its worst case for ever: it may have been
paid for.

The worst case of a prompt is one token a byte of its messages as JSON: no byte-level tokenizer makes more, and the
punctuation covers the chat template's own tokens (``Provider.prompt_tokens_of`` adds what its API adds). Should an
endpoint count more all the same, the largest surplus seen is added to the worst case of every later call of the
process; calls in flight by then may exceed the cap by it.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from uuid import uuid4

from proxykd.artifacts import batched
from proxykd.config.prices import PriceSpec
from proxykd.config.teacher import BudgetSpec
from proxykd.teacher.entries import Attempt, Entry
from proxykd.teacher.providers.base import Provider
from proxykd.teacher.providers.openai import OpenAIProvider
from proxykd.teacher.replies import Reply, Request


@dataclass(frozen=True, slots=True)
class Cost:
    """What calls cost.

    Attributes:
        requests: Calls that are, or may be, paid for.
        tokens: Prompt and completion tokens.
        usd: US dollars; 0 where no price is stated.
    """

    requests: int = 0
    tokens: int = 0
    usd: float = 0.0

    def __add__(self, other: "Cost") -> "Cost":
        """Both together."""
        return Cost(self.requests + other.requests, self.tokens + other.tokens, self.usd + other.usd)

    def __sub__(self, other: "Cost") -> "Cost":
        """The rest."""
        return Cost(self.requests - other.requests, self.tokens - other.tokens, self.usd - other.usd)


NOTHING = Cost()
_LOOKED_UP = 1024
BATCHED = "batch-"
"""With which the ids of attempts in a batch begin."""
_OPENAI = OpenAIProvider()


@dataclass(frozen=True, slots=True)
class Tariff:
    """Prices calls.

    Attributes:
        price: Price of a token; None = not known, every call costs 0 USD.
    """

    price: PriceSpec | None

    def usd(
        self, prompt_tokens: int, completion_tokens: int, *, cached_tokens: int = 0, is_batched: bool = False
    ) -> float:
        """USD of so many tokens.

        Args:
            prompt_tokens: Input, cached ones included.
            completion_tokens: Output.
            cached_tokens: Those of ``prompt_tokens`` that were read from a cache.
            is_batched: Whether they went through a batch API.
        """
        if (price := self.price) is None:
            return 0.0
        cached_usd = price.cached_input_usd_per_million
        if cached_usd is None:
            cached_usd = price.input_usd_per_million
        cached_tokens = min(cached_tokens, prompt_tokens)
        total = (prompt_tokens - cached_tokens) * price.input_usd_per_million + cached_tokens * cached_usd
        total += completion_tokens * price.output_usd_per_million
        return total * (1.0 - price.batch_discount if is_batched else 1.0) / 1e6

    def of_reply(self, reply: Reply) -> Cost:
        """What an answer cost; nothing if it tells of no tokens (its attempt then stays open and counts)."""
        tokens = reply.prompt_tokens + reply.completion_tokens
        usd = self.usd(
            reply.prompt_tokens,
            reply.completion_tokens,
            cached_tokens=reply.cached_tokens,
            is_batched=reply.is_batched,
        )
        return Cost(int(tokens > 0), tokens, usd)

    @staticmethod
    def is_told(status: int, reply: Reply) -> bool:
        """Whether an answer says what its call cost.

        An error of the request's (4xx) or a refusal to work (503, 529) costs nothing. A time-out or another error of
        the server's may follow a completion that was paid for, and a usage that counts one side only is none.
        """
        if status == 200:
            return reply.prompt_tokens > 0 and (reply.completion_tokens > 0 or not reply.text)
        return status in (503, 529) or (status < 500 and status != 408)

    def of_attempt(self, attempt: Attempt) -> Cost:
        """The most that a call can cost."""
        is_batched = attempt.attempt_id.startswith(BATCHED)
        usd = self.usd(attempt.prompt_tokens, attempt.completion_tokens, is_batched=is_batched)
        return Cost(1, attempt.prompt_tokens + attempt.completion_tokens, usd)


def worst_case(request: Request, provider: Provider = _OPENAI, *, attempt_id: str | None = None) -> Attempt:
    """The call with the most tokens that it can be billed for.

    Args:
        request: The call.
        provider: Its API's shape.
        attempt_id: Its name; one that begins with ``BATCHED`` is priced as a batch's. None = a new one.

    Raises:
        ValueError: if the request states no bound on the completion.
    """
    prompt_tokens, completion_tokens = provider.prompt_tokens_of(request.body), provider.max_tokens_of(request.body)
    name = uuid4().hex if attempt_id is None else attempt_id
    return Attempt(name, request.key, prompt_tokens, completion_tokens)


def is_within(caps: BudgetSpec, total: Cost) -> bool:
    """Whether no cap is exceeded."""
    return (
        (caps.usd is None or total.usd <= caps.usd)
        and (caps.tokens is None or total.tokens <= caps.tokens)
        and (caps.requests is None or total.requests <= caps.requests)
    )


def describe_caps(caps: BudgetSpec, spent: Cost) -> str:
    """The caps that are set and what is spent of each; "" = none is."""
    texts = {
        "usd": (caps.usd, f"{spent.usd:,.4f}"),
        "tokens": (caps.tokens, f"{spent.tokens:,}"),
        "requests": (caps.requests, f"{spent.requests:,}"),
    }
    return ", ".join(
        f"teacher.budget.{name}={cap:,.12g} ({amount} spent)"
        for name, (cap, amount) in texts.items()
        if cap is not None
    )


def spent_on(
    keys: Iterable[str],
    *,
    tariff: Tariff,
    get_many: Callable[[Sequence[str]], Mapping[str, Entry]],
    open_attempts: Iterable[Attempt],
) -> Cost:
    """What a run's requests have cost so far, worst cases of calls without a known price included.

    Args:
        keys: Of the run's requests.
        tariff: Prices.
        get_many: The journal's entries of some requests.
        open_attempts: All open attempts of the journal; those of other runs' requests do not count.
    """
    total = Cost()
    lost: dict[str, Cost] = {}
    for attempt in open_attempts:
        lost[attempt.key] = lost.get(attempt.key, Cost()) + tariff.of_attempt(attempt)
    for block in batched(keys, _LOOKED_UP):
        for key, entry in get_many(block).items():
            # An answer that does not tell its price is counted by its attempt, which is open.
            if key not in lost or tariff.is_told(200, entry.reply):
                total += tariff.of_reply(entry.reply)
        for key in set(block) & lost.keys():
            total += lost[key]
    return total


class Ledger:
    """Reserves and settles the calls of one run; without caps it lets everything pass.

    Args:
        caps: The most that may be spent; a cap that is None does not bind.
        tariff: Prices.
        spent: What was spent before.
        provider: Bounds what a call may be billed for.

    Attributes:
        spent: Settled calls, and the worst cases of those that ended without a known price.
        is_exhausted: Whether a call was turned away; no other passes then.
    """

    def __init__(self, caps: BudgetSpec, tariff: Tariff, spent: Cost, provider: Provider = _OPENAI) -> None:
        self.spent, self.is_exhausted = spent, False
        self._caps, self._tariff, self._provider, self._is_set = caps, tariff, provider, caps.is_set
        self._reserved, self._num_in_flight = Cost(), 0
        self._surplus = (0, 0)  # prompt, completion
        self._waiting: list[asyncio.Future[None]] = []

    def bound(self, request: Request) -> Attempt:
        """The call with the most that it can be billed for; nothing where no cap is set."""
        return (
            worst_case(request, self._provider, attempt_id="") if self._caps.is_set else Attempt("", request.key, 0, 0)
        )

    async def reserve(self, bound: Attempt) -> Attempt | None:
        """Set aside the worst case of a call; waits while calls in flight may still leave enough.

        Args:
            bound: Of the call.

        Returns:
            The attempt, to be settled, freed or lost by the caller; None if a cap does not allow the call.
        """
        if not self._is_set:
            return bound
        attempt, cost = self._with_surplus(bound)
        while not (self.is_exhausted or self._fits(cost)) and self._num_in_flight:
            waiter = asyncio.get_running_loop().create_future()
            self._waiting.append(waiter)
            await waiter
            attempt, cost = self._with_surplus(bound)
        if self.is_exhausted or not self._fits(cost):
            self.is_exhausted = True
            self._wake()
            return None
        self._reserved, self._num_in_flight = self._reserved + cost, self._num_in_flight + 1
        return attempt

    def _with_surplus(self, bound: Attempt) -> tuple[Attempt, Cost]:
        prompt, completion = self._surplus
        name, key, prompt_tokens, completion_tokens = bound
        attempt = Attempt(name, key, prompt_tokens + prompt, completion_tokens + completion)
        return attempt, self._tariff.of_attempt(attempt)

    def settle(self, attempt: Attempt, bound: Attempt, status: int, reply: Reply) -> Attempt | None:
        """Put what an answered call cost in place of its worst case.

        Args:
            attempt: From ``reserve``.
            bound: From ``bound``.
            status: HTTP status.
            reply: Tells of the tokens.

        Returns:
            The call as it is to be remembered if its price is not known; None = it is, or nobody counts.
        """
        if not self._is_set:
            return None
        if not self._tariff.is_told(status, reply):
            return self.lose(attempt)
        self._replace(attempt, self._tariff.of_reply(reply))
        self._surplus = (
            max(self._surplus[0], reply.prompt_tokens - bound.prompt_tokens),
            max(self._surplus[1], reply.completion_tokens - bound.completion_tokens),
        )
        return None

    def free(self, attempt: Attempt) -> None:
        """Count a call that never left as nothing."""
        if self._is_set:
            self._replace(attempt, NOTHING)

    def lose(self, attempt: Attempt) -> Attempt | None:
        """Count a call whose price is not known, and may never be, as its worst case.

        Returns:
            The call as it is to be remembered; None = nobody counts.
        """
        if not self._is_set:
            return None
        self._replace(attempt, self._tariff.of_attempt(attempt))
        return attempt._replace(attempt_id=uuid4().hex)

    def _replace(self, attempt: Attempt, cost: Cost) -> None:
        self._reserved -= self._tariff.of_attempt(attempt)
        self._num_in_flight -= 1
        self.spent += cost
        self._wake()

    def _wake(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = self._waiting, []
        for waiter in waiting:
            if not waiter.done():
                waiter.set_result(None)

    def _fits(self, cost: Cost) -> bool:
        return is_within(self._caps, self.spent + self._reserved + cost)

    def __str__(self) -> str:
        """The caps that are set and what is spent of each."""
        return describe_caps(self._caps, self.spent)

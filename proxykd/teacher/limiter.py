"""Holds calls back until the limits of ``proxykd.teacher.limits`` let them pass, and learns from what comes back."""

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import NamedTuple

from proxykd.config.teacher import LimitsSpec
from proxykd.teacher.clock import Clock
from proxykd.teacher.limits import LimitState, OwnState, StateStore, Tokens, correct, cut, pause, stated_limits, take
from proxykd.teacher.rate_headers import read_rate_headers

BYTES_A_TOKEN = 4.0
"""Of a prompt whose like has not been counted yet."""
_LONGEST_PAUSE_S = 600.0
_SMOOTHING = 0.05
_REFUSALS = (429, 503, 529)


class Leave(NamedTuple):
    """A call that was let go.

    Attributes:
        num_bytes: Of its prompt.
        tokens: What it was expected to use.
    """

    num_bytes: int
    tokens: Tokens


class Limiter:
    """Lets calls go, in the order in which they ask.

    Args:
        spec: The stated limits.
        concurrency: Most calls in flight.
        clock: Time.
        store: The shared state; None = this process asks alone.
        expected_output_tokens: Of the first completions, before any was counted.

    Attributes:
        window: Calls that may be in flight now, in [1, concurrency].
    """

    def __init__(
        self,
        spec: LimitsSpec,
        concurrency: int,
        clock: Clock,
        store: StateStore | None = None,
        *,
        expected_output_tokens: float = 512.0,
    ) -> None:
        self.window = float(concurrency)
        self._spec, self._concurrency, self._clock = spec, concurrency, clock
        self._store = OwnState() if store is None else store
        self._in_flight, self._waiting = 0, deque[asyncio.Future[None]]()
        self._num_answers, self._num_refused = 0, 0
        self._bytes_a_token, self._output_tokens = BYTES_A_TOKEN, expected_output_tokens
        self._has_rates = any(stated_limits(spec))
        self._num_left, self._places_from_s = 0, 0.0  # places that were taken ahead
        self._surplus = Tokens(0.0, 0.0)  # of answered calls, not in the shared state yet

    async def admit(self, num_bytes: int) -> Leave:
        """Return when a call may leave; ``answered`` or ``ended`` must follow.

        Args:
            num_bytes: Of its prompt.
        """
        await self._enter_window()
        leave = Leave(num_bytes, Tokens(num_bytes / self._bytes_a_token, self._output_tokens))
        try:
            await self._wait_for_turn(leave.tokens)
        except BaseException:
            self.ended()
            raise
        return leave

    def ended(self) -> None:
        """A call is no longer in flight, and what came of it is durable where that matters."""
        self._in_flight -= 1
        while self._waiting and self._in_flight < int(self.window):
            waiter = self._waiting.popleft()
            if not waiter.done():
                self._in_flight += 1
                waiter.set_result(None)

    def answered(
        self, leave: Leave, status: int, headers: Mapping[str, str], *, used: Tokens, retry_after_s: float | None
    ) -> None:
        """Learn from an answer.

        Args:
            leave: Of the call.
            status: HTTP status.
            headers: By lower-case name.
            used: Tokens that it was billed for; 0 = not told.
            retry_after_s: Seconds that the endpoint asked for; None = it did not.
        """
        self._count(status in _REFUSALS)
        self._learn_sizes(leave, used)
        if self._has_rates:
            spent = used if any(used) else leave.tokens if status == 200 else Tokens(0.0, 0.0)
            self._surplus = Tokens(
                self._surplus.input + spent.input - leave.tokens.input,
                self._surplus.output + spent.output - leave.tokens.output,
            )
        told = read_rate_headers(headers, now_s=self._clock.now_s())
        wait_s = min(_LONGEST_PAUSE_S, max(told.wait_s, (retry_after_s or 0.0) if status in _REFUSALS else 0.0))
        if told.limits or wait_s:
            self._heed({f"told_{bucket}": limit for bucket, limit in told.limits.items()}, wait_s)

    def _heed(self, news: Mapping[str, float], wait_s: float) -> None:
        state, now_s = self._store.read(), self._clock.steady_s()
        self._has_rates = self._has_rates or bool(news)
        if wait_s or any(getattr(state, name) != limit for name, limit in news.items()):
            self._store.update(lambda state: pause(state._replace(**news), now_s + wait_s if wait_s else 0.0))

    async def _enter_window(self) -> None:
        if self._in_flight < int(self.window) and not self._waiting:
            self._in_flight += 1
            return
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled():
                self.ended()
            raise

    async def _wait_for_turn(self, tokens: Tokens) -> None:
        now_s = self._clock.steady_s()
        leaves_s = self._place(tokens, now_s)
        while leaves_s > now_s:
            await self._clock.sleep(leaves_s - now_s)
            now_s = self._clock.steady_s()
            if self._store.read_pause() > now_s:  # asked for meanwhile: the place is gone
                leaves_s = self._place(tokens, now_s)

    def _place(self, tokens: Tokens, now_s: float) -> float:
        return self._take(tokens, now_s) if self._has_rates else self._store.read_pause()

    def _take(self, tokens: Tokens, now_s: float) -> float:
        """Take a place, and with it put right what was estimated of the calls before; returns when to leave."""
        if self._num_left and self._store.read_pause() <= now_s:
            self._num_left -= 1
            return self._places_from_s
        surplus, self._surplus = self._surplus, Tokens(0.0, 0.0)

        def change(state: LimitState) -> LimitState:
            corrected = correct(state, self._spec, surplus, now_s)
            state, self._places_from_s, num_calls = take(corrected, self._spec, tokens, now_s)
            self._num_left = num_calls - 1
            return state

        self._store.update(change)
        return self._places_from_s

    def _count(self, is_refused: bool) -> None:
        self._num_answers += 1
        self._num_refused += is_refused
        if self._num_answers < int(self.window):
            return
        share = self._num_refused / self._num_answers
        self.window = min(float(self._concurrency), max(1.0, self.window * (1.0 - share / 2.0) + 1.0))
        self._num_answers = self._num_refused = 0
        if share:
            self._store.update(lambda state: cut(state, share=share, now_s=self._clock.steady_s()))

    def _learn_sizes(self, leave: Leave, used: Tokens) -> None:
        if used.input:
            self._bytes_a_token += _SMOOTHING * (leave.num_bytes / used.input - self._bytes_a_token)
            self._output_tokens += _SMOOTHING * (used.output - self._output_tokens)

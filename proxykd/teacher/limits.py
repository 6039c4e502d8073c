"""How fast an endpoint may be asked: calls and tokens a minute, and calls in flight, all of them adaptive.

Rates follow the generic cell rate algorithm. A bucket of rate r keeps the time TAT at which it is level again; a call
of cost c that arrives at time t may leave at max(t, TAT - burst), and TAT becomes max(t, TAT) + c / r. In any window of
w seconds then leave at most r (w + burst) plus 20 ms' worth of calls, or one call. Places are given in the order of
arrival, by arithmetic alone, and what a call turns out to use beside its estimate moves TAT afterwards.

Refusals (429, 503) cut both limits: multiplicative decrease, additive increase. Once for each full window of answers,
of which the share F was refused,

    window <- max(1, window (1 - F / 2) + 1),    rates <- rates (1 - F / 2) if F > 0,

and rates grow back by the same amount every second. All refused halves them; the odd refusal of a busy endpoint costs
next to nothing. Retry-After holds up every call, not only the one that was refused. Limits that the endpoint tells in
its headers count from its first answer.

The state is a few numbers in a file that all processes of one machine share (``SharedState``): one account has one
limit, however many processes ask. Across machines each takes a fixed ``share``. Times are those of the monotonic clock,
which no change of the date moves.

References: ITU-T I.371, Annex A (GCRA). Chiu and Jain, Analysis of the Increase and Decrease Algorithms for Congestion
Avoidance in Computer Networks, 1989 (AIMD). Alizadeh et al., Data Center TCP, SIGCOMM 2010 (decrease by the share F;
without its running mean: a window is an answer to each call in flight).
"""

import fcntl
import math
import mmap
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

from proxykd.config.teacher import LimitsSpec
from proxykd.records import hash_json

BURST_S = 1.0
"""Seconds' worth of calls that may leave at once after a pause."""
TOGETHER_S = 0.02
"""Seconds' worth of calls that get their places together."""
MOST_TOGETHER = 32
RECOVERY_S = 60.0
"""Seconds in which a rate grows from nothing to its limit."""
LOWEST_FACTOR = 1 / 64


class Tokens(NamedTuple):
    """What a call takes from the limits beside itself.

    Attributes:
        input: Tokens of the prompt.
        output: Tokens of the completion.
    """

    input: float
    output: float


class LimitState(NamedTuple):
    """What is shared by all who ask one endpoint; times in seconds of the monotonic clock.

    Attributes:
        calls, tokens, input_tokens, output_tokens: When each bucket is level again (TAT).
        paused_until: Nobody asks before.
        factor: Share of the rates that was left after the last cut, in (0, 1].
        cut_at: When that was.
        told_calls, told_tokens, told_input_tokens, told_output_tokens: Limits a minute as the endpoint told them;
            0 = it did not.
    """

    calls: float = 0.0
    tokens: float = 0.0
    input_tokens: float = 0.0
    output_tokens: float = 0.0
    paused_until: float = 0.0
    factor: float = 1.0
    cut_at: float = 0.0
    told_calls: float = 0.0
    told_tokens: float = 0.0
    told_input_tokens: float = 0.0
    told_output_tokens: float = 0.0

    def factor_at(self, now_s: float) -> float:
        """Share of the rates that may be used now, in (0, 1]."""
        return min(1.0, self.factor + max(0.0, now_s - self.cut_at) / RECOVERY_S)


_BUCKETS = ("calls", "tokens", "input_tokens", "output_tokens")
_FIRST_TOLD = 7
"""Where the told limits begin in the state, in the order of the buckets."""


def rates_of(state: LimitState, spec: LimitsSpec, now_s: float) -> dict[str, float]:
    """Units a second of each bucket that has a limit, stated or told, the lower of the two.

    Args:
        state: As it is.
        spec: The stated limits.
        now_s: Now.
    """
    share = spec.share * state.factor_at(now_s) / 60.0
    return {
        bucket: min(stated or math.inf, told or math.inf) * share
        for bucket, stated, told in zip(_BUCKETS, stated_limits(spec), state[_FIRST_TOLD:], strict=True)
        if stated or told
    }


def stated_limits(spec: LimitsSpec) -> tuple[float | None, ...]:
    """The limits of a specification in the order of the buckets."""
    return spec.requests_per_minute, spec.tokens_per_minute, spec.input_tokens_per_minute, spec.output_tokens_per_minute


class Places(NamedTuple):
    """Places that were given out.

    Attributes:
        state: After it.
        leaves_s: When the calls may leave.
        num_calls: How many.
    """

    state: LimitState
    leaves_s: float
    num_calls: int


def take(state: LimitState, spec: LimitsSpec, cost: Tokens, now_s: float) -> Places:
    """Give a call its place; at high rates a few at once, so that the state need not be asked for each.

    Args:
        state: Before.
        spec: The stated limits.
        cost: Estimated, of one call.
        now_s: Now.
    """
    costs = {"calls": 1.0, "tokens": sum(cost), "input_tokens": cost.input, "output_tokens": cost.output}
    rates = rates_of(state, spec, now_s)
    room = min((rate * TOGETHER_S / max(costs[bucket], 1.0) for bucket, rate in rates.items()), default=0.0)
    num_calls = max(1, min(MOST_TOGETHER, int(room)))
    leaves_s, level = max(now_s, state.paused_until), {}
    for bucket, rate in rates.items():
        level_s = max(now_s, state.paused_until, getattr(state, bucket))
        leaves_s = max(leaves_s, level_s - BURST_S)
        level[bucket] = level_s + num_calls * costs[bucket] / rate
    return Places(state._replace(**level), leaves_s, num_calls)


def correct(state: LimitState, spec: LimitsSpec, surplus: Tokens, now_s: float) -> LimitState:
    """Move the buckets by what a call used beside its estimate (negative = it used less)."""
    extra = {"tokens": sum(surplus), "input_tokens": surplus.input, "output_tokens": surplus.output}
    rates = rates_of(state, spec, now_s)
    level = {name: getattr(state, name) + extra[name] / rates[name] for name in extra if name in rates}
    return state._replace(**level) if level else state


def cut(state: LimitState, *, share: float, now_s: float) -> LimitState:
    """Lower the rates.

    Args:
        state: Before.
        share: Of the last answers, how many were refusals, in [0, 1].
        now_s: Now.
    """
    return state._replace(factor=max(LOWEST_FACTOR, state.factor_at(now_s) * (1.0 - share / 2.0)), cut_at=now_s)


def pause(state: LimitState, until_s: float) -> LimitState:
    """Hold up all calls."""
    return state._replace(paused_until=max(state.paused_until, until_s))


class StateStore(Protocol):
    """Holds the state for all who share it."""

    def read(self) -> LimitState:
        """The state."""

    def read_pause(self) -> float:
        """``paused_until`` of the state."""

    def update(self, change: Callable[[LimitState], LimitState]) -> LimitState:
        """Put ``change`` of the state in its place, while nobody else does; returns it."""


@dataclass(slots=True)
class OwnState:
    """The state of one process.

    Attributes:
        state: As it is.
    """

    state: LimitState = field(default_factory=LimitState)

    def read(self) -> LimitState:
        """The state."""
        return self.state

    def read_pause(self) -> float:
        """``paused_until`` of the state."""
        return self.state.paused_until

    def update(self, change: Callable[[LimitState], LimitState]) -> LimitState:
        """Put ``change`` of the state in its place; returns it."""
        self.state = change(self.state)
        return self.state


_PAUSE, _PAUSE_AT = struct.Struct("<d"), 8 * LimitState._fields.index("paused_until")
_FORM = struct.Struct(f"<{len(LimitState._fields)}d")


class SharedState:
    """The state in a file that all processes of this machine map into their memory.

    Args:
        path: The file; made with its folder where there is none.

    Raises:
        OSError: if it cannot be made, mapped or locked.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        with self._locked():
            if os.fstat(self._descriptor).st_size != _FORM.size:
                os.ftruncate(self._descriptor, 0)
                os.write(self._descriptor, _FORM.pack(*LimitState()))
        self._memory = mmap.mmap(self._descriptor, _FORM.size)

    def close(self) -> None:
        """Give the file back."""
        self._memory.close()
        os.close(self._descriptor)

    def read(self) -> LimitState:
        """The state."""
        state = LimitState(*_FORM.unpack_from(self._memory))
        return state if math.isfinite(sum(state)) else LimitState()

    def read_pause(self) -> float:
        """``paused_until`` alone, for who asks before every call."""
        (until_s,) = _PAUSE.unpack_from(self._memory, _PAUSE_AT)
        return float(until_s)

    def update(self, change: Callable[[LimitState], LimitState]) -> LimitState:
        """Put ``change`` of the state in its place, while nobody else does; returns it."""
        with self._locked():
            state = change(self.read())
            _FORM.pack_into(self._memory, 0, *state)
        return state

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)
        try:
            yield
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)


_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def shared_path(*account: str) -> Path:
    """Where the processes of one user on this machine share the limits of one account, until it starts anew.

    The monotonic clock begins anew with the machine, so that a state of another start means nothing.

    Args:
        account: What tells it from others, address, model and the name of the key's variable; never a secret.
    """
    root = os.environ.get("XDG_RUNTIME_DIR") or Path(tempfile.gettempdir(), f"proxykd-{os.getuid()}")
    try:
        start = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:  # not Linux
        start = ""
    return Path(root) / "proxykd-limits" / hash_json([start, *account], length=32)

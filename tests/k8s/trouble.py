"""Faults that the API server double makes on demand."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.k8s.access import Call
from tests.k8s.refusals import Refusal

_REASONS = {409: "Conflict", 429: "TooManyRequests", 500: "InternalError", 503: "ServiceUnavailable", 504: "Timeout"}


@dataclass
class Fault:
    """One kind of trouble.

    Attributes:
        code: HTTP status of the answer.
        num_times: Calls left to spoil.
        chosen: Which calls it spoils.
        retry_after_s: Sent as Retry-After; None = no such header.
        is_after: Whether the call takes effect before it is answered wrongly.
    """

    code: int
    num_times: int
    chosen: Callable[[Call], bool]
    retry_after_s: float | None = None
    is_after: bool = False


@dataclass
class Trouble:
    """The faults that are due; empty at first."""

    faults: list[Fault] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        code: int,
        *,
        num_times: int = 1,
        verb: str = "",
        resource: str = "",
        name: str = "",
        retry_after_s: float | None = None,
        is_after: bool = False,
    ) -> None:
        """Answer the next ``num_times`` calls of a verb on a resource with ``code``; an empty word means any."""

        def is_chosen(call: Call) -> bool:
            return verb in ("", call.verb) and resource in ("", call.resource) and name in call.name

        with self._lock:
            self.faults.append(Fault(code, num_times, is_chosen, retry_after_s, is_after))

    def strike(self, call: Call, *, is_after: bool) -> None:
        """Spoil a call if a fault is due for it.

        Raises:
            Refusal: with the fault's code.
        """
        with self._lock:
            due = next((one for one in self.faults if one.is_after == is_after and one.chosen(call)), None)
            if due is None:
                return
            due.num_times -= 1
            if due.num_times <= 0:
                self.faults.remove(due)
        headers = {} if due.retry_after_s is None else {"Retry-After": f"{due.retry_after_s:g}"}
        raise Refusal(due.code, _REASONS.get(due.code, "Unknown"), f"fault on demand: {due.code}", headers)

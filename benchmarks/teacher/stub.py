"""The one server that every asker of the comparison asks: ``python stub.py --latency-s 0.02 --fault-rate 0.05``.

Chat completions after a fixed latency. So many calls fail: half with 429 and Retry-After: 0, half with 500, with
bodies in OpenAI's shape. A run has an address of its own, ``/NAME/v1/chat/completions``, and counts of its own,
``/NAME/stats``; the draws that decide on faults begin anew with every name, so that all runs meet the same. A call
without messages (how some clients look for rate limits) is refused and not counted. The port is printed first.
"""

import argparse
import asyncio
import json
import os
import random
import time
from dataclasses import asdict, dataclass, field

from aiohttp import web

MAX_LIFE_S = 3600.0
_ANSWER = {
    "id": "chatcmpl-0",
    "object": "chat.completion",
    "created": 1700000000,
    "model": "stub",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "An answer of some length. " * 8},
            "finish_reason": "stop",
        }
    ],
    "usage": {"prompt_tokens": 20, "completion_tokens": 60, "total_tokens": 80},
}
_RATE_LIMITS = {
    "x-ratelimit-limit-requests": "10000000",
    "x-ratelimit-limit-tokens": "1000000000",
    "x-ratelimit-remaining-requests": "9999999",
    "x-ratelimit-remaining-tokens": "999999999",
    "x-ratelimit-reset-requests": "1ms",
    "x-ratelimit-reset-tokens": "1ms",
}


@dataclass
class Counts:
    """What one run did, as the server saw it.

    Attributes:
        calls: Questions that came.
        answers: Completions that went out.
        paid_twice: Completions of questions that had one before.
        peak_in_flight: Most calls at one moment.
        first_call_s: When the first question came, by the server's clock.
        last_answer_s: When the last completion went out, by the same clock.
        cpu_s: CPU seconds of the server between the two.
    """

    calls: int = 0
    answers: int = 0
    paid_twice: int = 0
    peak_in_flight: int = 0
    first_call_s: float = 0.0
    last_answer_s: float = 0.0
    cpu_s: float = 0.0


@dataclass
class Run:
    """The state of one run: its counts, its draws, and the questions that were answered."""

    counts: Counts = field(default_factory=Counts)
    rng: random.Random = field(default_factory=lambda: random.Random(0))
    answered: set[str] = field(default_factory=set)
    in_flight: int = 0
    cpu_at_start_s: float = 0.0

    def enter(self) -> None:
        """Count a call that came."""
        if not self.counts.calls:
            self.counts.first_call_s, self.cpu_at_start_s = time.monotonic(), time.process_time()
        self.counts.calls += 1
        self.in_flight += 1
        self.counts.peak_in_flight = max(self.counts.peak_in_flight, self.in_flight)

    def answer(self, question: str) -> None:
        """Count a completion that goes out."""
        self.counts.answers += 1
        self.counts.paid_twice += question in self.answered
        self.answered.add(question)
        self.counts.last_answer_s = time.monotonic()
        self.counts.cpu_s = time.process_time() - self.cpu_at_start_s


class Stub:
    """Answers all runs.

    Args:
        latency_s: Seconds that every call takes.
        fault_rate: Share of calls that fail.
        headers: Of every response.
    """

    def __init__(self, *, latency_s: float, fault_rate: float, headers: dict[str, str]) -> None:
        self._latency_s, self._fault_rate, self._headers = latency_s, fault_rate, headers
        self._runs: dict[str, Run] = {}
        self._body = json.dumps(_ANSWER).encode()

    async def respond(self, request: web.BaseRequest) -> web.Response:
        """Answer one HTTP request."""
        _, name, rest = request.path.split("/", 2)
        run = self._runs.setdefault(name, Run())
        if rest == "stats":
            return web.json_response(asdict(run.counts))
        messages = json.loads(await request.read())["messages"]
        if not messages:
            return self._error(400, "invalid_request_error", "messages must not be empty")
        run.enter()
        await asyncio.sleep(self._latency_s)
        run.in_flight -= 1
        if (draw := run.rng.random()) < self._fault_rate:
            if draw < self._fault_rate / 2:
                return self._error(429, "rate_limit_exceeded", "Rate limit reached for requests", {"Retry-After": "0"})
            return self._error(500, "server_error", "The server had an error while processing your request")
        run.answer(messages[-1]["content"])
        return web.Response(body=self._body, content_type="application/json", headers=self._headers)

    def _error(self, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> web.Response:
        error = {"error": {"message": message, "type": code, "code": code}}
        return web.json_response(error, status=status, headers={**self._headers, **(headers or {})})


async def serve(stub: Stub) -> None:
    """Serve on a free port of loopback until killed or ``MAX_LIFE_S`` are over."""
    runner = web.ServerRunner(web.Server(stub.respond))
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
    os.write(1, f"{runner.addresses[0][1]}\n".encode())
    await asyncio.sleep(MAX_LIFE_S)


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--latency-s", type=float, default=0.02)
    parser.add_argument("--fault-rate", type=float, default=0.0)
    parser.add_argument("--rate-limit-headers", action="store_true")
    given = parser.parse_args()
    headers = _RATE_LIMITS if given.rate_limit_headers else {}
    asyncio.run(serve(Stub(latency_s=given.latency_s, fault_rate=given.fault_rate, headers=headers)))


if __name__ == "__main__":
    main()

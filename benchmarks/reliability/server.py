"""An endpoint that misbehaves on request: ``python server.py PORT LEDGER --fault-rate 0.2``.

Chat completions in OpenAI's shape. Every completion that goes out is a line of the ledger, a file that outlives the
server: what the lines hold has been paid for. Some questions get a special answer whatever the mode (``SPECIAL``).
"""

import argparse
import asyncio
import os
import random
import time
from email.utils import formatdate

from aiohttp import web

MAX_LIFE_S = 600.0
SPECIAL = (
    "poison",  # HTTP 400
    "filter",  # refused by the content filter, with HTTP 400
    "refuse",  # the model refuses
    "long",  # cut off at its limit
    "html",  # a page in place of JSON, with status 200
    "empty",  # no choices
    "bytes",  # neither UTF-8 nor JSON
    "half",  # the body ends in the middle
)

_BROKEN = {
    "html": b"<html>busy</html>",
    "empty": b'{"choices": []}',
    "bytes": b"\xff\xfe\x00 {",
    "half": b'{"choices": [{"mess',
}


def completion(text: str, finish_reason: str = "stop", refusal: str | None = None) -> dict[str, object]:
    """A body in OpenAI's shape that bills 20 and 60 tokens."""
    message = {"role": "assistant", "content": text, "refusal": refusal}
    choices = [{"index": 0, "message": message, "finish_reason": finish_reason}]
    return {"model": "stub", "choices": choices, "usage": {"prompt_tokens": 20, "completion_tokens": 60}}


class Endpoint:
    """Answers as it was told to.

    Args:
        given: The arguments of the command.
    """

    def __init__(self, given: argparse.Namespace) -> None:
        self._given, self._rng = given, random.Random(given.seed)
        self._ledger = os.open(given.ledger, os.O_CREAT | os.O_APPEND | os.O_WRONLY)
        self._allowance, self._refilled_s = given.per_second, time.monotonic()

    async def respond(self, request: web.Request) -> web.StreamResponse:
        """Answer one call."""
        question = (await request.json())["messages"][-1]["content"]
        if self._given.per_second and not self._has_allowance():
            # A date by the server's clock, as RFC 9110 allows.
            headers = {"Retry-After": formatdate(time.time() + 1, usegmt=True), "Date": formatdate(usegmt=True)}
            return self._error(429, "rate_limit_exceeded", headers)
        await asyncio.sleep(self._given.latency_s)
        if self._rng.random() < self._given.hang_rate:
            await asyncio.sleep(MAX_LIFE_S)
        if (draw := self._rng.random()) < self._given.fault_rate:
            return await self._fail(request, draw / self._given.fault_rate)
        return self._special(question) or self._answer(question, completion(f"An answer to {question}."))

    def _has_allowance(self) -> bool:
        now_s = time.monotonic()
        gained = (now_s - self._refilled_s) * self._given.per_second
        self._allowance, self._refilled_s = min(self._given.per_second, self._allowance + gained), now_s
        if self._allowance < 1:
            return False
        self._allowance -= 1
        return True

    async def _fail(self, request: web.Request, draw: float) -> web.StreamResponse:
        if draw < 0.25:
            return self._error(429, "rate_limit_exceeded", {"Retry-After": "0"})
        if draw < 0.5:
            return self._error(500, "server_error")
        if draw < 0.75:
            return self._error(503, "overloaded")
        assert request.transport is not None
        request.transport.abort()  # the connection breaks before an answer
        return web.Response()

    def _special(self, question: str) -> web.Response | None:
        if question == "poison":
            return self._error(400, "invalid_request_error")
        if question == "filter":
            return self._error(400, "content_filter")
        if question == "refuse":
            return self._answer(question, completion("", refusal="I cannot help with that."))
        if question == "long":
            return self._answer(question, completion("An answer that", "length"))
        bodies = {
            "html": b"<html>busy</html>",
            "empty": b'{"choices": []}',
            "bytes": b"\xff\xfe\x00 {",
            "half": b'{"choi',
        }
        return web.Response(body=bodies[question], content_type="application/json") if question in bodies else None

    def _answer(self, question: str, body: dict[str, object]) -> web.Response:
        os.write(self._ledger, f"{question}\n".encode())
        return web.json_response(body)

    def _error(self, status: int, code: str, headers: dict[str, str] | None = None) -> web.Response:
        return web.json_response({"error": {"message": code, "code": code}}, status=status, headers=headers)


async def serve(given: argparse.Namespace) -> None:
    """Serve until killed or ``MAX_LIFE_S`` are over."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", Endpoint(given).respond)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", given.port, backlog=1024, reuse_address=True).start()
    os.write(1, b"ready\n")
    await asyncio.sleep(MAX_LIFE_S)


def main() -> None:
    """Read the arguments and serve."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("ledger")
    parser.add_argument("--latency-s", type=float, default=0.01)
    parser.add_argument("--fault-rate", type=float, default=0.0, help="429, 500, 503, broken connections")
    parser.add_argument("--hang-rate", type=float, default=0.0, help="calls that never get an answer")
    parser.add_argument("--per-second", type=float, default=0.0, help="calls a second, the others get 429; 0 = all")
    parser.add_argument("--seed", type=int, default=0)
    asyncio.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()

"""The embedded teacher over HTTP, as any black box is: ``python -m proxykd.teacher.server --port 0 --seed 0``.

Serves the OpenAI chat-completions shape on 127.0.0.1 only, prints one JSON line with its port when it listens, and
ends when its standard input closes (its parent is gone) or its time is up. The same messages with the same request
seed get the same text, whichever process asks and whenever.
"""

import argparse
import asyncio
import json
import math
import os
import random
import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from aiohttp import web

from proxykd.exceptions import InputError
from proxykd.records import hash_json
from proxykd.teacher.problems import enumerate_completions, sample_completion

MODEL = "embedded-word-problems-1"
_MAX_TOP = 20
PIECE = re.compile(r" ?[A-Za-z]+| ?\d+| ?[^\sA-Za-z\d]+|\s")


class _BadRequest(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class EmbeddedServer:
    """The routes and what they count.

    Args:
        seed: Mixed into every request's own seed.
        latency_s: Seconds that every answer is held back.
    """

    def __init__(self, *, seed: int, latency_s: float = 0.0) -> None:
        self._seed, self._latency_s = seed, latency_s
        self._counts: Counter[str] = Counter()

    def app(self) -> web.Application:
        """The application with its routes."""
        app = web.Application(middlewares=[_as_error_body])
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/stats", self._stats)
        return app

    async def _complete(self, request: web.Request) -> web.Response:
        self._counts["calls"] += 1
        await asyncio.sleep(self._latency_s)
        body = _read_body(await request.text())
        answer = self._answer(body)
        self._counts["answers"] += 1
        return web.json_response(answer)

    def _answer(self, body: dict[str, Any]) -> dict[str, Any]:
        question = body["messages"][-1]["content"]
        identity = hash_json({"seed": [self._seed, body.get("seed")], "messages": body["messages"]})
        try:
            pieces = PIECE.findall(sample_completion(question, random.Random(identity)))
        except InputError as error:
            raise _BadRequest(400, str(error)) from None
        limit = body.get("max_tokens") or len(pieces)
        num_prompt_tokens = sum(len(PIECE.findall(message["content"])) for message in body["messages"])
        kept = pieces[:limit]
        return {
            "id": f"chatcmpl-{identity[:24]}",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "".join(kept), "refusal": None},
                    "logprobs": logprobs_of(question, kept, body["top_logprobs"]) if body.get("logprobs") else None,
                    "finish_reason": "length" if len(kept) < len(pieces) else "stop",
                }
            ],
            "usage": {
                "prompt_tokens": num_prompt_tokens,
                "completion_tokens": len(kept),
                "total_tokens": num_prompt_tokens + len(kept),
            },
        }

    async def _models(self, request: web.Request) -> web.Response:
        card = {"id": MODEL, "object": "model", "created": 0, "owned_by": "proxykd"}
        return web.json_response({"object": "list", "data": [card]})

    async def _stats(self, request: web.Request) -> web.Response:
        return web.json_response({"calls": self._counts["calls"], "answers": self._counts["answers"]})


def logprobs_of(question: str, pieces: Sequence[str], num_top: int) -> dict[str, Any]:
    """What could have stood at each position, as the API's schema has it.

    Args:
        question: One of the teacher's.
        pieces: A text of its own, or the beginning of one, in its tokens (``PIECE``).
        num_top: Likeliest tokens told at each position.
    """
    alive = [(PIECE.findall(text), odds) for text, odds in enumerate_completions(question)]
    content = []
    for position, piece in enumerate(pieces):
        masses: Counter[str] = Counter()
        for others, odds in alive:
            # A text that ends here goes on with no piece at all.
            masses[others[position] if position < len(others) else ""] += odds  # type: ignore[assignment]
        total = math.fsum(masses.values())
        top = [_token(one, mass / total) for one, mass in masses.most_common(num_top) if one]
        content.append({**_token(piece, masses[piece] / total), "top_logprobs": top})
        alive = [(others, odds) for others, odds in alive if others[position : position + 1] == [piece]]
    return {"content": content}


def _token(piece: str, prob: float) -> dict[str, Any]:
    return {"token": piece, "bytes": list(piece.encode()), "logprob": math.log(prob)}


def _read_body(text: str) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise _BadRequest(400, f"the body is not JSON: {error}") from None
    if not isinstance(body, dict) or not _are_messages(body.get("messages")):
        raise _BadRequest(400, "expected an object with messages: a list of {role, content}, not empty")
    if body.get("model") != MODEL:
        raise _BadRequest(404, f"the model {body.get('model')!r} does not exist; this server has {MODEL!r}")
    fixed = {"n": 1, "temperature": 1, "top_p": 1}
    if wrong := {key: body[key] for key, value in fixed.items() if body.get(key) not in (None, value)}:
        raise _BadRequest(400, f"this teacher's odds hold at {fixed} only, got {wrong}")
    limit = body.get("max_tokens")
    if limit is not None and (not isinstance(limit, int) or limit < 1):
        raise _BadRequest(400, f"expected max_tokens >= 1, got {limit!r}")
    num_top = body.get("top_logprobs", 0)
    if not isinstance(num_top, int) or not 0 <= num_top <= _MAX_TOP or (num_top and not body.get("logprobs")):
        raise _BadRequest(400, f"expected logprobs: true and top_logprobs in 0 .. {_MAX_TOP}, got {num_top!r}")
    return {**body, "top_logprobs": num_top}


def _are_messages(value: object) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and isinstance(item.get("content"), str) for item in value)
    )


@web.middleware
async def _as_error_body(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    try:
        return await handler(request)
    except (_BadRequest, web.HTTPException) as error:
        kind = "invalid_request_error"
        code = "model_not_found" if isinstance(error, _BadRequest) and error.status == 404 else None
        body = {"error": {"message": str(error), "type": kind, "param": None, "code": code}}
        return web.json_response(body, status=error.status)


async def serve(*, port: int, seed: int, max_seconds: float, latency_s: float = 0.0) -> None:
    """Serve until standard input closes or ``max_seconds`` are over.

    Args:
        port: Port on 127.0.0.1; 0 = any free one.
        seed: Seed of the teacher.
        max_seconds: Longest life, in seconds.
        latency_s: Seconds that every answer is held back.
    """
    runner = web.AppRunner(EmbeddedServer(seed=seed, latency_s=latency_s).app(), access_log=None)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        os.write(1, (json.dumps({"port": runner.addresses[0][1], "model": MODEL}) + "\n").encode())
        await asyncio.wait([asyncio.create_task(_stdin_closed())], timeout=max_seconds)
    finally:
        await runner.cleanup()


async def _stdin_closed() -> None:
    closed, loop = asyncio.Event(), asyncio.get_running_loop()

    def read_to_end() -> None:
        while os.read(0, 1024):
            pass
        loop.call_soon_threadsafe(closed.set)

    threading.Thread(target=read_to_end, daemon=True).start()
    await closed.wait()


def _main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0, help="port on 127.0.0.1; 0 = any free one")
    parser.add_argument("--seed", type=int, default=0, help="seed of the teacher")
    parser.add_argument("--max-seconds", type=float, default=3600.0, help="longest life")
    parser.add_argument("--latency-ms", type=float, default=0.0, help="hold every answer back so long")
    given = parser.parse_args()
    asyncio.run(
        serve(port=given.port, seed=given.seed, max_seconds=given.max_seconds, latency_s=given.latency_ms / 1e3)
    )


if __name__ == "__main__":
    _main()

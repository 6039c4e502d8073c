"""Batch APIs on loopback that behave as OpenAI's and Anthropic's document it, and break where a test says so."""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
from aiohttp import web

from tests.teacher.providers.shapes import anthropic_answer, anthropic_error, openai_answer

Answer = tuple[int, Any]
EXPIRED: Answer = (0, None)
MISSING: Answer = (-1, None)


class BatchServer:
    """Keeps batches and answers each request of one with ``answer(question, time)``.

    Attributes:
        answer: Status and text of an answer, EXPIRED or MISSING, to a question that is asked the nth time.
        asked: How often each question was submitted in a batch that was made.
        called: How often each was asked in a call of its own.
        batches: All that were made.
        works_s: Seconds until a batch is ended.
        hold_s: Seconds between making a batch and saying so.
        before_making: Called with the number of batches before one is made; what it returns is sent instead.
        after_making: Called with their number after one is made; what it returns is sent instead of the batch.
        failure: Code and message with which a batch fails as a whole; None = it does not.
        refusal: What looks at a batch are answered with; None = the batch.
        headers: Of the latest request.
    """

    def __init__(self) -> None:
        self.answer: Callable[[str, int], Answer] = lambda question, _: (200, question.upper())
        self.asked, self.called = Counter[str](), Counter[str]()
        self.batches: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.works_s, self.hold_s = 0.05, 0.0
        self.before_making: Callable[[int], web.Response | None] = lambda _: None
        self.after_making: Callable[[int], web.Response | None] = lambda _: None
        self.failure: tuple[str, str] | None = None
        self.refusal: web.Response | None = None
        self.headers: dict[str, str] = {}
        self.url = ""

    def app(self) -> web.Application:
        app = web.Application(client_max_size=2**28)
        routes: list[tuple[str, str, Callable[[web.Request], Awaitable[web.StreamResponse]]]] = [
            ("POST", "/v1/chat/completions", self.call),
            ("POST", "/v1/files", self.upload),
            ("GET", "/v1/files/{id}/content", self.content),
            ("POST", "/v1/batches", self.make_openai),
            ("GET", "/v1/batches", self.list),
            ("GET", "/v1/batches/{id}", self.look),
            ("POST", "/v1/messages/batches", self.make_anthropic),
            ("GET", "/v1/messages/batches", self.list),
            ("GET", "/v1/messages/batches/{id}", self.look),
            ("GET", "/v1/messages/batches/{id}/results", self.results),
        ]
        for method, path, handler in routes:
            app.router.add_route(method, path, self._noting(handler))
        return app

    def _noting(self, handler: Any) -> Any:
        async def noted(request: web.Request) -> web.StreamResponse:
            self.headers = {name.lower(): value for name, value in request.headers.items()}
            answer: web.StreamResponse = await handler(request)
            return answer

        return noted

    async def call(self, request: web.Request) -> web.Response:
        question = (await request.json())["messages"][-1]["content"]
        self.called[question] += 1
        return web.json_response(openai_answer(question.upper()))

    async def upload(self, request: web.Request) -> web.Response:
        form = await request.post()
        assert form["purpose"] == "batch"
        name = f"file-{len(self.files)}"
        self.files[name] = form["file"].file.read()  # type: ignore[union-attr]
        return web.json_response({"id": name, "object": "file", "purpose": "batch"})

    async def content(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])

    async def make_openai(self, request: web.Request) -> web.Response:
        body = await request.json()
        assert (body["endpoint"], body["completion_window"]) == ("/v1/chat/completions", "24h")
        rows = [json.loads(line) for line in self.files[body["input_file_id"]].splitlines()]
        assert all(row["method"] == "POST" and row["url"] == body["endpoint"] for row in rows)
        requests = [(row["custom_id"], row["body"]) for row in rows]
        made = self._make({"object": "batch", "metadata": body["metadata"]}, requests, self._finish_openai)
        await asyncio.sleep(self.hold_s)
        return made

    async def make_anthropic(self, request: web.Request) -> web.Response:
        body = await request.json()
        requests = [(row["custom_id"], row["params"]) for row in body["requests"]]
        made = self._make({"type": "message_batch"}, requests, self._finish_anthropic)
        await asyncio.sleep(self.hold_s)
        return made

    def _make(self, batch: dict[str, Any], requests: list[tuple[str, Any]], finish: Any) -> web.Response:
        if (instead := self.before_making(len(self.batches))) is not None:
            return instead
        assert len({key for key, _ in requests}) == len(requests)
        assert all(0 < len(key) <= 64 for key, _ in requests)
        batch |= {"id": f"batch_{len(self.batches)}", "requests": requests, "finish": finish}
        now = batch["made_at"] = time.time()
        batch["created_at"] = int(now) if "object" in batch else datetime.fromtimestamp(now, UTC).isoformat()
        self.batches[batch["id"]] = batch
        self.asked.update(body["messages"][-1]["content"] for _, body in requests)
        return self.after_making(len(self.batches) - 1) or self._show(batch)

    def _show(self, batch: dict[str, Any]) -> web.Response:
        count, is_ended = len(batch["requests"]), time.time() > batch["made_at"] + self.works_s
        if is_ended and self.failure is None and (finish := batch.pop("finish", None)) is not None:
            finish(batch)
        shown = {name: value for name, value in batch.items() if name not in ("made_at", "requests", "finish")}
        if "object" in batch:
            status = "completed" if is_ended else "in_progress"
            counts = {"total": count, "completed": count if is_ended else 0, "failed": 0}
            if is_ended and self.failure is not None:
                status = "failed"
                error = {"code": self.failure[0], "message": self.failure[1]}
                shown["errors"] = {"object": "list", "data": [error]}
            shown |= {"status": status, "request_counts": counts}
        else:
            counts = {"processing": 0 if is_ended else count, "succeeded": count if is_ended else 0}
            shown |= {"processing_status": "ended" if is_ended else "in_progress", "request_counts": counts}
        return web.json_response(shown)

    async def list(self, request: web.Request) -> web.Response:
        newest_first = list(reversed(self.batches.values()))
        after = request.query.get("after") or request.query.get("after_id")
        names = [batch["id"] for batch in newest_first]
        start = names.index(after) + 1 if after else 0
        page = newest_first[start : start + 2]  # small pages, so that there are several
        data = [json.loads(self._show(batch).body) for batch in page]  # type: ignore[arg-type]
        last = data[-1]["id"] if data else None
        return web.json_response({"data": data, "has_more": start + 2 < len(names), "last_id": last})

    async def look(self, request: web.Request) -> web.Response:
        batch = self.batches[request.match_info["id"]]
        if self.refusal is not None:
            return self.refusal
        return self._show(batch)

    def _finish_openai(self, batch: dict[str, Any]) -> None:
        good, bad = [], []
        for key, body in reversed(batch["requests"]):
            question = body["messages"][-1]["content"]
            status, text = self.answer(question, self.asked[question])
            row: dict[str, Any] = {"id": "batch_req_1", "custom_id": key, "response": None, "error": None}
            if (status, text) == EXPIRED:
                bad.append(row | {"error": {"code": "batch_expired", "message": "not executed before the window"}})
            elif status == 200:
                good.append(row | {"response": {"status_code": 200, "request_id": "r", "body": openai_answer(text)}})
            elif (status, text) != MISSING:
                error = {"error": {"message": str(text), "code": "c"}}
                bad.append(row | {"response": {"status_code": status, "request_id": "r", "body": error}})
        for name, rows in (("output_file_id", good), ("error_file_id", bad)):
            if rows:
                batch[name] = f"file-{len(self.files)}"
                self.files[batch[name]] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    def _finish_anthropic(self, batch: dict[str, Any]) -> None:
        lines = []
        kinds = {400: "invalid_request_error", 429: "rate_limit_error", 500: "api_error"}
        for key, body in reversed(batch["requests"]):
            question = body["messages"][-1]["content"]
            status, text = self.answer(question, self.asked[question])
            if (status, text) == MISSING:
                continue
            result: dict[str, Any] = {"type": "errored", "error": anthropic_error(kinds.get(status, ""), str(text))}
            if (status, text) == EXPIRED:
                result = {"type": "expired"}
            elif status == 200:
                result = {"type": "succeeded", "message": anthropic_answer(text)}
            lines.append(json.dumps({"custom_id": key, "result": result}))
        self.files[batch["id"]] = "\n".join(lines).encode()

    async def results(self, request: web.Request) -> web.Response:
        return web.Response(body=self.files[request.match_info["id"]])


@pytest.fixture
def server() -> Iterator[BatchServer]:
    """Batch APIs on loopback, in a thread of their own."""
    double, loop, is_up = BatchServer(), asyncio.new_event_loop(), threading.Event()
    runner = web.AppRunner(double.app(), access_log=None, shutdown_timeout=0.1)

    async def serve() -> None:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        double.url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1"
        is_up.set()

    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    asyncio.run_coroutine_threadsafe(serve(), loop).result(10)
    yield double
    asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()

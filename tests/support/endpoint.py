"""A scripted endpoint in the OpenAI shape, on loopback."""

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.servers import listening


class ScriptedEndpoint:
    """Answers each question with ``answer(question)``: a status and a JSON body."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.bodies: list[dict[str, Any]] = []
        self.secrets: set[str | None] = set()
        self.paths: set[str] = set()
        self.headers: dict[str, str] = {}
        self.answer: Callable[[str], tuple[int, Any]] = lambda question: (200, self.chat(question.upper()))
        self.url = ""
        self._counting = threading.Lock()  # requests arrive on a thread each, and ``+= 1`` is two steps

    @staticmethod
    def chat(text: str | None, finish_reason: str = "stop", refusal: str | None = None) -> dict[str, Any]:
        """A chat completion that used 10 prompt and 5 completion tokens."""
        message = {"role": "assistant", "content": text, "refusal": refusal}
        usage = {"prompt_tokens": 10, "completion_tokens": 5}
        return {"model": "gpt-x", "choices": [{"message": message, "finish_reason": finish_reason}], "usage": usage}

    def respond(self, body: dict[str, Any]) -> tuple[int, Any]:
        question = body["messages"][-1]["content"] if "messages" in body else body["contents"][-1]["parts"][0]["text"]
        with self._counting:
            self.asked[question] += 1
            self.bodies.append(body)
        return self.answer(question)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128  # as many may connect at once; with the usual 5 some would wait a second to try again


@contextmanager
def scripted_endpoint() -> Iterator[ScriptedEndpoint]:
    """A scripted endpoint on loopback."""
    script = ScriptedEndpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # one packet a response

        def do_POST(self) -> None:
            script.secrets.add(self.headers.get("Authorization"))
            script.paths.add(self.path)
            script.headers = {name.lower(): value for name, value in self.headers.items()}
            status, value = script.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = value if isinstance(value, bytes) else json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with listening(_Server(("127.0.0.1", 0), Handler)) as address:
        script.url = f"{address}/v1"
        yield script

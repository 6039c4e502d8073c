"""HTTP for the API server double: authentication, one call's way through faults and rules, streams."""

import json
import traceback
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

import yaml

from tests.k8s.access import Call
from tests.k8s.forwarding import UPGRADE, forward
from tests.k8s.kinds import discovery
from tests.k8s.refusals import Refusal
from tests.k8s.routes import Route, parse_route, verb_of
from tests.k8s.spdy import Connection

if TYPE_CHECKING:
    from tests.k8s.api_server import ApiServer


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    api: "ApiServer"

    def answer(self) -> None:
        """Answer one call, whatever its method."""
        parts = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if parts.path in ("/healthz", "/livez", "/readyz"):
            self._send(200, b"ok", content_type="text/plain")
            return
        try:
            user = self.api.access.user(self.headers.get("Authorization"))
            found = discovery(parts.path) if self.command == "GET" else None
            if found is not None:
                self._send_json(200, found)
                return
            if not parts.path.startswith(("/api/", "/apis/")):
                raise Refusal(404, "NotFound", "the server could not find the requested resource")
            self._route(parse_route(parts.path), dict(parse_qsl(parts.query, keep_blank_values=True)), raw, user)
        except Refusal as refusal:
            self._send_json(refusal.code, refusal.status(), refusal.headers)
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        except Exception as error:  # a fault of the double's own is told to whoever called
            self._send_json(500, Refusal(500, "InternalError", traceback.format_exc() or str(error)).status())

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

    def _route(self, route: Route, query: dict[str, str], raw: bytes, user: str) -> None:
        verb = verb_of(self.command, route, query)
        call = Call(user, verb, route.group, route.resource, route.namespace, route.name)
        status = 500
        try:
            access = self.api.access
            if route.kind is not None and access.is_enforced and not access.is_allowed(call):
                place = f' in the namespace "{call.namespace}"' if call.namespace else ""
                told = f'{call.resource} is forbidden: User "{user}" cannot {verb} resource "{call.resource}"'
                raise Refusal(403, "Forbidden", f'{told} in API group "{call.group}"{place}')
            self.api.trouble.strike(call, is_after=False)
            status = 201 if verb == "create" else 200
            if verb == "watch" or route.subresource == "log":
                self.api.access.note(call._replace(status=status))
                self._stream(route, verb, query)
                return
            if route.subresource == "portforward":
                self._forward(route, call)
                return
            found = self._done(route, verb, query, raw, user)
            self.api.trouble.strike(call, is_after=True)
        except Refusal as refusal:
            self.api.access.note(call._replace(status=refusal.code))
            raise
        self.api.access.note(call._replace(status=status))
        self._send_json(status, found)

    def _done(self, route: Route, verb: str, query: dict[str, str], raw: bytes, user: str) -> Any:
        answers = self.api.answers
        if verb == "get":
            return answers.get(route)
        if verb == "list":
            return answers.list(route, query)
        body = _parsed(raw)
        if verb == "create":
            return answers.create(route, body, query, user)
        if verb == "update":
            return answers.update(route, body, query)
        if verb == "patch":
            return answers.patch(route, body, self.headers.get("Content-Type") or "", query)
        return answers.delete(route, body, query)

    def _stream(self, route: Route, verb: str, query: dict[str, str]) -> None:
        if verb == "watch":
            events = self.api.answers.watch(route, query)
            self._send_chunks(b"" if event is None else json.dumps(event).encode() + b"\n" for event in events)
        else:
            self._send_chunks(self.api.answers.log(route, query), content_type="text/plain")

    def _forward(self, route: Route, call: Call) -> None:
        self.api.answers.get(route)
        if UPGRADE["Upgrade"] not in self.headers.get("Upgrade", ""):  # kubectl asks by WebSocket first
            raise Refusal(400, "BadRequest", f"unable to upgrade: expected {UPGRADE['Upgrade']}")
        self.api.access.note(call._replace(status=101))
        self.send_response(101)
        for key, value in UPGRADE.items():
            self.send_header(key, value)
        self.end_headers()
        self.close_connection = True
        forward(Connection(self.rfile, self.wfile), self.api.ports)

    def _send_chunks(self, chunks: Iterator[bytes], content_type: str = "application/json") -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            if self.api.is_stopping:
                self.close_connection = True
                return
            if chunk:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
                self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _send_json(self, status: int, found: Any, headers: dict[str, str] | None = None) -> None:
        self._send(status, json.dumps(found).encode(), headers)

    def _send(
        self, status: int, content: bytes, headers: dict[str, str] | None = None, content_type: str = "application/json"
    ) -> None:
        self.send_response(status)
        for key, value in (headers or {}).items():
            self.send_header(key, value)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


def _parsed(raw: bytes) -> Any:
    if not raw:
        return {}
    try:
        return json.loads(raw)
    except ValueError:
        pass
    try:
        return yaml.safe_load(raw)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise Refusal(400, "BadRequest", f"the body is neither JSON nor YAML: {error}") from error

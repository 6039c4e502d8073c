"""A site on loopback whose pages a test writes."""

from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Site(ThreadingHTTPServer):
    """Answers each path with a status and a text, which of a redirect is the way; 404 for all others.

    Attributes:
        pages: Path -> both.
        keys: Path -> the key that came with the last call, None without.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.pages: Mapping[str, tuple[int, str]] = {}
        self.keys: dict[str, str | None] = {}


class Pages(BaseHTTPRequestHandler):
    """Hands them out."""

    server: Site

    def do_GET(self) -> None:
        status, text = self.server.pages.get(self.path, (404, ""))
        self.server.keys[self.path] = self.headers.get("Authorization")
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", text)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else text.encode())

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

"""A site on loopback whose pages a test writes."""

from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Site(ThreadingHTTPServer):
    """Answers each path with a status and a text; 404 for all others."""

    pages: Mapping[str, tuple[int, str]] = {}


class Pages(BaseHTTPRequestHandler):
    """Hands them out."""

    server: Site

    def do_GET(self) -> None:
        status, text = self.server.pages.get(self.path, (404, ""))
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else text.encode())

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""

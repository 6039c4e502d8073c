"""A key that must not be found anywhere, endpoints that repeat it in every way, and the search for it."""

import base64
import io
import json
import socketserver
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from tests.support.servers import listening

KEY = 'sk-test/"Zq7+w%40&xY=9_'
"""Has characters that JSON, addresses and Base64 each write in ways of their own."""


def spellings(key: str = KEY) -> dict[str, bytes]:
    """Ways to write a key; made without the code that blots it out."""
    raw = key.encode()
    found = {
        "plain": raw,
        "JSON": json.dumps(key)[1:-1].encode(),
        "JSON in JSON": json.dumps(json.dumps(key))[3:-3].encode(),
        "address in address": quote(quote(key, safe=""), safe="").encode(),
        "JSON, slashes": json.dumps(key)[1:-1].replace("/", "\\/").encode(),
        "address": quote(key, safe="").encode(),
        "address, lower case": quote(key, safe="").replace("%2B", "%2b").replace("%2F", "%2f").encode(),
        "hexadecimal": raw.hex().encode(),
        "list of bytes": json.dumps(list(raw))[1:-1].encode(),
    }
    for offset in range(3):
        # Without the ends, which the neighbours decide too.
        found[f"Base64 at {offset}"] = base64.b64encode(b"x" * offset + raw)[4:-4]
        found[f"Base64 for addresses at {offset}"] = base64.urlsafe_b64encode(b"x" * offset + raw)[4:-4]
    return found


def said_in_every_way() -> str:
    """The key in all spellings, whole."""
    coded = [encode(KEY.encode()).decode() for encode in (base64.b64encode, base64.urlsafe_b64encode)]
    coded += [base64.b64encode(f"{before}{KEY}&".encode()).decode() for before in ("a", "ab", "abc")]
    return " ".join([*(one.decode() for name, one in spellings().items() if "Base64" not in name), *coded])


def leaks(content: bytes | str) -> set[str]:
    """The ways in which the key stands in ``content``."""
    data = content.encode("utf-8", "surrogateescape") if isinstance(content, str) else content
    return {name for name, needle in spellings().items() if needle in data}


def leaks_in(folder: Path) -> dict[str, set[str]]:
    """File -> the ways in which the key stands in it or in its name; archives are opened, Parquet is read."""
    found: dict[str, set[str]] = {}
    for path in (path for path in folder.rglob("*") if path.is_file()):
        contents = [str(path).encode(), path.read_bytes()]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                contents += [archive.read(name) for name in archive.namelist()]
        if path.suffix == ".parquet":
            import pyarrow.parquet as pq

            rows = pq.read_table(path).to_pylist()
            contents += [repr(rows).encode("utf-8", "replace"), json.dumps(rows, default=list).encode()]
        if names := set().union(*(leaks(content) for content in contents)):
            found[str(path)] = names
    return found


def _http(status: int, body: bytes, **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} Whatever", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def faults(make_answer: Callable[[str], dict[str, Any]]) -> list[bytes]:
    """Raw responses, each of which repeats the key in a way of its own.

    Args:
        make_answer: A good body of the API with a text.
    """
    everything = said_in_every_way()
    good = json.dumps(make_answer(f"the key is {KEY}, or {everything}")).encode()
    error = json.dumps({"error": {"message": f"bad key {everything}", "type": KEY, "code": everything}}).encode()
    plain = spellings()["plain"]
    return [
        _http(200, good),
        _http(200, good.replace(b"/", b"\\/")),
        _http(200, b"<html>" + plain + b" is no JSON"),
        _http(200, json.dumps({KEY: everything}).encode()),
        _http(400, error),
        _http(400, b"not JSON: " + everything.encode()),
        _http(429, error, Retry_After=KEY, X_Echo=KEY),
        _http(500, error, X_Echo=everything),
        _http(302, b"", Location=f"/{quote(KEY, safe='')}?key={KEY}"),
        _http(404, error),
        _http(418, plain),
        b"HTTP/1.1 200 " + plain + b"\r\nContent-Length: 5000\r\n\r\n" + plain,
        b"HTTP/1.1 abc " + plain + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + plain + b"\x00: " + plain + b"\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + plain + b"\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 30\r\n\r\n" + plain[:20].ljust(30),
        plain,
        b"",
    ]


class FaultyEndpoint:
    """Answers a request with the raw response that its question's number names, and beyond those well.

    Attributes:
        good: Text of a good answer to a body.
        refuses: Whether all are answered with status 401 and the key.
        url: Base address.
        requests: Raw headers of all requests, to see that the key was sent at all.
    """

    def __init__(self, make_answer: Callable[[str], dict[str, Any]]) -> None:
        self.responses, self._make_answer = faults(make_answer), make_answer
        self.good: Callable[[bytes], str] = lambda _: "fine"
        self.refuses = False
        self.url, self.requests = "", list[bytes]()

    def respond(self, body: bytes) -> bytes:
        numbers = [number for number in range(len(self.responses)) if f"question {number}.".encode() in body]
        if self.refuses:
            return _http(401, json.dumps({"error": {"message": said_in_every_way()}}).encode())
        good = json.dumps(self._make_answer(self.good(body))).encode()
        return self.responses[numbers[0]] if numbers else _http(200, good)


@contextmanager
def faulty_endpoint(make_answer: Callable[[str], dict[str, Any]]) -> Iterator[FaultyEndpoint]:
    """An endpoint on loopback that has every fault of ``faults``."""
    script = FaultyEndpoint(make_answer)

    class Handler(socketserver.StreamRequestHandler):
        rfile: io.BufferedReader

        def handle(self) -> None:
            head = b""
            while (line := self.rfile.readline()) not in (b"\r\n", b""):
                head += line
            length = [int(one.split(b":")[1]) for one in head.splitlines() if one.lower().startswith(b"content-length")]
            body = self.rfile.read(length[0]) if length else b""
            script.requests.append(head)
            self.wfile.write(script.respond(body))

    class Server(socketserver.ThreadingTCPServer):
        allow_reuse_address = daemon_threads = True

    with listening(Server(("127.0.0.1", 0), Handler)) as address:
        script.url = f"{address}/v1"
        yield script

"""The port-forward of a pod: what kubectl opens for a connection becomes one to where the port really is."""

import socket
import threading
from collections.abc import Mapping
from contextlib import suppress

from tests.k8s.spdy import DATA, FIN, PING, SYN_STREAM, Connection, Frame

PROTOCOL = "portforward.k8s.io"
UPGRADE = {"Connection": "Upgrade", "Upgrade": "SPDY/3.1", "X-Stream-Protocol-Version": PROTOCOL}
Address = tuple[str, int]


def forward(connection: Connection, addresses: Mapping[int, Address]) -> None:
    """Serve a connection until the other side has gone.

    Args:
        connection: Upgraded already.
        addresses: Port of the pod -> where it is on this machine; another one is refused as a pod without a listener.
    """
    errors: dict[str, int] = {}
    backends: dict[int, socket.socket] = {}
    try:
        while (frame := connection.read()) is not None:
            if frame.kind == PING:
                connection.pong(frame)
            elif frame.kind == SYN_STREAM:
                _open(connection, frame, addresses, errors, backends)
            elif frame.kind == DATA and frame.stream in backends:
                _pass_on(frame, backends[frame.stream])
    finally:
        for backend in backends.values():
            backend.close()


def _open(
    connection: Connection,
    opened: Frame,
    addresses: Mapping[int, Address],
    errors: dict[str, int],
    backends: dict[int, socket.socket],
) -> None:
    headers = connection.headers(opened)
    connection.reply(opened.stream, {})
    if headers["streamtype"] == "error":
        errors[headers["requestid"]] = opened.stream
        return
    error, port = errors.pop(headers["requestid"]), int(headers["port"])
    try:
        backend = socket.create_connection(addresses[port])
    except (KeyError, OSError):
        connection.send(error, f"failed to connect to localhost:{port} inside the pod".encode(), is_last=True)
        connection.send(opened.stream, b"", is_last=True)
        return
    backends[opened.stream] = backend
    threading.Thread(target=_answer, args=(connection, opened.stream, error, backend), daemon=True).start()


def _pass_on(frame: Frame, backend: socket.socket) -> None:
    with suppress(OSError):  # it has closed the connection, which its other end is told by ``_answer``
        if frame.content:
            backend.sendall(frame.content)
        if frame.flags & FIN:
            backend.shutdown(socket.SHUT_WR)


def _answer(connection: Connection, stream: int, error: int, backend: socket.socket) -> None:
    with suppress(OSError, ValueError):  # kubectl has gone
        while content := _received(backend):
            connection.send(stream, content)
        connection.send(stream, b"", is_last=True)
        connection.send(error, b"", is_last=True)


def _received(backend: socket.socket) -> bytes:
    try:
        return backend.recv(65536)
    except OSError:
        return b""

"""A Kubernetes API server double on loopback: HTTPS, tokens, a store, strict validation, watches, faults on demand.

::

    with api_server(folder) as api:
        api.create_namespace("proxykd")
        configuration = api.kubeconfig("proxykd")       # a file for kubectl, for ZenML and for the Python client
        api.trouble.add(429, verb="create", resource="jobs", retry_after_s=1)
        api.go_away(5.0)                                # connections are refused for five seconds
        api.access.is_enforced = True                   # service accounts may do what the stored Roles allow
"""

import base64
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.access import ADMIN, Access, service_account
from tests.k8s.answers import Answers
from tests.k8s.certificate import write_certificate
from tests.k8s.defaults import admitted
from tests.k8s.forwarding import Address
from tests.k8s.http import Handler
from tests.k8s.kinds import CORE
from tests.k8s.store import Store
from tests.k8s.trouble import Trouble


class _Server(ThreadingHTTPServer):
    """Accepts at once and makes the TLS handshake in the connection's own thread, so that no client holds up others."""

    daemon_threads = True
    request_queue_size = 256
    context: ssl.SSLContext

    def __init__(self, address: tuple[str, int], handler: Any) -> None:
        self.connections: set[socket.socket] = set()
        super().__init__(address, handler)

    def finish_request(self, request: Any, client_address: Any) -> None:
        request.settimeout(300)
        with suppress(OSError, ssl.SSLError), self.context.wrap_socket(request, server_side=True) as secured:
            self.connections.add(secured)
            try:
                super().finish_request(secured, client_address)
            finally:
                self.connections.discard(secured)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no error."""


class ApiServer:
    """The double; see the module.

    Attributes:
        store: What it keeps, for tests and controllers to read and write directly.
        access: Tokens, rules and the calls so far.
        trouble: The faults that are due.
        log_files: (namespace, pod, container) -> the file with that container's output.
        ports: Port of a pod -> where it is on this machine, for port-forward.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store, self.trouble = Store(), Trouble()
        self.access = Access(self.store)
        self.log_files: dict[tuple[str, str, str], Path] = {}
        self.ports: dict[int, Address] = {}
        self.answers = Answers(self.store, self.access, lambda *key: self.log_files.get(key))
        self.is_stopping = False
        self.certificate, self._key = write_certificate(folder)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.certificate, self._key)
        self._server: _Server | None = None
        self.port = 0
        self.listen()

    @property
    def address(self) -> str:
        """``https://127.0.0.1:PORT``."""
        return f"https://127.0.0.1:{self.port}"

    def listen(self) -> None:
        """Take connections (again)."""
        handler = type("BoundHandler", (Handler,), {"api": self})
        server = _Server(("127.0.0.1", self.port), handler)
        server.context = self._context
        self.is_stopping, self._server, self.port = False, server, server.server_port
        threading.Thread(target=server.serve_forever, args=(0.005,), daemon=True).start()

    def close(self) -> None:
        """Refuse connections from now on and cut those that are open."""
        server, self._server = self._server, None
        if server is None:
            return
        self.is_stopping = True
        server.shutdown()
        server.server_close()
        for connection in list(server.connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def go_away(self, duration_s: float) -> None:
        """Refuse connections for a while; returns at once."""
        self.close()
        timer = threading.Timer(duration_s, self.listen)
        timer.daemon = True
        timer.start()

    def create_namespace(self, name: str, labels: dict[str, str] | None = None) -> None:
        """A namespace with the service account ``default``."""
        body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels or {}}}
        self.store.create(CORE["Namespace"], "", {**body, "status": {"phase": "Active"}})
        self.store.create(CORE["ServiceAccount"], name, _account("default"))

    def apply(self, *objects: dict[str, Any], namespace: str = "") -> None:
        """Store manifests, as an administrator, in their own namespace or in the given one; replaces what is there."""
        for found in objects:
            kind = CORE[found["kind"]]
            place = found["metadata"].get("namespace", namespace) if kind.is_namespaced else ""
            if any(one["metadata"]["name"] == found["metadata"]["name"] for one in self.store.list(kind, place)):
                self.store.replace(kind, place, found)
            else:
                self.store.create(kind, place, admitted(found))

    def kubeconfig(self, namespace: str = "default", *, account: str = "", context: str = "double") -> Path:
        """A kubeconfig file for the administrator, or for a service account of the namespace."""
        user = service_account(namespace, account) if account else ADMIN
        authority = base64.b64encode(self.certificate.read_bytes()).decode()
        cluster = {"server": self.address, "certificate-authority-data": authority}
        chosen = {"cluster": "double", "user": "user", "namespace": namespace}
        content = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "double", "cluster": cluster}],
            "users": [{"name": "user", "user": {"token": self.access.issue(user)}}],
            "contexts": [{"name": context, "context": chosen}],
            "current-context": context,
        }
        path = self.folder / f"kubeconfig-{namespace}-{account or 'admin'}.yaml"
        path.write_text(yaml.safe_dump(content), encoding="utf-8")
        return path


def _account(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}}


@contextmanager
def api_server(folder: Path) -> Iterator[ApiServer]:
    """A running API server double with the namespaces default and kube-system, ended on leaving."""
    api = ApiServer(folder)
    for name in ("default", "kube-system"):
        api.create_namespace(name)
    try:
        yield api
    finally:
        api.close()

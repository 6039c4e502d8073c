"""The credentials of a kubeconfig or of a pod, and one request to the API server.

A service account's token lives for an hour and its file is rewritten before that, so credentials are read again
whenever the server refuses them.
"""

import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from proxykd.exceptions import ClusterError, ClusterUnreachableError

Found = TypeVar("Found")
CONNECT_S, READ_S = 5.0, 30.0
NUM_CONNECTS = 18
"""Tries of ``patient_retries``: with waits of 0.5 s that double up to 10 s, they last two minutes."""


class Answer(NamedTuple):
    """What the server said.

    Attributes:
        status: HTTP's.
        headers: With lower-case names.
        raw: The open response; whoever asked for a stream reads and closes it.
        body: The object; {} where a stream was asked for, or where the body is no JSON object.
    """

    status: int
    headers: Mapping[str, str]
    raw: Any
    body: Mapping[str, Any]


class Connection:
    """A server and a way to be known there.

    Attributes:
        namespace: The one that the credentials name.
        address: Of the server.
    """

    def __init__(self, load: "Callable[[], tuple[Any, str]]") -> None:
        self._load = load
        self.renew()

    def renew(self) -> None:
        """Read the credentials again.

        Raises:
            ClusterError: if they cannot be used.
        """
        from kubernetes.client import ApiClient

        configuration, self.namespace = self._load()
        headers = {"Accept": "application/json", "User-Agent": "proxykd"}
        if token := configuration.get_api_key_with_prefix("authorization"):
            headers["Authorization"] = _checked(token)
        self.address: str = configuration.host.rstrip("/")
        self._pool = ApiClient(configuration).rest_client.pool_manager
        self._headers = headers

    def ask(
        self,
        method: str,
        path: str,
        *,
        body: object = None,
        content: str = "application/json",
        read_s: float = READ_S,
        is_stream: bool = False,
    ) -> Answer:
        """One request, tried once.

        Args:
            method: HTTP's.
            path: With a leading slash, and its query.
            body: What can be written as JSON; None = nothing.
            content: The body's media type.
            read_s: Seconds without a byte before the server counts as away.
            is_stream: Whether to leave the body unread, unless it is a refusal's.

        Raises:
            ClusterUnreachableError: if there was no answer, or it broke off.
        """
        from urllib3 import Timeout
        from urllib3.exceptions import HTTPError

        try:
            raw = self._pool.request(
                method,
                self.address + path,
                body=None if body is None else json.dumps(body),
                headers={**self._headers, "Content-Type": content},
                timeout=Timeout(connect=CONNECT_S, read=read_s),
                retries=False,
                preload_content=not is_stream,
            )
            is_kept = is_stream and raw.status < 300
            read = {} if is_kept else _json_object(raw.data)
        except HTTPError as error:
            raise ClusterUnreachableError(
                f"expected an answer from the Kubernetes API server {self.address}, got none ({error}); check the "
                "kubeconfig, the network and that the control plane is up"
            ) from error
        headers = {name.lower(): value for name, value in raw.headers.items()}
        return Answer(raw.status, headers, raw, read)


def _checked(token: str) -> str:
    """A token that a header can carry; the message does not repeat it.

    Raises:
        ClusterError: if it is none: the library's own error would show it.
    """
    if token.isascii() and token.isprintable():
        return token
    raise ClusterError(
        "expected the kubeconfig's token, or the file that it names, to hold printable characters alone, found a line "
        "break or another one that no header can carry; write it anew without, as `printf %s` does"
    )


def _json_object(data: bytes) -> Mapping[str, Any]:
    try:
        read = json.loads(data)
    except ValueError:
        return {"message": data[:500].decode(errors="replace").strip()}
    return read if isinstance(read, dict) else {}


class _SettledLogger(logging.Logger):
    """One whose level is set again and again to what it is, which would empty the caches of all loggers."""

    def setLevel(self, level: int | str) -> None:
        """As every logger's, where the level is another one."""
        if level != self.level:
            super().setLevel(level)


def settle_client_logs() -> None:
    """Let Kubernetes' client make its objects in a third of the time: each sets the levels of two loggers."""
    for name in ("client", "urllib3"):
        logging.getLogger(name).__class__ = _SettledLogger


def patient_retries() -> Any:
    """How a client of others' making bears a server that is away: urllib3's ``Retry``, for two minutes.

    Every call is repeated, one that makes an object too: all have names, so that none is made twice.
    """
    from urllib3.util.retry import Retry

    return Retry(
        total=None,
        allowed_methods=None,
        connect=NUM_CONNECTS,
        read=NUM_CONNECTS,
        status=NUM_CONNECTS,
        backoff_factor=0.25,
        backoff_max=10.0,
        status_forcelist=(429, 500, 502, 503, 504),
        raise_on_status=False,
    )


def open_connection(context: str | None, *, environ: Mapping[str, str] = os.environ) -> Connection:
    """The pod's own service account where there is one and no context is named, else the kubeconfig.

    Args:
        context: Name in the kubeconfig; None = in a pod its service account, elsewhere the current context.
        environ: ``KUBECONFIG`` names other files than ``~/.kube/config``.

    Raises:
        ClusterError: if neither can be used.
    """
    in_pod = context is None and "KUBERNETES_SERVICE_HOST" in environ and (_service_account() / "token").is_file()
    return Connection(_of_pod if in_pod else lambda: _of_kubeconfig(context, environ.get("KUBECONFIG")))


def _service_account() -> Path:
    """The folder that the kubelet mounts, where the client library looks for it."""
    from kubernetes.config import incluster_config

    return Path(incluster_config.SERVICE_TOKEN_FILENAME).parent


def _of_pod() -> tuple[Any, str]:
    from kubernetes import config
    from kubernetes.client import Configuration

    configuration = Configuration()
    try:
        config.load_incluster_config(client_configuration=configuration)
        return configuration, (_service_account() / "namespace").read_text(encoding="utf-8").strip()
    except (config.ConfigException, OSError) as error:
        raise ClusterError(
            f"expected the service account's token, certificate and namespace in {_service_account()}, found: {error}; "
            "give the pod a service account and automountServiceAccountToken: true"
        ) from error


def _of_kubeconfig(context: str | None, files: str | None) -> tuple[Any, str]:
    from kubernetes import config
    from kubernetes.client import Configuration

    configuration = Configuration()
    try:
        loader = _loader(context, files or config.KUBE_CONFIG_DEFAULT_LOCATION)
        loader.load_and_set(configuration)
        # A file may name no current context: the one that is asked for is enough.
        chosen = loader.current_context["context"]
    except ValueError:  # which may show what it could not read
        raise ClusterError(
            f"expected base64 in the fields of {files or 'the kubeconfig'} that end in -data, found something else; "
            "copy the file again from where it was made"
        ) from None
    except (config.ConfigException, OSError) as error:
        raise ClusterError(
            f"expected {'a current context' if context is None else f'the context {context!r}'} in the kubeconfig, "
            f"found: {error}; set KUBECONFIG, or take a name that `kubectl config get-contexts` lists"
        ) from error
    return configuration, str(chosen.get("namespace") or "default")


def context_names(*, environ: Mapping[str, str] = os.environ) -> list[str]:
    """The contexts of the kubeconfig, whether or not one of them is current.

    Args:
        environ: As for ``open_connection``.

    Raises:
        ClusterError: if there is no kubeconfig.
    """
    from kubernetes import config

    files = environ.get("KUBECONFIG") or config.KUBE_CONFIG_DEFAULT_LOCATION
    return _read(files, lambda merged: [str(one["name"]) for one in merged.value["contexts"]])


def _loader(context: str | None, files: str) -> Any:
    """The client library's reader of the files, with a context chosen."""
    from kubernetes.config.kube_config import KubeConfigLoader

    return _read(files, lambda merged: KubeConfigLoader(merged, active_context=context, config_base_path=None))


def _read(files: str, use: "Callable[[Any], Found]") -> "Found":
    """What is made of the merged files.

    Raises:
        ClusterError: if one is no kubeconfig; nothing of it is repeated, for it holds credentials.
    """
    from kubernetes.config.kube_config import KubeConfigMerger
    from yaml import YAMLError

    try:
        merged = KubeConfigMerger(files).config
        if merged is not None:
            return use(merged)
        found = "no such file"
    except (YAMLError, AttributeError, KeyError, TypeError, ValueError):
        found = "something else"
    raise ClusterError(
        f"expected a kubeconfig, a YAML mapping with clusters, users and contexts, in {files}, found {found}; "
        "`kubectl config view` says whether kubectl reads it; KUBECONFIG names another file"
    ) from None

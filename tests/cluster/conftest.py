"""A Kubernetes API server double with a namespace, and the way to reach it that the code itself uses."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.api import ClusterApi, Patience
from cluster.connection import open_connection
from tests.k8s.api_server import ApiServer, api_server

Connect = Callable[..., ClusterApi]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ApiServer]:
    """The double, with the namespace proxykd."""
    with api_server(tmp_path / "api") as running:
        running.create_namespace("proxykd", {"pod-security.kubernetes.io/enforce": "restricted"})
        yield running


@pytest.fixture
def connect(server: ApiServer) -> Connect:
    """Reaches the double as the administrator, or as a service account of the namespace."""

    def reach(account: str = "") -> ClusterApi:
        path = server.kubeconfig("proxykd", account=account)
        connection = open_connection("double", environ={"KUBECONFIG": str(path)})
        return ClusterApi(connection, patience=Patience(deadline_s=0.5, first_s=0.01, longest_s=0.05))

    return reach


def manifest(api_version: str, kind: str, name: str, *, labels: Any = None, **parts: Any) -> dict[str, Any]:
    """An object of the namespace."""
    metadata = {"name": name, "namespace": "proxykd", "labels": labels or {}, **parts.pop("metadata", {})}
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **parts}

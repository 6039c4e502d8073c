"""Kubernetes doubles: an API server alone, and a cluster with what training pods need (runtime, accounts, claims)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from cluster.api import ClusterApi, Patience
from cluster.connection import open_connection
from cluster.train_job import TrainJobLauncher
from proxykd.config.launcher import LauncherSpec
from tests.k8s.api_server import ApiServer, api_server
from tests.k8s.cluster import Cluster, cluster
from tests.student.conftest import student_run, training_data  # noqa: F401
from tests.support.servers import listening
from tests.support.site import Pages, Site

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


CHECKOUT = Path(__file__).parents[2]
NAMESPACE = "proxykd"
MakeLauncher = Callable[..., TrainJobLauncher]


def runtime() -> dict[str, Any]:
    read: dict[str, Any] = yaml.load((CHECKOUT / "k8s/trainjob/training-runtime.yaml").read_text(), yaml.CSafeLoader)
    return read


def claim(name: str) -> dict[str, Any]:
    metadata = {"name": name, "namespace": NAMESPACE}
    spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}


def account(name: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name, "namespace": NAMESPACE}}


@pytest.fixture
def double(tmp_path: Path) -> Iterator[Cluster]:
    with cluster(tmp_path / "cluster") as found:
        claims = [claim("proxykd-journal"), claim("proxykd-models")]
        found.api.apply(runtime(), account("proxykd-step"), account("proxykd-trainer"), *claims, namespace=NAMESPACE)
        yield found


@pytest.fixture
def home(double: Cluster) -> Path:
    """The folder behind the claim that every pod mounts."""
    folder = double.kubelet.machine.claim(NAMESPACE, "proxykd-journal")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture
def api(double: Cluster) -> ClusterApi:
    """As the account of the steps that train."""
    return reach_as(double, "proxykd-trainer")


def reach_as(double: Cluster, name: str, *, deadline_s: float = 5.0) -> ClusterApi:
    """Reaches the double as a service account."""
    connection = open_connection("double", environ={"KUBECONFIG": str(double.api.kubeconfig(NAMESPACE, account=name))})
    return ClusterApi(connection, patience=Patience(deadline_s=deadline_s))


@pytest.fixture
def make_launcher(api: ClusterApi, home: Path) -> MakeLauncher:
    def make(**options: Any) -> TrainJobLauncher:
        chosen: dict[str, Any] = {"kind": "trainjob", "image": "ghcr.io/proxykd/proxykd@sha256:0", "grace_s": 20}
        environ = {"OMP_NUM_THREADS": "1", "PROXYKD_PROGRESS": "off"}
        return TrainJobLauncher(LauncherSpec(**{**chosen, **options}), api, home, environ=environ)

    return make


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    """A site whose pages the test writes."""
    monkeypatch.setenv("no_proxy", "*")
    server = Site(("127.0.0.1", 0), Pages)
    with listening(server):
        yield server

"""The pods of MLflow, as their manifests say: migrated, started, probed and used, on PostgreSQL and an S3 server."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import psycopg
import pytest

from tests.k8s.api_server import ApiServer, api_server
from tests.k8s.certificate import write_certificate
from tests.k8s.conftest import K8S
from tests.k8s.containers import CHECKOUT
from tests.k8s.workloads import called
from tests.support.kubectl import Manifest, kubectl
from tests.support.mlflow_servers import postgresql
from tests.support.pod_process import container_command, container_environment
from tests.support.postgresql_tls import postgresql_tls, program
from tests.support.s3_server import CREDENTIALS, client, list_keys, s3_server
from tests.support.servers import free_port

pytestmark = pytest.mark.integration
START_S = 300.0
# Of pods: RFC 1918, the shared range that some providers take, public ones, IPv6.
ADDRESSES = (
    "10.244.1.7:5000", "172.17.0.250:5000", "192.168.3.44:5000", "100.64.12.9:5000", "100.127.0.1:5000",
    "203.0.113.9:5000", "[fd00:10:244::7]:5000",
)  # fmt: skip
STRANGERS = (
    "10.evil.example", "10.evil.example:5000", "172.evil.example:5000", "192.168.evil.example:5000",
    "10.0.0.1.evil.example:5000", "100.64.0.evil1:5000", "a.b.c.d:5000", "fd00.evil.example:5000",
)  # fmt: skip
AUTHORITY = "/etc/proxykd/database-ca"
SEARCH = "api/2.0/mlflow/experiments/search?max_results=1"
FORWARD = re.compile(r"^kubectl -n proxykd port-forward service/(\S+) \d+:\d+$", re.MULTILINE)


class Site(NamedTuple):
    """What the pods find around them.

    Attributes:
        objects: The overlay.
        database: URI of PostgreSQL.
        storage: Address of the S3 server.
        folders: Path in a container -> where it lies here.
    """

    objects: list[Manifest]
    database: str
    storage: str
    folders: dict[str, Path]

    def start(self, owner: str, *, port: int = 0) -> "subprocess.Popen[str]":
        """The first container of a workload; ``port`` instead of its own."""
        (found,) = [each for each in self.objects if called(each) == owner]
        container: dict[str, Any] = found["spec"]["template"]["spec"]["containers"][0]
        secrets = {"proxykd-mlflow-database": {"uri": self.database}, "proxykd-s3": CREDENTIALS}
        environment = container_environment(container, self.objects, secrets, self.folders)
        environment |= {
            "MLFLOW_S3_ENDPOINT_URL": self.storage,
            "PYTHONPATH": str(CHECKOUT),
        }  # the latter is the image's
        command = [
            word.replace("=5000", f"={port}") for word in container_command(container, environment, self.folders)
        ]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, env=environment, start_new_session=True, cwd=self.folders["/tmp"], **pipes)

    @contextmanager
    def serving(self) -> Iterator[str]:
        """The server, once its probe answers; gives its address."""
        port = free_port()
        process, deadline = self.start("Deployment/mlflow", port=port), time.monotonic() + START_S
        address = f"http://127.0.0.1:{port}"
        try:
            while answer(f"{address}/health") != 200:
                assert process.poll() is None, process.communicate()[0][-2000:]
                assert time.monotonic() < deadline
                time.sleep(0.2)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.communicate(timeout=60)


def answer(address: str, host: str | None = None) -> int:
    """The status of a GET; 0 where nobody listens."""
    try:
        with urlopen(Request(address, headers={"Host": host} if host else {}), timeout=10) as response:
            return int(response.status)
    except HTTPError as error:
        with error:
            return error.code
    except URLError:
        return 0


@pytest.fixture(scope="module")
def site(overlays: dict[str, list[Manifest]], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A migrated database, and a bucket."""
    folder = tmp_path_factory.mktemp("site")
    folders = {"/tmp": folder / "tmp", "/home/proxykd": folder / "home"}
    for each in folders.values():
        each.mkdir()
    with postgresql() as database, s3_server(folder, "proxykd-staging") as storage:
        found = Site(overlays["staging"], database, storage, folders)
        for _ in range(2):  # a migration that is repeated changes nothing
            migration = found.start("Job/mlflow-migration")
            output = migration.communicate(timeout=START_S)[0]
            assert migration.returncode == 0, output
        yield found


@pytest.fixture(scope="module")
def server(site: Site) -> Iterator[str]:
    """The address of the server."""
    with site.serving() as address:
        yield address


def test_the_server_takes_a_run_and_keeps_its_files_in_the_bucket(site: Site, server: str, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    (tmp_path / "report.txt").write_text("kept")
    tracking = MlflowClient(server, server)
    run = tracking.create_run(tracking.create_experiment("distil")).info
    tracking.log_metric(run.run_id, "loss", 0.5)
    tracking.log_artifact(run.run_id, str(tmp_path / "report.txt"))
    assert tracking.get_run(run.run_id).data.metrics == {"loss": 0.5}
    assert run.artifact_uri.startswith("mlflow-artifacts:/")
    (kept,) = list_keys(site.storage, "proxykd-staging")
    assert kept.startswith("mlflow/")
    assert kept.endswith(f"/{run.run_id}/artifacts/report.txt")
    fetched = tmp_path / "fetched"
    fetched.mkdir()
    assert Path(tracking.download_artifacts(run.run_id, "report.txt", str(fetched))).read_text() == "kept"


def test_the_probes_and_the_services_names_are_answered_and_strange_ones_are_not(site: Site, server: str) -> None:
    (deployment,) = [each for each in site.objects if called(each) == "Deployment/mlflow"]
    container = deployment["spec"]["template"]["spec"]["containers"][0]
    paths = {container[probe]["httpGet"]["path"] for probe in ("startupProbe", "readinessProbe", "livenessProbe")}
    for path in paths:
        assert answer(f"{server}{path}", "10.244.1.7:5000") == 200
    for host in (
        "mlflow:5000",
        "mlflow.proxykd.svc:5000",
        "mlflow.proxykd.svc.cluster.local:5000",
        "localhost:5000",
        *ADDRESSES,
    ):
        assert answer(f"{server}/{SEARCH}", host) == 200, host
    for host in ("evil.example", "mlflow.evil.example:5000", "mlflow.proxykd.svc.evil.example", *STRANGERS):
        assert answer(f"{server}/{SEARCH}", host) == 403, host


@contextmanager
def forwarded(line: str, api: ApiServer) -> Iterator[str]:
    """A line of the page as kubectl runs it, but on any port of this machine; gives its address."""
    command = [str(kubectl()), *shlex.split(re.sub(r" \d+:", " :", line))[1:]]
    environment = {**os.environ, "KUBECONFIG": str(api.kubeconfig("proxykd"))}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as process:
        try:
            assert process.stdout is not None
            told = process.stdout.readline()
            found = re.match(r"Forwarding from (127\.0\.0\.1:\d+) -> ", told)
            assert found, told + process.stdout.read()
            yield f"http://{found[1]}"
        finally:
            process.terminate()


def running(objects: list[Manifest], owner: str) -> Manifest:
    """A pod of a workload, as it is when its containers run."""
    (found,) = [each for each in objects if called(each) == owner]
    template = found["spec"]["template"]
    meta = {"name": f"{found['metadata']['name']}-0", "labels": template["metadata"]["labels"]}
    status = {"phase": "Running"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"], "status": status}


def test_what_the_page_forwards_is_mlflow_and_the_storage(
    site: Site, server: str, overlays: dict[str, list[Manifest]], tmp_path: Path
) -> None:
    page, local = (K8S.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8"), overlays["local"]
    lines = {found[1]: found[0] for found in FORWARD.finditer(page)}
    assert lines.keys() == {"mlflow", "object-store"}
    workloads = ("Deployment/mlflow", "Deployment/object-store")
    with api_server(tmp_path) as api:
        api.create_namespace("proxykd")
        services = [each for each in local if each["kind"] == "Service"]
        api.apply(*services, *(running(local, owner) for owner in workloads), namespace="proxykd")
        api.ports = {
            port: ("127.0.0.1", urlsplit(there).port or 0) for port, there in ((5000, server), (7070, site.storage))
        }
        with forwarded(lines["mlflow"], api) as mlflow, forwarded(lines["object-store"], api) as storage:
            for _ in range(3):
                assert answer(f"{mlflow}/{SEARCH}", "localhost:5000") == 200
            client(storage).put_object(Bucket="proxykd-staging", Key="forwarded", Body=b"1" * (1 << 20))
            assert "forwarded" in list_keys(site.storage, "proxykd-staging")
            client(site.storage).delete_object(Bucket="proxykd-staging", Key="forwarded")
            api.ports.clear()
            with suppress(ConnectionError):  # which urllib lets through while it waits for the answer
                assert answer(f"{mlflow}/{SEARCH}") == 0


def test_prometheus_finds_the_metrics_that_the_alerts_ask_for(site: Site, server: str) -> None:
    (monitor,) = [each for each in site.objects if each["kind"] == "ServiceMonitor"]
    assert answer(f"{server}/api/2.0/mlflow/runs/get?run_id=none") == 404
    request = Request(f"{server}{monitor['spec']['endpoints'][0]['path']}", headers={"Host": "10.244.1.7:5000"})
    with urlopen(request, timeout=10) as response:
        lines = response.read().decode().splitlines()
    counted = [line for line in lines if line.startswith("mlflow_http_request_total{")]
    assert any('status="404"' in line for line in counted), lines


def test_the_server_refuses_a_database_of_another_version(site: Site) -> None:
    with psycopg.connect(site.database.replace("+psycopg", ""), autocommit=True) as database:
        ((revision,),) = database.execute("select version_num from alembic_version").fetchall()
        database.execute("update alembic_version set version_num = '451aebb31d03'")
        try:
            refused = site.start("Deployment/mlflow", port=free_port())
            output = refused.communicate(timeout=START_S)[0]
        finally:
            database.execute("update alembic_version set version_num = %s", (revision,))
    assert refused.returncode != 0
    assert "out-of-date database schema" in output


@pytest.mark.skipif(program("initdb") is None, reason="no PostgreSQL with TLS on this machine")
def test_the_documented_address_of_a_managed_database_is_verified_and_connects(
    overlays: dict[str, list[Manifest]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (K8S.parent / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    public, private = (f"sslmode=verify-full&sslrootcert={place}" for place in ("system", f"{AUTHORITY}/ca.crt"))
    assert f"/NAME?{public}`" in page
    authority, key = write_certificate(tmp_path / "authority")
    stranger, _ = write_certificate(tmp_path / "stranger")
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    folders = {"/home/proxykd": home, "/tmp": temporary, "/etc/ssl/certs": tmp_path / "system"}
    for folder in folders.values():
        folder.mkdir()

    def migrate(uri: str, *, trusted: Path) -> tuple[int, str]:
        (folders["/etc/ssl/certs"] / "ca-certificates.crt").write_bytes(trusted.read_bytes())
        process = Site(overlays["production"], uri, "http://127.0.0.1:1", folders).start("Job/mlflow-migration")
        told = process.communicate(timeout=START_S)[0]
        return process.returncode, told

    with postgresql_tls(authority, key) as uri:
        status, told = migrate(f"{uri}?{public}", trusted=authority)
        assert status == 0, told
        mounted = private.replace(f"{AUTHORITY}/ca.crt", str(authority))
        status, told = migrate(f"{uri}?{mounted}", trusted=stranger)
        assert status == 0, told
        # By the library alone: MLflow would try again for two minutes.
        monkeypatch.setenv("SSL_CERT_FILE", str(stranger))
        with pytest.raises(psycopg.OperationalError, match="certificate verify failed"):
            psycopg.connect(f"{uri.replace('+psycopg', '')}?{public}")

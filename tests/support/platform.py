"""All that a run on a cluster needs, on loopback: cluster double, ZenML, MLflow on PostgreSQL, S3, and a client."""

import base64
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.k8s.cluster import Cluster, cluster
from tests.k8s.kinds import CORE
from tests.support.mlflow_servers import mlflow_server, postgresql
from tests.support.program import CHECKOUT, SPECIFICATION
from tests.support.zenml_server import ZenmlServer, zenml_server

BUCKET = "proxykd"
KEYS = {"AWS_ACCESS_KEY_ID": "loopback", "AWS_SECRET_ACCESS_KEY": "loopback"}
ACCOUNTS = ("proxykd-submitter", "proxykd-orchestrator", "proxykd-step", "proxykd-trainer")
CLAIMS = ("proxykd-models", "proxykd-journal")
MLFLOW = "http://mlflow:5000"
LIMIT_S = 420


@dataclass(frozen=True)
class Platform:
    """What runs, and how to reach it."""

    folder: Path
    cluster: Cluster
    zenml: ZenmlServer
    mlflow: str
    storage: str

    def environment(self, home: Path) -> dict[str, str]:
        """Of a user's machine whose own state is in ``home``."""
        own = {
            **self.zenml.environment(home),
            **KEYS,
            "AWS_DEFAULT_REGION": "eu-central-1",
            "MLFLOW_TRACKING_URI": self.mlflow,
            "KUBECONFIG": str(self.cluster.api.kubeconfig("proxykd", account="proxykd-submitter")),
            "PROXYKD_HOME": str(home / "state"),
            "PYTHONPATH": str(CHECKOUT),
            "OMP_NUM_THREADS": "1",
        }
        return {**os.environ, **own}

    def stack(self, placement: Path, **changes: Any) -> Path:
        """The file of a stack on this platform."""
        content = {
            "kind": "kubernetes",
            "name": "double",
            "context": "double",
            "namespace": "proxykd",
            "image": f"ghcr.io/proxykd/proxykd@sha256:{'0' * 64}",
            "container_registry": "ghcr.io/proxykd",
            "artifact_store": {
                "kind": "s3",
                "path": f"s3://{BUCKET}/artifacts",
                "endpoint_url": self.storage,
                "region": "eu-central-1",
                "secret": "proxykd-s3",
            },
            "placement": str(placement),
        }
        path = self.folder / f"stack-{placement.stem}.yaml"
        path.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")
        return path

    def run(self, home: Path, placement: Path, **more: str) -> "Outcome":
        """The tiny specification, submitted as a user would, to its end."""
        home.mkdir(parents=True, exist_ok=True)
        specification = home / "tiny.yaml"
        specification.write_text(yaml.safe_dump(SPECIFICATION), encoding="utf-8")
        command = [sys.executable, "-m", "tests.support.kubernetes_run", str(specification), str(self.stack(placement))]
        with (home / "stdout.txt").open("w") as out, (home / "stderr.txt").open("w") as err:
            process = subprocess.Popen(
                command,
                cwd=home,
                env={**self.environment(home), **more},
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            try:
                status = process.wait(LIMIT_S)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return Outcome(status, (home / "stdout.txt").read_text(), (home / "stderr.txt").read_text())


@dataclass(frozen=True)
class Outcome:
    """How a submission ended and what it printed."""

    status: int
    stdout: str
    stderr: str

    @property
    def content(self) -> dict[str, Any]:
        """Report, promotion and the steps' statuses."""
        found: dict[str, Any] = json.loads(self.stdout.splitlines()[-1])
        return found


@contextmanager
def storage() -> Iterator[str]:
    """An S3 server with an empty bucket; gives its address."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    try:
        host, port = server.get_host_and_port()
        address = f"http://{host}:{port}"
        keys = {"aws_access_key_id": "loopback", "aws_secret_access_key": "loopback", "region_name": "eu-central-1"}
        place = {"LocationConstraint": "eu-central-1"}
        boto3.client("s3", endpoint_url=address, **keys).create_bucket(Bucket=BUCKET, CreateBucketConfiguration=place)
        yield address
    finally:
        server.stop()


@contextmanager
def platform(folder: Path, *, num_slots: int = 4) -> Iterator[Platform]:
    """Everything up; the slow ones start side by side."""
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        slow = pool.submit(stack.enter_context, zenml_server(folder))
        database = stack.enter_context(postgresql())
        mlflow = stack.enter_context(mlflow_server(folder, database))
        bucket = stack.enter_context(storage())
        double = stack.enter_context(
            cluster(folder / "cluster", addresses={MLFLOW: mlflow}, num_slots=num_slots, passed=_passed())
        )
        furnish(double)
        yield Platform(folder, double, slow.result(), mlflow, bucket)


def _passed() -> dict[str, str]:
    """What the image's environment would bring, and what keeps many processes on few cores from waiting for each other."""
    return {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1", "AWS_DEFAULT_REGION": "eu-central-1"}


def furnish(double: Cluster) -> None:
    """The accounts, secrets and claims that a run needs."""
    api = "v1"
    size = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
    data = {key: base64.b64encode(value.encode()).decode() for key, value in KEYS.items()}
    objects: list[dict[str, Any]] = [
        {"apiVersion": api, "kind": "ServiceAccount", "metadata": {"name": name}} for name in ACCOUNTS
    ]
    objects += [
        {"apiVersion": api, "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": size}
        for name in CLAIMS
    ]
    objects.append({"apiVersion": api, "kind": "Secret", "metadata": {"name": "proxykd-s3"}, "data": data})
    objects.append({"apiVersion": api, "kind": "Secret", "metadata": {"name": "proxykd-teacher"}, "data": {}})
    double.api.apply(*objects, namespace="proxykd")
    assert double.api.store.list(CORE["PersistentVolumeClaim"], "proxykd")

"""All that a run on a cluster needs, on loopback: cluster double, ZenML, MLflow on PostgreSQL, S3, and a client."""

import base64
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from tests.k8s.cluster import Cluster, cluster
from tests.k8s.kinds import CORE
from tests.k8s.runtimes import Runtime
from tests.support.kubectl import render
from tests.support.mlflow_servers import mlflow_server, postgresql
from tests.support.program import CHECKOUT, PROXYKD, SPECIFICATION, num_answers
from tests.support.s3_server import CREDENTIALS, s3_server
from tests.support.servers import own_address
from tests.support.zenml_server import ZenmlServer, zenml_server

BUCKET = "proxykd"
MLFLOW = "http://mlflow:5000"
LIMIT_S = 3_000
NO_IMAGE = f"ghcr.io/proxykd/proxykd@sha256:{'1' * 64}"
"""Of pods that run as processes."""


@dataclass(frozen=True)
class Platform:
    """What runs, and how to reach it."""

    folder: Path
    cluster: Cluster
    zenml: ZenmlServer
    mlflow: str
    storage: str
    image: str

    def environment(self, home: Path) -> dict[str, str]:
        """Of a user's machine whose own state is in ``home``."""
        own = {
            **self.zenml.environment(home),
            **CREDENTIALS,
            "MLFLOW_TRACKING_URI": self.mlflow,
            "KUBECONFIG": str(self.cluster.api.kubeconfig("proxykd", account="proxykd-submitter")),
            "PROXYKD_HOME": str(home / "state"),
            "PYTHONPATH": str(CHECKOUT),
            "OMP_NUM_THREADS": "1",
        }
        return {**os.environ, **own}

    def stack(self, placement: Path, **changes: Any) -> Path:
        """The file of a stack on this platform."""
        own: dict[str, Any] = {"image": self.image}
        if changes.get("kind") != "kubeflow":  # whose pods take the address from a secret
            own["zenml_url"] = in_cluster(self.zenml)
        return stack_file(self.folder, placement, self.storage, **{**own, **changes})

    def run(self, home: Path, placement: Path, **more: str) -> "Outcome":
        """The tiny specification, submitted as a user would, to its end."""
        home.mkdir(parents=True, exist_ok=True)
        specification = home / "tiny.yaml"
        specification.write_text(yaml.safe_dump(SPECIFICATION), encoding="utf-8")
        stack = str(self.stack(placement))
        applied = self._submit(home, [str(PROXYKD), "stack", "apply", stack, "--yes"], more)
        assert applied.status == 0, applied.stderr
        return self._submit(home, [str(PROXYKD), "run", "tiny.yaml", "--stack", stack], more)

    def types(self, home: Path, *words: str, **more: str) -> "Outcome":
        """A command of the command line, to its end; ``more`` = further variables."""
        home.mkdir(parents=True, exist_ok=True)
        return self._submit(home, [str(PROXYKD), *words], {"COLUMNS": "200", **more})

    def run_small(self, home: Path, placement: Path, wait_s: float, *, leaves: bool = False, **stack: Any) -> "Outcome":
        """The small pipeline of two steps, the first of which waits on its first try.

        Args:
            home: Where it is typed.
            placement: Of the stack.
            wait_s: As it says itself.
            leaves: Whether nobody follows the run.
            stack: Changes the stack.
        """
        home.mkdir(parents=True, exist_ok=True)
        module = [sys.executable, "-m", "tests.support.small_pipeline"]
        words = [str(self.stack(placement, **stack)), str(wait_s), *(["leave"] if leaves else [])]
        return self._submit(home, [*module, *words], {})

    def _submit(self, home: Path, command: list[str], more: dict[str, str]) -> "Outcome":
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

    def report(self) -> dict[str, Any]:
        """The latest report in MLflow."""
        from mlflow import MlflowClient

        client = MlflowClient(self.mlflow, self.mlflow)  # a process of tests may have another registry
        version = client.get_model_version(SPECIFICATION["registry"]["model_name"], "1")
        path = Path(client.download_artifacts(version.run_id, "report/report.json", str(self.folder)))
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found

    def journal(self) -> Path:
        """Of the teacher's answers, on the volume that runs share."""
        return self.cluster.kubelet.machine.claim("proxykd", "proxykd-journal") / "journal.sqlite"

    def num_answers(self) -> int:
        """Of the teacher, so far."""
        return num_answers(self.journal())

    def statuses(self) -> dict[str, str]:
        """Name of each run and of each of its steps -> status, as the ZenML server's database has them."""
        path = next((self.folder / "zenml-server").rglob("zenml.db"))
        latest = "(SELECT id FROM pipeline_run ORDER BY created DESC LIMIT 1)"
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
            run = database.execute(f"SELECT '', status FROM pipeline_run WHERE id = {latest}").fetchall()
            steps = database.execute(f"SELECT name, status FROM step_run WHERE pipeline_run_id = {latest}")
            rows = run + steps.fetchall()
        return {name: str(status) for name, status in rows}

    def await_end(self) -> None:
        """Of the latest run and of its Jobs: the orchestrator's pod still removes the token when the run has ended."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            is_over = self.statuses()[""] in ("completed", "failed", "stopped")
            if is_over and not any(job["status"].get("active") for job in self.cluster.api.store.scan(CORE["Job"])):
                return
            time.sleep(0.1)
        raise AssertionError("the run has not ended, or a Job is still active")


@dataclass(frozen=True)
class Outcome:
    """How a submission ended and what it printed."""

    status: int
    stdout: str
    stderr: str


def in_cluster(zenml: ZenmlServer) -> str:
    """The server's address by the name that pods know; this machine does not."""
    return f"http://zenml:{urlsplit(zenml.address).port}"


def _ready(service: str) -> dict[str, Any]:
    """What the cluster says of a service that one pod answers for."""
    meta = {"name": f"{service}-double", "labels": {"kubernetes.io/service-name": service}}
    endpoint = {"addresses": ["127.0.0.1"], "conditions": {"ready": True}}
    body = {"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "metadata": meta}
    return {**body, "addressType": "IPv4", "endpoints": [endpoint]}


def stack_file(folder: Path, placement: Path, storage: str, **changes: Any) -> Path:
    """Write the file of a stack into the folder."""
    content = {
        "kind": "kubernetes",
        "name": "double",
        "context": "double",
        "namespace": "proxykd",
        "image": NO_IMAGE,
        "container_registry": "ghcr.io/proxykd",
        "artifact_store": {
            "kind": "s3",
            "path": f"s3://{BUCKET}/artifacts",
            "endpoint_url": storage,
            "region": CREDENTIALS["AWS_DEFAULT_REGION"],
            "secret": "proxykd-s3",
        },
        "placement": str(placement),
    }
    path = folder / f"stack-{placement.stem}.yaml"
    path.write_text(yaml.safe_dump({**content, **changes}), encoding="utf-8")
    return path


@contextmanager
def platform(
    folder: Path, *, num_slots: int = 4, runtime: Runtime | None = None, image: str = NO_IMAGE
) -> Iterator[Platform]:
    """Everything up; the slow ones start side by side.

    Args:
        folder: Of all that they keep.
        num_slots: Pods that run at once.
        runtime: What pods run as; None = processes of this machine.
        image: The pods', by its digest.
    """
    # A service has an address of its own, and MLflow's the port that pods expect: nothing in them needs changing.
    place = None if runtime is None else (own_address(), 5000)
    with ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        slow = pool.submit(stack.enter_context, zenml_server(folder))
        database = stack.enter_context(postgresql())
        mlflow = stack.enter_context(mlflow_server(folder, database, place))
        bucket = stack.enter_context(s3_server(folder, BUCKET))
        double = stack.enter_context(
            cluster(
                folder / "cluster",
                addresses={MLFLOW: mlflow},
                num_slots=num_slots,
                passed=_passed(),
                runtime=runtime,
            )
        )
        furnish(double)
        zenml = slow.result()
        double.kubelet.machine.addresses[in_cluster(zenml)] = zenml.address
        yield Platform(folder, double, zenml, mlflow, bucket, image)


def _passed() -> dict[str, str]:
    """What the image's environment would bring."""
    return {
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "AWS_DEFAULT_REGION": CREDENTIALS["AWS_DEFAULT_REGION"],
    }


def furnish(double: Cluster) -> None:
    """The overlay of a machine of one's own, the secrets that a user makes, and Roles that hold from now on."""
    data = {key: base64.b64encode(value.encode()).decode() for key, value in CREDENTIALS.items()}
    secrets = [
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "data": content}
        for name, content in (("proxykd-s3", data), ("proxykd-teacher", {}))
    ]
    overlay = render(CHECKOUT / "k8s" / "overlays" / "local")
    # The servers that it would start run on this machine already.
    kept = [found for found in overlay if found["kind"] not in ("Job", "Deployment", "StatefulSet")]
    double.api.apply(*kept, *secrets, _ready("mlflow"), namespace="proxykd")
    double.api.access.is_enforced = True

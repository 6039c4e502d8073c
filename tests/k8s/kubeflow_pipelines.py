"""A double of Kubeflow Pipelines: takes compiled pipelines over HTTP and runs each task as a Pod of the cluster double.

A task's Pod is made from the intermediate representation alone, as the real backend does; the API server double
validates it. A task begins when those that it depends on have succeeded; a failed Pod is replaced as often as the
task's retry policy says, and then the run has failed.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

from tests.k8s.api_server import ApiServer
from tests.k8s.kinds import CORE
from tests.k8s.refusals import Refusal
from tests.k8s.schemas import faults
from tests.support.servers import listening

POD = CORE["Pod"]
Object = dict[str, Any]
PREFIX = "/apis/v2beta1"
OWN_ACCOUNT = "pipeline-runner"
"""What Kubeflow Pipelines gives to Pods of a run that names none."""


@dataclass
class Run:
    """A submitted pipeline.

    Attributes:
        name: Of the run.
        spec: The pipeline.
        platform: What Kubernetes needs to know of it.
        state: As the API says it.
        pods: Task -> names of its Pods so far.
        account: Service account of all its Pods.
    """

    name: str
    spec: Object
    platform: Object
    run_id: str = field(default_factory=lambda: str(uuid4()))
    state: str = "RUNNING"
    pods: dict[str, list[str]] = field(default_factory=dict)
    account: str = OWN_ACCOUNT

    @property
    def owner(self) -> Object:
        """What controls the Pods: Argo's Workflow, which is no object here."""
        workflow = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": self.name}
        return {**workflow, "uid": self.run_id, "controller": True}

    def executor(self, task: str) -> str:
        component = self.spec["root"]["dag"]["tasks"][task]["componentRef"]["name"]
        return str(self.spec["components"][component]["executorLabel"])

    def pod(self, task: str) -> Object:
        """The manifest of the task's next Pod."""
        executor = self.executor(task)
        container = self.spec["deploymentSpec"]["executors"][executor]["container"]
        own = self.platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"][executor]
        name = f"{self.name}-{task}-{len(self.pods.get(task, []))}".replace("_", "-")[-60:].strip("-")
        volumes, mounts = _volumes(own)
        context = {key: int(value) if key != "runAsNonRoot" else value for key, value in own["securityContext"].items()}
        metadata = own.get("podMetadata", {})
        return {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "ownerReferences": [self.owner], **metadata},
            "spec": {
                "serviceAccountName": self.account,
                "restartPolicy": "Never",
                "nodeSelector": own.get("nodeSelector", {}).get("labels", {}),
                "tolerations": own.get("tolerations", []),
                "securityContext": context,
                "volumes": volumes,
                "containers": [
                    {
                        "name": "main",
                        "image": container["image"],
                        "command": container["command"],
                        "args": container["args"],
                        "env": [*_variables(container, self.run_id), *_secrets(own)],
                        "resources": _resources(container.get("resources", {})),
                        "volumeMounts": mounts,
                    }
                ],
            },
        }  # fmt: skip


def _variables(container: Object, run_id: str) -> list[Object]:
    return [
        {"name": one["name"], "value": one["value"].replace("{{$.pipeline_job_name}}", run_id)}
        for one in container.get("env", [])
    ]


def _secrets(own: Object) -> list[Object]:
    return [
        {"name": pair["envVar"],
         "valueFrom": {"secretKeyRef": {"name": one["secretName"], "key": pair["secretKey"],
                                        "optional": one["optional"]}}}
        for one in own.get("secretAsEnv", []) for pair in one["keyToEnv"]
    ]  # fmt: skip


def _resources(told: Object) -> Object:
    names = {"resourceCpu": "cpu", "resourceMemory": "memory"}
    found: Object = {"requests": {}, "limits": {}}
    for key, value in told.items():
        if match := re.fullmatch(r"(resourceCpu|resourceMemory)(Request|Limit)", key):
            found[f"{match[2].lower()}s"][names[match[1]]] = value
    if accelerator := told.get("accelerator"):
        found["limits"][accelerator["resourceType"]] = accelerator["resourceCount"]
        found["requests"][accelerator["resourceType"]] = accelerator["resourceCount"]
    return found


def _volumes(own: Object) -> tuple[list[Object], list[Object]]:
    volumes: list[Object] = []
    mounts: list[Object] = []
    for one in own.get("emptyDirMounts", []):
        kind = {"sizeLimit": one["sizeLimit"], **({"medium": one["medium"]} if "medium" in one else {})}
        volumes.append({"name": one["volumeName"], "emptyDir": kind})
        mounts.append({"name": one["volumeName"], "mountPath": one["mountPath"]})
    for one in own.get("pvcMount", []):
        claim = one["pvcNameParameter"]["runtimeValue"]["constant"]
        volumes.append({"name": claim, "persistentVolumeClaim": {"claimName": claim}})
        mounts.append({"name": claim, "mountPath": one["mountPath"]})
    return volumes, mounts


class KubeflowPipelines:
    """The double; see the module.

    Attributes:
        runs: Everything that was submitted.
        bodies: The raw requests, in order.
        refusals: What Kubernetes' schema finds wrong with Pods.
    """

    def __init__(self, api: ApiServer, namespace: str) -> None:
        self.api, self.namespace = api, namespace
        self.runs: dict[str, Run] = {}
        self.bodies: list[str] = []
        self.experiments: dict[str, Object] = {}
        self.refusals: list[str] = []
        self.is_stopping = False

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Object) -> Object | None:
        """What an endpoint says; None = there is no such thing."""
        if path == f"{PREFIX}/healthz":
            return {"multi_user": False}
        if path == f"{PREFIX}/experiments":
            if method == "GET":
                return {"experiments": list(self.experiments.values())}
            new = {**body, "experiment_id": str(uuid4())}
            return self.experiments.setdefault(body["display_name"], new)
        if path == f"{PREFIX}/runs" and method == "POST":
            return self._submit(body)
        if match := re.fullmatch(rf"{PREFIX}/runs/([\w-]+)(:terminate)?", path):
            if (run := self.runs.get(match[1])) is None:
                return None
            if match[2]:
                return self._terminate(run)
            return {"run_id": run.run_id, "display_name": run.name, "state": run.state}
        return None

    def _submit(self, body: Object) -> Object:
        told = body["pipeline_spec"]
        spec, platform = told.get("pipeline_spec", told), told.get("platform_spec", {})
        run = Run(body["display_name"], spec, platform, account=body.get("service_account") or OWN_ACCOUNT)
        self.runs[run.run_id] = run
        threading.Thread(target=self._drive, args=(run,), daemon=True).start()
        return {"run_id": run.run_id, "display_name": run.name, "state": run.state}

    def _terminate(self, run: Run) -> Object:
        run.state = "CANCELED"
        for name in (pods[-1] for pods in run.pods.values()):
            with suppress(Refusal):
                self.api.store.delete(POD, self.namespace, name)
        return {}

    def _drive(self, run: Run) -> None:
        tasks = run.spec["root"]["dag"]["tasks"]
        done: set[str] = set()
        version = ""
        while len(done) < len(tasks) and run.state == "RUNNING" and not self.is_stopping:
            for name, task in tasks.items():
                if name not in run.pods and done >= set(task.get("dependentTasks", ())):
                    self._start(run, name)
                elif name in run.pods and name not in done:
                    self._look(run, name, task, done)
            version = self.api.store.wait(version, 0.2)
        if run.state == "RUNNING" and len(done) == len(tasks):
            run.state = "SUCCEEDED"

    def _start(self, run: Run, name: str) -> None:
        pod = run.pod(name)
        if wrong := faults(pod):
            run.state, self.refusals = "FAILED", [*self.refusals, *wrong]
            return
        self.api.apply(pod, namespace=self.namespace)
        run.pods.setdefault(name, []).append(pod["metadata"]["name"])

    def _look(self, run: Run, name: str, task: Object, done: set[str]) -> None:
        phase = self.api.store.get(POD, self.namespace, run.pods[name][-1])["status"].get("phase")
        if phase == "Succeeded":
            done.add(name)
        elif phase == "Failed":
            if len(run.pods[name]) > task.get("retryPolicy", {}).get("maxRetryCount", 0):
                run.state = "FAILED"
            else:
                self._start(run, name)


@contextmanager
def kubeflow_pipelines(api: ApiServer, namespace: str = "proxykd") -> Iterator[tuple[KubeflowPipelines, str]]:
    """The double and its address."""
    double = KubeflowPipelines(api, namespace)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length") or 0)).decode()
            if raw:
                double.bodies.append(raw)
            parts = urlsplit(self.path)
            found = double.answer(self.command, parts.path, parse_qs(parts.query), json.loads(raw) if raw else {})
            text = json.dumps(found if found is not None else {"message": f"no {self.path}"}).encode()
            self.send_response(200 if found is not None else 404)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text)

        do_GET = do_POST = _answer

        def log_message(self, format: str, *args: Any) -> None:
            """Silent."""

    with listening(ThreadingHTTPServer(("127.0.0.1", 0), Handler)) as address:
        try:
            yield double, address
        finally:
            double.is_stopping = True
            time.sleep(0.3)

"""A kubelet double: runs each Pod, as processes or as real containers, and reports what became of it.

Faults on demand end a pod as a cluster would: killed, evicted with a grace period, its node gone, out of memory, or
its image never found; or its node cannot be reached, and it is called running until somebody deletes it. It ends only
what it started itself.
"""

import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tests.k8s.access import service_account
from tests.k8s.api_server import ApiServer
from tests.k8s.containers import CannotStart, Machine
from tests.k8s.controller import Controller
from tests.k8s.kinds import CORE
from tests.k8s.refusals import Refusal
from tests.k8s.runtimes import Place, Processes, Runtime, Started
from tests.k8s.store import now

Object = dict[str, Any]
How = Literal["killed", "evicted", "node gone", "node unreachable", "out of memory", "image missing"]
POD = CORE["Pod"]
TAINT = "DeletionByTaintManager"
REASONS = {"evicted": "EvictionByEvictionAPI", "node gone": TAINT, "node unreachable": TAINT}


@dataclass
class Mishap:
    """What happens to the next pods that fit.

    Attributes:
        how: What a cluster would call it.
        chosen: Which pods it befalls.
        num_times: Pods left to befall.
        when: Asked about a running pod and its log: whether it is time; at once by default.
    """

    how: How
    chosen: Callable[[Object], bool]
    num_times: int = 1
    when: Callable[[Object, Path], bool] = lambda pod, log: True
    _befallen: set[str] = field(default_factory=set)


@dataclass
class Running:
    """A pod's processes or real containers, by name."""

    pod: Object
    processes: dict[str, Started]
    logs: dict[str, Path]
    began: float
    ends: float | None = None
    how: str = ""


class Kubelet(Controller):
    """See the module.

    Attributes:
        runtime: What runs the containers.
        mishaps: The faults that are due.
        num_slots: Pods that run at once; the others wait unscheduled.
        starts: (pod's name, labels) of every pod that started, in order.
    """

    def __init__(self, api: ApiServer, machine: Machine, *, num_slots: int = 8, runtime: Runtime | None = None) -> None:
        super().__init__(api.store)
        self.api, self.machine, self.num_slots = api, machine, num_slots
        self.runtime = runtime or Processes()
        self.mishaps: list[Mishap] = []
        self.starts: list[tuple[str, dict[str, str]]] = []
        self._running: dict[str, Running] = {}

    def stop(self) -> None:
        """End everything that is still running, at once."""
        super().stop()
        for running in list(self._running.values()):
            for process in running.processes.values():
                process.remove()

    def befall(self, how: How, num_times: int = 1, when: Any = None, **labels: str) -> None:
        """Let the next pods with these labels suffer a mishap."""
        self.mishaps.append(Mishap(how, partial(_has, labels), num_times, when or (lambda pod, log: True)))

    def hold_up(self, **labels: str) -> None:
        """Let the pods with these labels that run now take no processor and do no more, until they are killed."""
        for running in list(self._running.values()):
            if _has(labels, running.pod):
                self._signal(running, signal.SIGSTOP)

    def look(self) -> None:
        """Follow the pods that run, and begin those that wait."""
        pods = {pod["metadata"]["uid"]: pod for pod in filter(self._is_due, self.store.scan(POD))}
        for uid, running in list(self._running.items()):
            self._follow(running, pods.get(uid))
        for uid, pod in pods.items():
            if uid not in self._running and pod["status"].get("phase") == "Pending":
                self._begin(pod)
        self.wait_s = 0.1 if self._running else 0.5

    def _is_due(self, pod: Object) -> bool:
        return pod["metadata"]["uid"] in self._running or pod["status"].get("phase") == "Pending"

    def _begin(self, pod: Object) -> None:
        if pod["metadata"].get("deletionTimestamp"):
            self._write(pod, {"phase": "Failed"})
            return
        if len(self._running) >= self.num_slots:
            told = {"reason": "Unschedulable", "message": f"0/1 nodes are available: {self.num_slots} pods run there"}
            self._wait(pod, "", "", {"type": "PodScheduled", "status": "False", **told})
            return
        mishap = self._due(pod, None)
        if mishap is not None and mishap.how == "image missing":
            image = pod["spec"]["containers"][0]["image"]
            self._wait(pod, "ImagePullBackOff", f'Back-off pulling image "{image}"')
            return
        try:
            self._start(pod)
        except CannotStart as trouble:
            self._wait(pod, trouble.reason, str(trouble))

    def _start(self, pod: Object) -> None:
        own = self.machine.own(pod)
        place = Place(self.machine, self.store, self.api.port, self._account(pod, own))
        containers = pod["spec"]["containers"]
        starters = {one["name"]: self.runtime.prepare(place, pod, one) for one in containers}
        own.mkdir(parents=True, exist_ok=True)
        logs = {name: own / f"{name}.log" for name in starters}
        processes = {name: start(logs[name]) for name, start in starters.items()}
        for name, log in logs.items():
            self.api.log_files[pod["metadata"]["namespace"], pod["metadata"]["name"], name] = log
        self._running[pod["metadata"]["uid"]] = Running(pod, processes, logs, time.monotonic())
        self.starts.append((pod["metadata"]["name"], pod["metadata"].get("labels") or {}))
        state = {"running": {"startedAt": now()}}
        statuses = [_status(one, state, is_ready=True) for one in containers]
        scheduled = {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()}
        self._write(
            pod, {"phase": "Running", "startTime": now(), "containerStatuses": statuses, "conditions": [scheduled]}
        )

    def _account(self, pod: Object, own: Path) -> Path | None:
        namespace, name = pod["metadata"]["namespace"], pod["spec"]["serviceAccountName"]
        try:
            account = self.store.get(CORE["ServiceAccount"], namespace, name)
        except Refusal as refusal:
            raise CannotStart("CreateContainerConfigError", str(refusal)) from refusal
        wanted = pod["spec"].get("automountServiceAccountToken")
        if not (account.get("automountServiceAccountToken", True) if wanted is None else wanted):
            return None
        folder = own / "serviceaccount"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "namespace").write_text(namespace, encoding="utf-8")
        (folder / "token").write_text(self.api.access.issue(service_account(namespace, name)), encoding="utf-8")
        shutil.copyfile(self.api.certificate, folder / "ca.crt")
        return folder

    def rotate_tokens(self) -> None:
        """Write a new token for every running pod, as a kubelet does before the old one expires."""
        for uid, running in list(self._running.items()):
            folder = self.machine.folder / "pods" / uid / "serviceaccount"
            if folder.exists():
                user = service_account(running.pod["metadata"]["namespace"], running.pod["spec"]["serviceAccountName"])
                (folder / "token").write_text(self.api.access.issue(user), encoding="utf-8")

    def _follow(self, running: Running, pod: Object | None) -> None:
        uid = running.pod["metadata"]["uid"]
        if running.how == "node unreachable" and pod is not None:
            return
        codes = {name: process.poll() for name, process in running.processes.items()}
        if None not in codes.values():
            del self._running[uid]
            if any(process.is_out_of_memory() for process in running.processes.values()):
                running.how = running.how or "out of memory"
            for process in running.processes.values():
                process.remove()
            if pod is not None:
                self._report(running, pod, {name: int(code or 0) for name, code in codes.items()})
            return
        if pod is None or pod["metadata"].get("deletionTimestamp"):
            self._ask_to_end(running, pod or running.pod)
        elif not running.how and (mishap := self._due(pod, next(iter(running.logs.values())))) is not None:
            self._suffer(running, pod, mishap.how)
        if running.ends is not None and time.monotonic() >= running.ends:
            self._signal(running, signal.SIGKILL)

    def _suffer(self, running: Running, pod: Object, how: str) -> None:
        running.how = how
        if how in REASONS:
            condition = {"type": "DisruptionTarget", "status": "True", "reason": REASONS[how], "message": how}
            self._write(pod, {}, {**condition, "lastTransitionTime": now()})
        if how == "evicted":
            self._ask_to_end(running, pod)
        elif how == "node unreachable":
            meta = pod["metadata"]
            self.store.change(
                POD, meta["namespace"], meta["name"], lambda one: one["metadata"].update(deletionTimestamp=now())
            )
        else:
            self._signal(running, signal.SIGKILL)

    def _ask_to_end(self, running: Running, pod: Object) -> None:
        if running.ends is None:
            running.ends = time.monotonic() + float(pod["spec"].get("terminationGracePeriodSeconds", 30))
            self._signal(running, signal.SIGTERM)

    def _signal(self, running: Running, number: signal.Signals) -> None:
        for process in running.processes.values():
            if process.poll() is None:
                process.send_signal(number)

    def _report(self, running: Running, pod: Object, codes: dict[str, int]) -> None:
        statuses = []
        for container in pod["spec"]["containers"]:
            code = codes[container["name"]]
            code = 128 - code if code < 0 else code
            reason = "OOMKilled" if running.how == "out of memory" else "Error" if code else "Completed"
            ended = {"exitCode": code, "reason": reason, "startedAt": now(), "finishedAt": now()}
            statuses.append(_status(container, {"terminated": ended}, is_ready=False))
        status: Object = {"phase": "Failed" if any(codes.values()) else "Succeeded", "containerStatuses": statuses}
        # A pod that is evicted may still come to its end in its grace period.
        if running.how == "node gone" or (running.how == "evicted" and any(codes.values())):
            status |= {"phase": "Failed", "reason": "Evicted" if running.how == "evicted" else "NodeLost"}
            status["message"] = f"the pod's end on demand: {running.how}"
        self._write(pod, status)

    def _wait(self, pod: Object, reason: str, message: str, condition: Object | None = None) -> None:
        status: Object = {"phase": "Pending"}
        if reason:
            state = {"waiting": {"reason": reason, "message": message}}
            status["containerStatuses"] = [_status(one, state, is_ready=False) for one in pod["spec"]["containers"]]
        self._write(pod, status, condition)

    def _write(self, pod: Object, status: Object, condition: Object | None = None) -> None:
        def change(found: Object) -> None:
            found["status"].update(status)
            if condition is not None:
                others = [one for one in found["status"].get("conditions", []) if one["type"] != condition["type"]]
                found["status"]["conditions"] = [*others, condition]

        self.restate(POD, pod, change)

    def _due(self, pod: Object, log: Path | None) -> Mishap | None:
        uid = pod["metadata"]["uid"]
        for mishap in self.mishaps:
            is_image = mishap.how == "image missing"
            if is_image != (log is None) or not mishap.chosen(pod):
                continue
            if is_image and uid in mishap._befallen:
                return mishap
            if mishap.num_times > 0 and (log is None or mishap.when(pod, log)):
                mishap.num_times -= 1
                mishap._befallen.add(uid)
                return mishap
        return None


def _status(container: Object, state: Object, *, is_ready: bool) -> Object:
    return {
        "name": container["name"],
        "image": container["image"],
        "imageID": "",
        "ready": is_ready,
        "restartCount": 0,
        "state": state,
    }


def _has(labels: dict[str, str], pod: Object) -> bool:
    own = pod["metadata"].get("labels") or {}
    return all(own.get(key) == value for key, value in labels.items())

"""A Kubeflow Trainer and JobSet double: an indexed Job for each TrainJob, and its state as the TrainJob's.

Differs from the real ones: the JobSet between the two is not stored; its labels and names are.
"""

import copy
from typing import Any

from tests.k8s.controller import Controller, ownership
from tests.k8s.defaults import admitted
from tests.k8s.jobs import INDEX, JOB
from tests.k8s.kinds import CORE
from tests.k8s.patches import merged
from tests.k8s.refusals import Refusal
from tests.k8s.store import Store, now
from tests.support.servers import free_port

Object = dict[str, Any]
TRAIN_JOB, RUNTIME = CORE["TrainJob"], CORE["TrainingRuntime"]
JOBSET = "jobset.sigs.k8s.io/jobset-name"


class TrainJobs(Controller):
    """Keeps a Job for every TrainJob.

    Attributes:
        addresses: Gets the name of each training's first pod, which the machine's pods find on loopback.
    """

    def __init__(self, store: Store, addresses: dict[str, str]) -> None:
        super().__init__(store)
        self.addresses = addresses

    def check(self, found: Object) -> None:
        """Refuse a new TrainJob whose runtime is not there, as Trainer's webhook does."""
        if found["kind"] != "TrainJob":
            return
        reference, namespace = found["spec"]["runtimeRef"], found["metadata"].get("namespace", "proxykd")
        try:
            self.store.get(RUNTIME, namespace, reference["name"])
        except Refusal:
            told = f"denied the request: spec.runtimeRef: {reference['name']}: must be created before the TrainJob"
            raise Refusal(403, "Forbidden", f'admission webhook "validator.trainjob" {told}') from None

    def look(self) -> None:
        """Make the Jobs that are missing, and report what became of the others."""
        for found in self.store.scan(TRAIN_JOB):
            self._sync(found)

    def _sync(self, found: Object) -> None:
        meta = found["metadata"]
        name = f"{meta['name']}-node-0"
        try:
            job = self.store.peek(JOB, meta["namespace"], name)
        except Refusal:
            if found["spec"]["suspend"]:
                self._suspended(found)
            elif (found.get("status") or {}).get("conditions", [{}])[-1].get("type") != "Complete":
                self._create(found, name)
            return
        wanted = found["spec"]["suspend"]
        if job["spec"]["suspend"] != wanted:
            self.store.change(JOB, meta["namespace"], name, lambda one: one["spec"].update(suspend=wanted))
        self._report(found, job)

    def _create(self, found: Object, name: str) -> None:
        meta = found["metadata"]
        runtime = self.store.get(RUNTIME, meta["namespace"], found["spec"]["runtimeRef"]["name"])
        body = child_job(found, runtime, name)
        body["metadata"]["ownerReferences"] = ownership(found)
        self.addresses[f"{meta['name']}-node-0-0.{meta['name']}"] = "127.0.0.1"
        self.store.create(JOB, meta["namespace"], admitted(body))

    def _suspended(self, found: Object) -> None:
        self._write(
            found, {"type": "Suspended", "status": "True", "reason": "Suspended", "message": "is suspended"}, {}
        )

    def _report(self, found: Object, job: Object) -> None:
        counts = {key: job["status"].get(key, 0) for key in ("active", "failed", "ready", "succeeded")}
        counts |= {"name": "node", "suspended": int(job["spec"]["suspend"])}
        ended = [one for one in job["status"].get("conditions", []) if one["type"] in ("Complete", "Failed")]
        if ended:
            told = {"reason": "AllJobsCompleted" if ended[0]["type"] == "Complete" else "FailedJobs"}
            condition = {**told, "type": ended[0]["type"], "status": "True", "message": ended[0].get("message", "done")}
        else:
            word = "Suspended" if job["spec"]["suspend"] else "Resumed"
            state = str(bool(job["spec"]["suspend"]))
            condition = {"type": "Suspended", "status": state, "reason": word, "message": f"TrainJob is {word}"}
        self._write(found, condition, {"jobsStatus": [counts]})

    def _write(self, found: Object, condition: Object, more: Object) -> None:
        def change(one: Object) -> None:
            status = one.setdefault("status", {})
            status.update(more)
            kept = [old for old in status.get("conditions", []) if old["type"] != condition["type"]]
            same = [old for old in status.get("conditions", []) if old["type"] == condition["type"]]
            if same and same[0]["status"] == condition["status"]:
                return
            status["conditions"] = [*kept, {**condition, "lastTransitionTime": now()}]

        self.restate(TRAIN_JOB, found, change)


def child_job(found: Object, runtime: Object, name: str) -> Object:
    """The Job that Trainer and JobSet make of a TrainJob.

    Args:
        found: The TrainJob.
        runtime: Its TrainingRuntime.
        name: Of the Job.
    """
    own, trainer = found["metadata"]["name"], found["spec"].get("trainer", {})
    (replicated,) = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    spec = copy.deepcopy(replicated["template"]["spec"])
    nodes = trainer.get("numNodes", runtime["spec"]["mlPolicy"]["numNodes"])
    spec |= {"parallelism": nodes, "completions": nodes, "completionMode": "Indexed"}
    spec["suspend"] = found["spec"].get("suspend", False)
    pod = spec["template"]
    labels = {JOBSET: own, "jobset.sigs.k8s.io/replicatedjob-name": "node"}
    pod.setdefault("metadata", {}).setdefault("labels", {}).update(labels)
    pod["spec"]["subdomain"] = own
    for patch in found["spec"].get("runtimePatches", []):
        for one in patch["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]:
            pod["spec"] = merged(pod["spec"], one["template"]["spec"]["template"]["spec"], is_strategic=True)
    (container,) = pod["spec"]["containers"]
    container.update({key: trainer[key] for key in ("image", "command", "args") if key in trainer})
    container["resources"] = trainer.get("resourcesPerNode", container.get("resources", {}))
    given = {one["name"]: one for one in [*container.get("env", []), *trainer.get("env", []), *_rendezvous(own, nodes)]}
    given["PET_NPROC_PER_NODE"] = {"name": "PET_NPROC_PER_NODE", "value": str(trainer.get("numProcPerNode", 1))}
    container["env"] = list(given.values())
    metadata = {"name": name, "labels": {**replicated["template"]["metadata"]["labels"], **labels}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _rendezvous(name: str, nodes: int) -> list[Object]:
    rank = {"fieldRef": {"fieldPath": f"metadata.annotations['{INDEX}']"}}
    return [
        {"name": "PET_NNODES", "value": str(nodes)},
        {"name": "PET_NODE_RANK", "valueFrom": rank},
        {"name": "PET_MASTER_ADDR", "value": f"{name}-node-0-0.{name}"},
        # Always 29400 in a cluster, where each pod has an address of its own.
        {"name": "PET_MASTER_PORT", "value": str(free_port())},
    ]

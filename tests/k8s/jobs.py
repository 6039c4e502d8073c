"""A Job controller double: pods for each Job, retries and failure policies, deadlines, suspension, time to live."""

from collections.abc import Iterable
from contextlib import suppress
from datetime import datetime
from typing import Any
from uuid import uuid4

from tests.k8s.controller import Controller, is_finished, ownership
from tests.k8s.kinds import CORE
from tests.k8s.refusals import Refusal
from tests.k8s.store import Store, now

Object = dict[str, Any]
JOB, POD = CORE["Job"], CORE["Pod"]
INDEX = "batch.kubernetes.io/job-completion-index"
QUEUE = "kueue.x-k8s.io/queue-name"


class Jobs(Controller):
    """Keeps every Job's pods and status as its spec asks.

    Attributes:
        closed: Queues that admit nothing; a Job with the label of one stays suspended.
    """

    def __init__(self, store: Store) -> None:
        super().__init__(store)
        self.closed = set[str]()
        self._verdicts: dict[str, dict[str, str]] = {}

    def suspend_queued(self, found: Object) -> None:
        """A new Job with a queue's label waits, as Kueue's webhook has it."""
        if found["kind"] in ("Job", "TrainJob") and QUEUE in (found["metadata"].get("labels") or {}):
            found["spec"]["suspend"] = True

    def look(self) -> None:
        """Admit what its queue lets in, and bring every Job one step on."""
        for kind in (CORE["TrainJob"], JOB):
            for found in self.store.scan(kind):
                self._admit(found)
        for job in self.store.scan(JOB):
            self._sync(job)

    def _admit(self, found: Object) -> None:
        queue = (found["metadata"].get("labels") or {}).get(QUEUE)
        if queue and queue not in self.closed and found["spec"].get("suspend") and not is_finished(found):
            meta = found["metadata"]
            self.store.change(
                CORE[found["kind"]], meta["namespace"], meta["name"], lambda one: one["spec"].update(suspend=False)
            )

    def _sync(self, job: Object) -> None:
        if is_finished(job):
            self._expire(job)
            return
        pods = self._pods(job)
        if job["spec"].get("suspend"):
            self._suspend(job, pods)
            return
        if "startTime" not in job["status"]:
            self._status(job, {"startTime": now()}, [])
            return
        verdicts = self._judged(job, pods)
        if "FailJob" in verdicts:
            self._fail(job, pods, "PodFailurePolicy", "Pod failed and its failure policy says FailJob")
            return
        num_failed, limit = verdicts.count("Count"), job["spec"]["backoffLimit"]
        if num_failed > limit:
            self._fail(job, pods, "BackoffLimitExceeded", "Job has reached the specified backoff limit")
            return
        deadline = job["spec"].get("activeDeadlineSeconds")
        if deadline and _age(job["status"]["startTime"]) > deadline:
            self._fail(job, pods, "DeadlineExceeded", "Job was active longer than specified deadline")
            return
        self._advance(job, pods, num_failed)

    def _advance(self, job: Object, pods: list[Object], num_failed: int) -> None:
        spec = job["spec"]
        done = [pod for pod in pods if _phase(pod) == "Succeeded"]
        active = [pod for pod in pods if _phase(pod) in ("Pending", "Running")]
        wanted = spec["completions"]
        if spec["completionMode"] == "Indexed":
            over = {_index(pod) for pod in done}
            missing = [n for n in range(wanted) if n not in over | {_index(pod) for pod in active}]
        else:
            over, missing = set(range(len(done))), [-1] * (wanted - len(done) - len(active))
        counts = {"active": len(active), "succeeded": len(over), "failed": num_failed, "ready": len(active)}
        if len(over) >= wanted:
            ended = {"type": "Complete", "status": "True", "lastTransitionTime": now()}
            self._status(job, {**counts, "active": 0, "completionTime": now()}, [ended])
            return
        self._status(job, counts, [])
        for index in missing[: max(0, spec["parallelism"] - len(active))]:
            self._create_pod(job, index)

    def _judged(self, job: Object, pods: Iterable[Object]) -> list[str]:
        """What each failed pod of the job means: Count, Ignore or FailJob; decided once for each."""
        known = self._verdicts.setdefault(job["metadata"]["uid"], {})
        for pod in pods:
            uid = pod["metadata"]["uid"]
            if _phase(pod) == "Failed" and known.get(uid, "") in ("", "seen"):
                known[uid] = verdict(job["spec"].get("podFailurePolicy"), pod)
            else:
                known.setdefault(uid, "seen")
        here = {pod["metadata"]["uid"]: pod for pod in pods}
        for uid, word in known.items():
            if word == "seen" and uid not in here:
                known[uid] = "Count"
            elif word == "seen" and _phase(here[uid]) == "Succeeded":
                known[uid] = "Done"
        return list(known.values())

    def _create_pod(self, job: Object, index: int) -> None:
        template, meta = job["spec"]["template"], job["metadata"]
        labels = dict(template.get("metadata", {}).get("labels") or {})
        annotations = dict(template.get("metadata", {}).get("annotations") or {})
        name = f"{meta['name']}-{uuid4().hex[:5]}"
        spec = {**template["spec"], "serviceAccountName": template["spec"].get("serviceAccountName", "default")}
        if index >= 0:
            labels[INDEX] = annotations[INDEX] = str(index)
            name = f"{meta['name']}-{index}-{uuid4().hex[:5]}"
            variable = {"name": "JOB_COMPLETION_INDEX", "value": str(index)}
            containers = [{**one, "env": [variable, *(one.get("env") or [])]} for one in spec["containers"]]
            spec = {**spec, "hostname": f"{meta['name']}-{index}", "containers": containers}
        own = {"name": name, "labels": labels, "annotations": annotations, "ownerReferences": ownership(job)}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": own, "spec": spec, "status": {"phase": "Pending"}}
        try:
            made = self.store.create(POD, meta["namespace"], body)
        except Refusal as refusal:
            self._note(job, f"Error creating: {refusal}")
            return
        self._verdicts.setdefault(meta["uid"], {})[made["metadata"]["uid"]] = "seen"

    def _note(self, job: Object, message: str) -> None:
        """An event about a pod that could not be made, once a Job; the next look tries again."""
        meta = job["metadata"]
        about = {"apiVersion": "batch/v1", "kind": "Job", "namespace": meta["namespace"]}
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{meta['name']}.refused"},
            "involvedObject": {**about, "name": meta["name"], "uid": meta["uid"]},
            "type": "Warning",
            "reason": "FailedCreate",
            "message": message,
            "lastTimestamp": now(),
        }
        with suppress(Refusal):
            self.store.create(CORE["Event"], meta["namespace"], body)

    def _suspend(self, job: Object, pods: list[Object]) -> None:
        for pod in pods:
            if _phase(pod) in ("Pending", "Running"):
                self._verdicts.setdefault(job["metadata"]["uid"], {})[pod["metadata"]["uid"]] = "Ignore"
                self._delete(POD, pod)
        if not any(one["type"] == "Suspended" for one in job["status"].get("conditions", [])):
            condition = {"type": "Suspended", "status": "True", "reason": "JobSuspended", "message": "Job suspended"}
            self._status(job, {"active": 0}, [{**condition, "lastTransitionTime": now()}])

    def _fail(self, job: Object, pods: list[Object], reason: str, message: str) -> None:
        for pod in pods:
            if _phase(pod) in ("Pending", "Running"):
                self._delete(POD, pod)
        failed = sum(_phase(pod) == "Failed" for pod in pods)
        condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
        self._status(job, {"active": 0, "failed": failed}, [{**condition, "lastTransitionTime": now()}])

    def _expire(self, job: Object) -> None:
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        ended = [
            one["lastTransitionTime"] for one in job["status"]["conditions"] if one["type"] in ("Complete", "Failed")
        ]
        if ttl is not None and ended and _age(ended[0]) >= ttl:
            self._delete(JOB, job)

    def _delete(self, kind: Any, found: Object) -> None:
        try:
            self.store.delete(kind, found["metadata"]["namespace"], found["metadata"]["name"])
        except Refusal:
            return

    def _pods(self, job: Object) -> list[Object]:
        return sorted(self.owned(POD, job), key=lambda pod: int(pod["metadata"]["resourceVersion"]))

    def _status(self, job: Object, counts: Object, conditions: list[Object]) -> None:
        def change(found: Object) -> None:
            status = found.setdefault("status", {})
            status.update({key: value for key, value in counts.items() if value or key in status})
            others = [one for one in status.get("conditions", []) if one["type"] not in {c["type"] for c in conditions}]
            if not found["spec"].get("suspend"):
                others = [one for one in others if one["type"] != "Suspended"]
            if others or conditions:
                status["conditions"] = others + conditions
            elif "conditions" in status:
                del status["conditions"]

        self.restate(JOB, job, change)


def verdict(policy: Object | None, pod: Object) -> str:
    """What a pod's failure means to its Job: the action of the first rule that fits, else Count."""
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions", [])}
    for rule in (policy or {}).get("rules", []):
        if "onPodConditions" in rule:
            if any(conditions.get(one["type"]) == one.get("status", "True") for one in rule["onPodConditions"]):
                return str(rule["action"])
        elif _exits(rule["onExitCodes"], pod):
            return str(rule["action"])
    return "Count"


def _exits(rule: Object, pod: Object) -> bool:
    for status in pod["status"].get("containerStatuses", []):
        ended = status.get("state", {}).get("terminated")
        if ended is None or rule.get("containerName", status["name"]) != status["name"] or ended["exitCode"] == 0:
            continue
        if (ended["exitCode"] in rule["values"]) == (rule["operator"] == "In"):
            return True
    return False


def _phase(pod: Object) -> str:
    return str(pod["status"].get("phase", "Pending"))


def _index(pod: Object) -> int:
    return int(pod["metadata"]["annotations"][INDEX])


def _age(stamp: str) -> float:
    return datetime.now().timestamp() - datetime.fromisoformat(stamp.replace("Z", "+00:00")).timestamp()

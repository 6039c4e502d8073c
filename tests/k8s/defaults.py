"""What a real API server fills in or refuses when an object is created, as far as its clients here depend on it."""

import base64
from typing import Any

from tests.k8s.refusals import Refusal
from tests.k8s.schemas import faults

Object = dict[str, Any]


def admitted(found: Object) -> Object:
    """A new object with its defaults.

    Raises:
        Refusal: 422 where it breaks its schema or a rule that no schema knows.
    """
    if told := faults(found):
        name = found.get("metadata", {}).get("name", "")
        raise Refusal(422, "Invalid", f"{found.get('kind')} {name!r} is invalid: {'; '.join(told)}")
    fill = _FILLS.get(found["kind"])
    if fill is not None:
        fill(found)
    return found


def without_nulls(found: Any) -> Any:
    """A copy without the fields that are null: to an API server they are not there."""
    if isinstance(found, dict):
        return {key: without_nulls(value) for key, value in found.items() if value is not None}
    return [without_nulls(value) for value in found] if isinstance(found, list) else found


def unknown_nulls(found: Any, path: str = "") -> list[str]:
    """Paths of null fields in snake case: the API has none such, so a client wrote them by mistake."""
    if isinstance(found, list):
        pairs = [(f"{path}[]", one) for one in found]
        return [name for place, one in pairs for name in unknown_nulls(one, place)]
    if not isinstance(found, dict):
        return []
    own = [f"{path}.{key}" for key, value in found.items() if value is None and "_" in key]
    return own + [name for key, value in found.items() for name in unknown_nulls(value, f"{path}.{key}")]


def settle(found: Object) -> None:
    """Write what depends on the object's own name and uid, which it has only now."""
    if found["kind"] != "Job":
        return
    meta, template = found["metadata"], found["spec"]["template"]
    own = {"batch.kubernetes.io/controller-uid": meta["uid"], "batch.kubernetes.io/job-name": meta["name"]}
    own |= {"controller-uid": meta["uid"], "job-name": meta["name"]}
    template.setdefault("metadata", {}).setdefault("labels", {}).update(own)
    found["spec"].setdefault("selector", {"matchLabels": {"batch.kubernetes.io/controller-uid": meta["uid"]}})


def _job(found: Object) -> None:
    spec = found["spec"]
    _job_spec(spec)
    found.setdefault("status", {})


def _job_spec(spec: Object) -> None:
    spec.setdefault("backoffLimit", 6)
    spec.setdefault("completionMode", "NonIndexed")
    spec.setdefault("suspend", False)
    spec.setdefault("parallelism", 1)
    spec.setdefault("completions", 1)
    _pod_spec(spec["template"]["spec"])
    policy = spec.get("podFailurePolicy")
    if policy and spec["template"]["spec"].get("restartPolicy") != "Never":
        raise Refusal(422, "Invalid", "spec.podFailurePolicy: only usable with restartPolicy Never")
    for rule in (policy or {}).get("rules", []):
        for condition in rule.get("onPodConditions") or []:
            condition.setdefault("status", "True")
    if spec["template"]["spec"].get("restartPolicy") not in ("Never", "OnFailure"):
        raise Refusal(422, "Invalid", 'spec.template.spec.restartPolicy: supported values: "Never", "OnFailure"')


def _cron_job(found: Object) -> None:
    spec = found["spec"]
    if len(spec["schedule"].split()) != 5 and not spec["schedule"].startswith("@"):
        raise Refusal(422, "Invalid", f"spec.schedule: Invalid value: {spec['schedule']!r}")
    spec.setdefault("concurrencyPolicy", "Allow")
    spec.setdefault("suspend", False)
    spec.setdefault("successfulJobsHistoryLimit", 3)
    spec.setdefault("failedJobsHistoryLimit", 1)
    _job_spec(spec["jobTemplate"]["spec"])
    found.setdefault("status", {})


def _pod(found: Object) -> None:
    _pod_spec(found["spec"])
    found.setdefault("status", {"phase": "Pending"})


def _pod_spec(spec: Object) -> None:
    spec.setdefault("restartPolicy", "Always")
    spec.setdefault("terminationGracePeriodSeconds", 30)
    spec.setdefault("serviceAccountName", "default")
    spec.setdefault("dnsPolicy", "ClusterFirst")


def _secret(found: Object) -> None:
    found.setdefault("type", "Opaque")
    plain = found.pop("stringData", None) or {}
    coded = {key: base64.b64encode(value.encode()).decode() for key, value in plain.items()}
    if coded or "data" in found:
        found["data"] = {**(found.get("data") or {}), **coded}


def _train_job(found: Object) -> None:
    found["spec"].setdefault("suspend", False)
    found["spec"].setdefault("managedBy", "trainer.kubeflow.org/trainjob-controller")
    reference = found["spec"]["runtimeRef"]
    reference.setdefault("apiGroup", "trainer.kubeflow.org")
    reference.setdefault("kind", "ClusterTrainingRuntime")


def _claim(found: Object) -> None:
    found.setdefault("status", {"phase": "Bound"})


def _namespace(found: Object) -> None:
    found.setdefault("status", {"phase": "Active"})


_FILLS = {
    "Job": _job,
    "CronJob": _cron_job,
    "Pod": _pod,
    "Secret": _secret,
    "TrainJob": _train_job,
    "PersistentVolumeClaim": _claim,
    "Namespace": _namespace,
}

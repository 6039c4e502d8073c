"""Names that point at nothing: selectors without pods, and secrets, volumes or accounts that nobody makes."""

from collections.abc import Iterator, Sequence
from typing import Any

from tests.k8s.policy import Finding
from tests.k8s.workloads import Workload, called, labels_of, selects, substitutes, workloads
from tests.support.kubectl import Manifest

# Made by hand or by the cluster, as docs/kubernetes.md says.
EXTERNAL_SECRETS: dict[str, set[str]] = {
    "proxykd-mlflow-database": {"uri", "password"},
    "proxykd-s3": {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"},
    "proxykd-teacher": set(),
}
EXTERNAL_SETTINGS = frozenset({"proxykd-database-ca"})
KUBEFLOW_SECRET = "proxykd-zenml"
"""Of stacks of kind kubeflow alone."""
BUILT_IN_PRIORITIES = {"system-cluster-critical", "system-node-critical"}


def dangling(objects: Sequence[Manifest]) -> list[Finding]:
    """Everything that an object names and that neither the objects nor the documented secrets have."""
    pods = list(workloads(objects))
    told = [*_selectors(objects, pods), *_bindings(objects), *_queues(objects), *_queued(objects)]
    for pod in pods:
        told += [(called(pod.owner), message) for message in _of_pod(objects, pod)]
    return [Finding("reference", *found) for found in told]


def _named(objects: Sequence[Manifest], kind: str) -> dict[str, Manifest]:
    return {found["metadata"]["name"]: found for found in objects if found["kind"] == kind}


def _selectors(objects: Sequence[Manifest], pods: list[Workload]) -> Iterator[tuple[str, str]]:
    services = [found for found in objects if found["kind"] == "Service"]
    for found in objects:
        spec = found.get("spec") or {}
        match found["kind"]:
            case "Service":
                chosen = [pod for pod in pods if selects({"matchLabels": spec["selector"]}, pod.labels)]
                if not chosen or any(pod.labels != chosen[0].labels for pod in chosen):
                    yield called(found), f"expected the pods of one owner, got {[called(pod.owner) for pod in chosen]}"
                yield from ((called(found), told) for told in _target_ports(spec, chosen))
            case "PodDisruptionBudget" | "Deployment" | "StatefulSet":
                if not any(selects(spec["selector"], pod.labels) for pod in pods):
                    yield called(found), "selects no pod"
            case "ServiceMonitor":
                chosen_services = [each for each in services if selects(spec["selector"], labels_of(each))]
                names = {port["name"] for each in chosen_services for port in each["spec"]["ports"]}
                if not chosen_services or any(endpoint["port"] not in names for endpoint in spec["endpoints"]):
                    yield called(found), "expected a service with its ports"
        if found["kind"] == "StatefulSet" and spec["serviceName"] not in _named(objects, "Service"):
            yield called(found), f"no service {spec['serviceName']}"


def _target_ports(spec: dict[str, Any], pods: list[Workload]) -> Iterator[str]:
    names = {port["name"] for pod in pods for each in pod.containers for port in each.get("ports") or []}
    for port in spec["ports"]:
        if port["targetPort"] not in names:
            yield f"no container has the port {port['targetPort']}"


def _bindings(objects: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    roles, accounts = _named(objects, "Role"), _named(objects, "ServiceAccount")
    for found in objects:
        if found["kind"] == "RoleBinding":
            if found["roleRef"]["name"] not in roles:
                yield called(found), f"no role {found['roleRef']['name']}"
            for subject in found["subjects"]:
                account = accounts.get(subject["name"], {"metadata": {}})
                if account["metadata"].get("namespace", "") != subject.get("namespace"):
                    yield called(found), f"no service account {subject.get('namespace')}/{subject['name']}"


def _queues(objects: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    flavors, queues = _named(objects, "ResourceFlavor"), _named(objects, "ClusterQueue")
    for found in objects:
        spec = found.get("spec") or {}
        if found["kind"] == "LocalQueue" and spec["clusterQueue"] not in queues:
            yield called(found), f"no ClusterQueue {spec['clusterQueue']}"
        for group in spec["resourceGroups"] if found["kind"] == "ClusterQueue" else ():
            for flavor in group["flavors"]:
                if flavor["name"] not in flavors:
                    yield called(found), f"no ResourceFlavor {flavor['name']}"
                if [each["name"] for each in flavor["resources"]] != group["coveredResources"]:
                    yield called(found), f"flavor {flavor['name']} has other resources than are covered"


def _queued(objects: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
    runtimes = _named(objects, "TrainingRuntime")
    for found in objects:
        labels = labels_of(found)
        for label, kind in (("queue-name", "LocalQueue"), ("priority-class", "WorkloadPriorityClass")):
            name = labels.get(f"kueue.x-k8s.io/{label}")
            if name and name not in _named(objects, kind):
                yield called(found), f"no {kind} {name}"
        if found["kind"] == "TrainJob" and found["spec"]["runtimeRef"]["name"] not in runtimes:
            yield called(found), f"no TrainingRuntime {found['spec']['runtimeRef']['name']}"


def _of_pod(objects: Sequence[Manifest], pod: Workload) -> Iterator[str]:
    spec = pod.spec
    if spec.get("serviceAccountName") not in _named(objects, "ServiceAccount"):
        yield f"no service account {spec.get('serviceAccountName')}"
    if spec.get("priorityClassName") not in _named(objects, "PriorityClass").keys() | BUILT_IN_PRIORITIES:
        yield f"no priority class {spec.get('priorityClassName')}"
    templates = {claim["metadata"]["name"] for claim in pod.owner["spec"].get("volumeClaimTemplates") or []}
    volumes = {volume["name"] for volume in spec.get("volumes") or []}
    for volume in spec.get("volumes") or []:
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        if claim and claim not in _named(objects, "PersistentVolumeClaim"):
            yield f"no PersistentVolumeClaim {claim}"
        settings = (volume.get("configMap") or {}).get("name")
        if settings and settings not in _named(objects, "ConfigMap").keys() | EXTERNAL_SETTINGS:
            yield f"no ConfigMap {settings}"
    for container in pod.containers:
        mounts = [mount["name"] for mount in container.get("volumeMounts") or []]
        yield from (f"no volume {name}" for name in mounts if name not in volumes | templates)
        yield from _of_environment(objects, container)


def _of_environment(objects: Sequence[Manifest], container: dict[str, Any]) -> Iterator[str]:
    settings, known = _named(objects, "ConfigMap"), {each["name"] for each in container.get("env") or []}
    for source in container.get("envFrom") or []:
        name = (source.get("configMapRef") or source.get("secretRef"))["name"]
        if "configMapRef" in source and name in settings:
            known |= settings[name]["data"].keys()
        elif name not in EXTERNAL_SECRETS:
            yield f"no ConfigMap or secret {name}"
    for variable in container.get("env") or []:
        reference = (variable.get("valueFrom") or {}).get("secretKeyRef")
        if (
            reference
            and not reference.get("optional")
            and reference["key"] not in EXTERNAL_SECRETS.get(reference["name"], set())
        ):
            yield f"no secret {reference['name']} with the key {reference['key']}"
    for text in container.get("args") or []:
        yield from (f"no variable {name}" for name in substitutes(text) - known)

"""Whether the namespace admits the pods that Kubeflow Pipelines makes.

A compiled pipeline can only say under which user a step's pod runs. Pod Security ``restricted`` wants more: no way to
more privileges, no capabilities, a seccomp profile. Kubeflow Pipelines writes these into pods from version 2.16 on
(kubeflow/pipelines, pull request 12782); for an older one an admission rule of the namespace has to.
"""

import re
from collections.abc import Iterator

from cluster.api import ClusterApi
from cluster.findings import Finding, missing, ok, unchecked
from cluster.kinds import NAMESPACES, PODS, Kind
from proxykd.exceptions import ClusterError, ClusterForbiddenError

DEPLOYMENTS = Kind("apps/v1", "Deployment", "deployments")
SERVER = "ml-pipeline"
"""The Deployment of Kubeflow Pipelines' API server."""
FIRST = (2, 16)
"""Minor version from which on pods meet ``restricted``."""
_USER = 10_001


def check_pipelines(api: ClusterApi, pipelines_namespace: str) -> Iterator[Finding]:
    """Pods of Kubeflow Pipelines meet what the namespace enforces: by its version, or by a trial that stores nothing.

    Args:
        api: Of the namespace where the pods run.
        pipelines_namespace: Where Kubeflow Pipelines itself runs.
    """
    what = f"Kubeflow Pipelines' pods in namespace {api.namespace}"
    remedy = "run Kubeflow Pipelines 2.16 or later, or add an admission rule: docs/kubeflow.md"
    try:
        labels = (api.find(NAMESPACES, api.namespace) or {}).get("metadata", {}).get("labels", {})
        if labels.get("pod-security.kubernetes.io/enforce") != "restricted":
            return
        version = _version(api, pipelines_namespace)
    except ClusterForbiddenError:
        yield unchecked(what, "this identity may not look at the version", remedy)
        return
    if version is not None and version >= FIRST:
        yield ok(what, f"version {version[0]}.{version[1]}")
        return
    found = "a version that its image does not tell" if version is None else f"version {version[0]}.{version[1]}"
    yield _tried(api, what, found, remedy)


def _version(api: ClusterApi, namespace: str) -> tuple[int, int] | None:
    server = api.find(DEPLOYMENTS, SERVER, namespace=namespace) or {}
    containers = server.get("spec", {}).get("template", {}).get("spec", {}).get("containers") or [{}]
    tag = re.search(r":v?(\d+)\.(\d+)", str(containers[0].get("image", "")).partition("@")[0])
    return None if tag is None else (int(tag[1]), int(tag[2]))


def _tried(api: ClusterApi, what: str, found: str, remedy: str) -> Finding:
    small = {"cpu": "10m", "memory": "16Mi"}
    container = {
        "name": "main",
        "image": "none",
        "resources": {"requests": small, "limits": small},
        "securityContext": {"runAsUser": _USER, "runAsGroup": _USER, "runAsNonRoot": True},
    }
    pod = {"metadata": {"name": "doctor"}, "spec": {"restartPolicy": "Never", "containers": [container]}}
    try:
        api.create(PODS, pod, is_trial=True)
    except ClusterError as error:
        if "violates PodSecurity" in str(error):
            return missing(what, f"{found}, whose pods Pod Security restricted refuses", remedy)
        return unchecked(what, found, remedy)
    return ok(what, f"{found}, but a rule of the namespace completes its pods")

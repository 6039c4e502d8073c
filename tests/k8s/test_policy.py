"""The rules of a security team: the overlays break none, and each rule catches its fault when an overlay is spoilt."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from cluster import manifest
from proxykd.config.launcher import LauncherSpec
from tests.k8s.conftest import OVERLAYS
from tests.k8s.policy import RULES, check
from tests.k8s.references import dangling
from tests.k8s.workloads import called, workloads
from tests.support.kubectl import Manifest

Overlays = dict[str, list[Manifest]]
Mutant = Callable[[list[Manifest]], None]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_overlays_break_no_rule(overlays: Overlays, overlay: str) -> None:
    assert check(overlays[overlay]) == []


def at(where: str, path: str, value: Any = None) -> Mutant:
    """A mutant that sets a field of an object, or removes it (None).

    ``+`` at the end of the path appends; ``~`` in a name is a slash.
    """

    def change(objects: list[Manifest]) -> None:
        (part,) = [found for found in objects if called(found) == where]
        *way, last = [name.replace("~", "/") for name in path.split("/")]
        for name in way:
            part = part[int(name)] if name.isdigit() else part.setdefault(name, {})
        key: Any = int(last) if last.isdigit() else last
        if last == "+":
            part.append(value)  # type: ignore[attr-defined]
        elif value is None:
            del part[key]
        else:
            part[key] = value

    return change


def without(where: str) -> Mutant:
    def change(objects: list[Manifest]) -> None:
        objects[:] = [found for found in objects if called(found) != where]

    return change


def with_object(kind: str, api_version: str, **fields: Any) -> Mutant:
    def change(objects: list[Manifest]) -> None:
        objects.append({"apiVersion": api_version, "kind": kind, "metadata": {"name": "added"}, **fields})

    return change


MLFLOW, MIGRATION = "Deployment/mlflow", "Job/mlflow-migration"
POD = "spec/template/spec"
MAIN = f"{POD}/containers/0"
SECURITY = f"{MAIN}/securityContext"
RBAC_GROUP = "rbac.authorization.k8s.io"
RBAC = f"{RBAC_GROUP}/v1"
TEACHER = "NetworkPolicy/internet"
TO = "spec/egress/0/to"
IN_FROM = {"ipBlock": {"cidr": "8.8.8.0/24"}}


def allows(resource: str, verb: str, group: str = "") -> Mutant:
    rule = {"apiGroups": [group], "resources": [resource], "verbs": [verb]}
    return at("Role/proxykd-orchestrator", "rules/+", rule)


def binds(subject: dict[str, str]) -> Mutant:
    return at("RoleBinding/proxykd-submitter", "subjects/+", subject)


def to(cidr: str) -> dict[str, Any]:
    return {"to": [{"ipBlock": {"cidr": cidr}}], "ports": [{"protocol": "TCP", "port": 443}]}


def weights(objects: list[Manifest]) -> None:
    (pod,) = [pod for pod in workloads(objects) if pod.owner["kind"] == "TrainingRuntime"]
    for each in (*pod.containers[0]["volumeMounts"], *pod.spec["volumes"]):
        (each.get("persistentVolumeClaim") or each).pop("readOnly", None)


MUTANTS: list[tuple[str, str, Mutant]] = [
    ("root user", "no word about it", at(MLFLOW, f"{POD}/securityContext/runAsNonRoot")),
    ("root user", "pod as 0", at(MLFLOW, f"{POD}/securityContext/runAsUser", 0)),
    ("root user", "container as 0", at(MIGRATION, f"{SECURITY}/runAsUser", 0)),
    ("root user", "group 0", at(MIGRATION, f"{POD}/securityContext/runAsGroup", 0)),
    ("root user", "container says no", at(MIGRATION, f"{SECURITY}/runAsNonRoot", False)),
    ("privilege", "may escalate", at(MLFLOW, f"{SECURITY}/allowPrivilegeEscalation", True)),
    ("privilege", "may escalate by default", at(MLFLOW, f"{SECURITY}/allowPrivilegeEscalation")),
    ("privilege", "privileged", at(MLFLOW, f"{SECURITY}/privileged", True)),
    ("privilege", "keeps capabilities", at(MLFLOW, f"{SECURITY}/capabilities")),
    ("privilege", "sees all of /proc", at(MLFLOW, f"{SECURITY}/procMount", "Unmasked")),
    ("privilege", "adds one", at(MLFLOW, f"{SECURITY}/capabilities/add", ["SYS_ADMIN"])),
    ("privilege", "no seccomp", at(MLFLOW, f"{POD}/securityContext/seccompProfile")),
    ("privilege", "unconfined", at(MLFLOW, f"{SECURITY}/seccompProfile", {"type": "Unconfined"})),
    ("writable root", "by default", at(MLFLOW, f"{SECURITY}/readOnlyRootFilesystem")),
    ("writable root", "stated", at(MIGRATION, f"{SECURITY}/readOnlyRootFilesystem", False)),
    ("resources", "none", at(MLFLOW, f"{MAIN}/resources")),
    ("resources", "no limit", at(MLFLOW, f"{MAIN}/resources/limits")),
    ("resources", "no processors", at(MLFLOW, f"{MAIN}/resources/requests/cpu")),
    ("image", "latest", at(MLFLOW, f"{MAIN}/image", "ghcr.io/proxykd/proxykd:latest")),
    ("image", "a tag", at(MLFLOW, f"{MAIN}/image", "ghcr.io/proxykd/proxykd:1.2.3")),
    ("image", "half a digest", at(MLFLOW, f"{MAIN}/image", "ghcr.io/proxykd/proxykd@sha256:0123")),
    ("writable weights", "of a training", weights),
    ("probes", "not ready", at(MLFLOW, f"{MAIN}/readinessProbe")),
    ("probes", "not alive", at("StatefulSet/postgres", f"{MAIN}/livenessProbe")),
    ("secret in plain sight", "by name", at(MLFLOW, f"{MAIN}/env/+", {"name": "OPENAI_API_KEY", "value": "x"})),
    (
        "secret in plain sight",
        "in an address",
        at(MLFLOW, f"{MAIN}/env/+", {"name": "WHERE", "value": "postgresql://mlflow:pass@postgres/mlflow"}),
    ),
    (
        "secret in plain sight",
        "in an argument",
        at(MIGRATION, f"{MAIN}/args/+", "postgresql://mlflow:pass@postgres/mlflow"),
    ),
    (
        "secret in plain sight",
        "in a variable that becomes an argument",
        at(MIGRATION, f"{MAIN}/args/+", "$(MLFLOW_BACKEND_STORE_URI)"),
    ),
    (
        "secret in settings",
        "a password",
        with_object("ConfigMap", "v1", data={"POSTGRES_PASSWORD": "x"}),
    ),
    ("host", "network", at(MLFLOW, f"{POD}/hostNetwork", True)),
    ("host", "processes", at(MLFLOW, f"{POD}/hostPID", True)),
    ("host", "memory", at(MLFLOW, f"{POD}/hostIPC", True)),
    ("host", "files", at(MLFLOW, f"{POD}/volumes/+", {"name": "node", "hostPath": {"path": "/"}})),
    ("host", "port", at(MLFLOW, f"{MAIN}/ports/0/hostPort", 5000)),
    ("role label", "unknown", at(MIGRATION, "spec/template/metadata/labels/proxykd.dev~role", "admin")),
    ("role label", "none", at(MIGRATION, "spec/template/metadata/labels/proxykd.dev~role")),
    ("token", "account of nobody", at(MLFLOW, f"{POD}/serviceAccountName", "somebody")),
    ("token", "account of the namespace", at(MLFLOW, f"{POD}/serviceAccountName")),
    ("token", "mounted", at(MLFLOW, f"{POD}/automountServiceAccountToken", True)),
    ("token", "mounted by the account", at("ServiceAccount/proxykd-step", "automountServiceAccountToken")),
    ("wildcards", "verbs", at("Role/proxykd-orchestrator", "rules/0/verbs", ["*"])),
    ("wildcards", "resources", at("Role/proxykd-orchestrator", "rules/0/resources", ["*"])),
    ("wildcards", "groups", at("Role/proxykd-orchestrator", "rules/0/apiGroups", ["*"])),
    ("wildcards", "hands itself more", at("Role/proxykd-orchestrator", "rules/0/verbs/+", "escalate")),
    ("wildcards", "every subresource", allows("*/exec", "create")),
    ("wildcards", "a shell in a pod", allows("pods/exec", "create")),
    ("wildcards", "a shell in a pod, over a WebSocket", allows("pods/exec", "get")),
    ("wildcards", "a debugger in a pod", allows("pods/ephemeralcontainers", "patch")),
    ("wildcards", "a token of any account", allows("serviceaccounts/token", "create")),
    ("wildcards", "binds a role", allows("rolebindings", "create", RBAC_GROUP)),
    ("wildcards", "changes a role", allows("roles", "patch", RBAC_GROUP)),
    ("wildcards", "reads secrets", at("Role/proxykd-submitter", "rules/2/verbs/+", "list")),
    (
        "cluster-wide",
        "administrator",
        at("RoleBinding/proxykd-orchestrator", "roleRef", {"kind": "ClusterRole", "name": "cluster-admin"}),
    ),
    ("cluster-wide", "a role of the cluster", with_object("ClusterRole", RBAC, rules=[])),
    (
        "cluster-wide",
        "everybody",
        binds({"kind": "Group", "name": "system:authenticated"}),
    ),
    ("cluster-wide", "every account", binds({"kind": "Group", "name": "system:serviceaccounts"})),
    ("cluster-wide", "somebody", binds({"kind": "User", "name": "somebody"})),
    ("cluster-wide", "the default account", binds({"kind": "ServiceAccount", "name": "default"})),
    (
        "cluster-wide",
        "an account of that name elsewhere",
        binds({"kind": "ServiceAccount", "name": "proxykd-submitter", "namespace": "default"}),
    ),
    ("default deny", "gone", without("NetworkPolicy/deny")),
    ("default deny", "one way only", at("NetworkPolicy/deny", "spec/policyTypes", ["Ingress"])),
    ("default deny", "not for all", at("NetworkPolicy/deny", "spec/podSelector", {"matchLabels": {"a": "b"}})),
    (
        "default deny",
        "lets all out",
        at(
            "NetworkPolicy/deny",
            "spec/egress",
            [{"ports": [{"port": 53}], "to": [{"podSelector": {"matchLabels": {"a": "b"}}}]}],
        ),
    ),
    ("open network", "out for everybody", at("NetworkPolicy/train", "spec/egress/+", {})),
    ("open network", "in for everybody", at("NetworkPolicy/mlflow", "spec/ingress/0/from")),
    (
        "open network",
        "from every namespace",
        at("NetworkPolicy/mlflow", "spec/ingress/0/from/+", {"namespaceSelector": {}}),
    ),
    ("open network", "another role", at(TEACHER, "spec/podSelector/matchExpressions/0/values/+", "train")),
    ("open network", "everybody", at(TEACHER, "spec/podSelector", {})),
    ("open network", "another port", at(TEACHER, "spec/egress/0/ports/0/port", 80)),
    ("open network", "many ports", at(TEACHER, "spec/egress/0/ports/0/endPort", 9999)),
    ("open network", "every port", at(TEACHER, "spec/egress/0/ports")),
    ("open network", "metadata", at(TEACHER, f"{TO}/0/ipBlock/except/5")),
    ("open network", "all of IPv6", at(TEACHER, f"{TO}/1/ipBlock", {"cidr": "::/0"})),
    ("open network", "trainers to a public block", at("NetworkPolicy/train", "spec/egress/+", to("8.8.0.0/16"))),
    ("open network", "trainers to one public address", at("NetworkPolicy/train", "spec/egress/+", to("8.8.8.8/32"))),
    ("open network", "a wide service", at("NetworkPolicy/object-storage", f"{TO}/+", to("8.8.0.0/16")["to"][0])),
    ("open network", "in from a public block", at("NetworkPolicy/mlflow", "spec/ingress/0/from/+", IN_FROM)),
    ("open network", "a wide private block", at("NetworkPolicy/train", "spec/egress/+", to("10.0.0.0/8"))),
    ("disruption", "no budget", without("PodDisruptionBudget/mlflow")),
    ("disruption", "no way past", at("PodDisruptionBudget/mlflow", "spec/minAvailable", 2)),
    (
        "pod security",
        "baseline",
        at("Namespace/proxykd-staging", "metadata/labels/pod-security.kubernetes.io~enforce", "baseline"),
    ),
    (
        "pod security",
        "of the day",
        at("Namespace/proxykd-staging", "metadata/labels/pod-security.kubernetes.io~enforce-version", "latest"),
    ),
    ("unlimited", "no quota", without("ResourceQuota/proxykd")),
    ("unlimited", "a quota for secrets alone", at("ResourceQuota/proxykd", "spec/hard", {"count/secrets": "9"})),
    ("unlimited", "no limits", without("LimitRange/proxykd")),
    ("unlimited", "no defaults", at("LimitRange/proxykd", "spec/limits/0/defaultRequest")),
    ("exposed", "on every node", at("Service/mlflow", "spec/type", "NodePort")),
    ("exposed", "to the world", at("Service/mlflow", "spec/type", "LoadBalancer")),
    ("exposed", "by an ingress", with_object("Ingress", "networking.k8s.io/v1", spec={})),
]


TRAINER = "spec/trainer"
PATCH = "spec/runtimePatches/0/trainingRuntimeSpec/template/spec/replicatedJobs/0/template/spec/template/spec"
TRAIN_JOB_MUTANTS: list[tuple[str, Mutant]] = [
    ("another image tomorrow", at("TrainJob/made", f"{TRAINER}/image", "ghcr.io/proxykd/proxykd:latest")),
    ("secret", at("TrainJob/made", f"{TRAINER}/env/+", {"name": "HF_TOKEN", "value": "x"})),
    ("runtime of the cluster", at("TrainJob/made", "spec/runtimeRef/kind", "ClusterTrainingRuntime")),
    ("host network", at("TrainJob/made", f"{PATCH}/hostNetwork", True)),
    ("as root", at("TrainJob/made", f"{PATCH}/securityContext", {"runAsUser": 0})),
    ("as another account", at("TrainJob/made", f"{PATCH}/serviceAccountName", "proxykd-trainer")),
    ("another file system", at("TrainJob/made", f"{PATCH}/volumes", [{"name": "node", "hostPath": {"path": "/"}}])),
    (
        "a folder for the claim",
        at("TrainJob/made", f"{PATCH}/volumes", [{"name": "state", "emptyDir": {"sizeLimit": "1"}}]),
    ),
    ("another kind of folder", at("TrainJob/made", f"{PATCH}/volumes/0/emptyDir", {"sizeLimit": "1", "medium": ""})),
    ("a claim for a folder", at("TrainJob/made", f"{PATCH}/volumes/0/persistentVolumeClaim", {"claimName": "x"})),
]


@pytest.fixture
def train_job() -> Manifest:
    """As the launcher makes it."""
    toleration = {"key": "nvidia.com/gpu", "operator": "Exists"}
    values = {"kind": "trainjob", "nodes": 2, "gpus": 8, "queue": "proxykd-gpu", "priority": "proxykd-high"}
    values |= {"shm": "16Gi", "scratch": "40Gi"}
    spec = LauncherSpec.model_validate({**values, "tolerations": [toleration], "node_selectors": {"a": "b"}})
    image = f"ghcr.io/proxykd/proxykd@sha256:{'0' * 64}"
    environ = {"OMP_NUM_THREADS": "4", "AWS_SECRET_ACCESS_KEY": "secret"}
    made = manifest.train_job("made", spec, arguments=["m", "f"], image=image, work="w", owner={}, environ=environ)
    return {**made, "metadata": {**made["metadata"], "namespace": "proxykd-staging"}}


def test_a_training_as_it_is_launched_breaks_no_rule(overlays: Overlays, train_job: Manifest) -> None:
    objects = [*overlays["staging"], train_job]
    assert check(objects) == []
    assert dangling(objects) == []
    assert {finding.message for finding in dangling([*overlays["local"], train_job])} == {
        "no LocalQueue proxykd-gpu",
        "no WorkloadPriorityClass proxykd-high",
        "no TrainingRuntime proxykd-train",
    }


@pytest.mark.parametrize(("fault", "mutant"), TRAIN_JOB_MUTANTS, ids=[fault for fault, _ in TRAIN_JOB_MUTANTS])
def test_a_training_that_departs_from_its_runtime_is_found(
    overlays: Overlays, train_job: Manifest, fault: str, mutant: Mutant
) -> None:
    objects = [*overlays["staging"], copy.deepcopy(train_job)]
    mutant(objects)
    assert {finding.rule for finding in check(objects)} == {"train job"}


@pytest.mark.parametrize(("rule", "fault", "mutant"), MUTANTS, ids=[f"{rule}, {fault}" for rule, fault, _ in MUTANTS])
def test_each_rule_catches_its_fault(overlays: Overlays, rule: str, fault: str, mutant: Mutant) -> None:
    objects = copy.deepcopy(overlays["staging"])
    mutant(objects)
    assert {finding.rule for finding in check(objects)} == {rule}


@pytest.mark.parametrize("policy", ["api-server", "object-storage"])
def test_a_services_few_addresses_may_be_public(overlays: Overlays, policy: str) -> None:
    objects = copy.deepcopy(overlays["staging"])
    at(f"NetworkPolicy/{policy}", f"{TO}/0/ipBlock/cidr", "52.95.110.0/24")(objects)
    assert check(objects) == []


def test_no_rule_goes_without_a_fault() -> None:
    assert {rule for rule, _, _ in MUTANTS} | {"train job"} == RULES.keys()

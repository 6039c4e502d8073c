"""What a security team would send back: one function a rule, over whatever objects are to be applied together.

``check([*overlay, *captured])`` also holds for objects that were captured from a run: give it the overlay's beside
them, so that service accounts, bindings and network policies are known.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from ipaddress import ip_network
from typing import Any, NamedTuple

from tests.k8s.rbac import bound, rules_of
from tests.k8s.workloads import ROLE, Workload, called, labels_of, selects, substitutes, workloads
from tests.support.kubectl import Manifest

# Of pods, in the label proxykd.dev/role.
_OURS = ("orchestrator", "step", "teacher-query", "launcher", "train", "fetch")
ROLES = frozenset((*_OURS, "maintenance", "mlflow", "migration", "postgres", "object-store"))
OUTSIDE = ("teacher-query", "fetch")  # the roles that may leave the cluster
# The policies of k8s/overlays/*/network.yaml that name addresses; those of one service are few, public or not.
SERVICES, SERVICE_ADDRESSES = ("api-server", "object-storage", "database"), 256
WEIGHTS = "proxykd-models"
# What it may not reach there, though these are addresses like others. The last three carry IPv4 addresses inside.
INSIDE_4 = ("10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16", "172.16.0.0/12")
INSIDE_6 = ("::1/128", "fc00::/7", "fe80::/10", "::ffff:0:0/96", "64:ff9b::/96", "2002::/16", "2001::/32")
INSIDE = [ip_network(block) for block in (*INSIDE_4, "192.0.0.0/24", "192.168.0.0/16", *INSIDE_6)]
# What a training's own patches may say of its pods.
PATCHABLE = {"terminationGracePeriodSeconds", "nodeSelector", "tolerations", "affinity"}
SECRET_NAME = re.compile(r"(^|_)(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)($|_)|(STORE|DATABASE)_URI$", re.I)
SECRET_VALUE = re.compile(r"://[^/@\s:]+:[^/@\s$]+@|\b(sk-|AKIA|ghp_|hf_)[A-Za-z0-9]{8,}")
DANGEROUS_VERBS = frozenset({"*", "escalate", "bind", "impersonate"})
# Into a pod, whatever the verb: a shell needs no more than get, over a WebSocket.
INTO_PODS = frozenset({"exec", "attach", "portforward", "proxy", "ephemeralcontainers"})
RIGHTS = frozenset({"roles", "rolebindings", "clusterroles", "clusterrolebindings", "serviceaccounts/token"})
READING = frozenset({"get", "list", "watch"})


class Finding(NamedTuple):
    """A rule that an object breaks."""

    rule: str
    where: str
    message: str


Found = Iterator[tuple[str, str]]
Rule = Callable[[Sequence[Manifest]], Found]


def check(objects: Sequence[Manifest]) -> list[Finding]:
    """Every finding, rule by rule; none for objects that may be applied."""
    return [Finding(name, *told) for name, rule in RULES.items() for told in rule(objects)]


def space_of(found: Manifest) -> str:
    """The namespace that an object lies in."""
    return str(found["metadata"].get("namespace", "default"))


def _each_pod(told: Callable[[Workload], Iterator[str]]) -> Rule:
    def rule(objects: Sequence[Manifest]) -> Found:
        return ((called(pod.owner), message) for pod in workloads(objects) for message in told(pod))

    return rule


def _each_container(told: Callable[[dict[str, Any], Workload], Iterator[str]]) -> Rule:
    def messages(pod: Workload) -> Iterator[str]:
        for container in pod.containers:
            yield from (f"container {container['name']}: {message}" for message in told(container, pod))

    return _each_pod(messages)


def _security(container: dict[str, Any], pod: Workload) -> dict[str, Any]:
    """What holds for a container: its own settings before its pod's."""
    own = {key: value for key, value in (container.get("securityContext") or {}).items() if value is not None}
    return {**(pod.spec.get("securityContext") or {}), **own}


def root_user(container: dict[str, Any], pod: Workload) -> Iterator[str]:
    """Runs, or may run, as root."""
    security = _security(container, pod)
    if security.get("runAsNonRoot") is not True or security.get("runAsUser") == 0 or security.get("runAsGroup") == 0:
        yield "expected runAsNonRoot and neither user nor group 0"


def privilege(container: dict[str, Any], pod: Workload) -> Iterator[str]:
    """May become more than it is."""
    security = _security(container, pod)
    if security.get("allowPrivilegeEscalation") is not False or security.get("privileged"):
        yield "expected allowPrivilegeEscalation: false and not privileged"
    if security.get("procMount", "Default") != "Default":
        yield f"expected no procMount, got {security['procMount']}"
    capabilities = security.get("capabilities") or {}
    if capabilities.get("drop") != ["ALL"] or capabilities.get("add"):
        yield "expected capabilities dropped: [ALL], and none added"
    if (security.get("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "expected a seccomp profile"


def writable_root(container: dict[str, Any], pod: Workload) -> Iterator[str]:
    """Can change its own programs."""
    if _security(container, pod).get("readOnlyRootFilesystem") is not True:
        yield "expected readOnlyRootFilesystem: true"


def resources(container: dict[str, Any], pod: Workload) -> Iterator[str]:
    """Asks for nothing, or takes what it can."""
    asked = container.get("resources") or {}
    requests, limits = asked.get("requests") or {}, asked.get("limits") or {}
    if missing := {"cpu", "memory"} - requests.keys():
        yield f"expected requests of {' and '.join(sorted(missing))}"
    if "memory" not in limits:
        yield "expected a limit of memory"


def image(container: dict[str, Any], pod: Workload) -> Iterator[str]:
    """Another image tomorrow under the same name."""
    if not re.fullmatch(r"[a-z0-9.:/_-]+@sha256:[0-9a-f]{64}", container.get("image") or ""):
        yield f"expected an image by digest, got {container.get('image')}"


def writable_weights(container: dict[str, Any], pod: Workload) -> Iterator[str]:
    """Can change the weights that every other run reads."""
    claims = {each["name"]: (each.get("persistentVolumeClaim") or {}) for each in pod.spec.get("volumes") or []}
    for mount in container.get("volumeMounts") or []:
        claim = claims.get(mount["name"], {})
        is_closed = mount.get("readOnly") or claim.get("readOnly")
        if claim.get("claimName") == WEIGHTS and not is_closed and pod.labels.get(ROLE) != "fetch":
            yield f"expected {WEIGHTS} to be mounted readOnly; only the Job that fetches weights writes there"


def probes(container: dict[str, Any], pod: Workload) -> Iterator[str]:
    """A server that nobody would miss."""
    if pod.lives_long and container in pod.spec["containers"]:
        for name in ("readinessProbe", "livenessProbe"):
            if not container.get(name):
                yield f"expected a {name}"


def plain_secret(container: dict[str, Any], pod: Workload) -> Iterator[str]:
    """A secret that everybody reads who may read pods."""
    for variable in container.get("env") or []:
        value = variable.get("value") or ""
        if value.lower() in ("true", "false"):  # a switch
            continue
        if value and (SECRET_NAME.search(variable["name"]) or SECRET_VALUE.search(value)):
            yield f"variable {variable['name']} holds a value; refer to a secret"
    secret = {one["name"] for one in container.get("env") or [] if "secretKeyRef" in (one.get("valueFrom") or {})}
    for text in [*(container.get("command") or []), *(container.get("args") or [])]:
        if SECRET_VALUE.search(text):
            yield "a secret stands in the command"
        for name in sorted(substitutes(text) & secret):
            yield f"the command gets the secret of {name}, which whoever is on the node can read"


def plain_settings(objects: Sequence[Manifest]) -> Found:
    """A secret in a ConfigMap."""
    for found in objects:
        for name, value in (found.get("data") or {}).items() if found["kind"] == "ConfigMap" else ():
            if SECRET_NAME.search(name) or SECRET_VALUE.search(value):
                yield called(found), f"{name} holds a secret; refer to one"


def host(pod: Workload) -> Iterator[str]:
    """Reaches into its node."""
    for name in ("hostNetwork", "hostPID", "hostIPC"):
        if pod.spec.get(name):
            yield f"expected no {name}"
    for volume in pod.spec.get("volumes") or []:
        if volume.get("hostPath"):
            yield f"volume {volume['name']}: expected no hostPath"
    for container in pod.containers:
        if any(port.get("hostPort") for port in container.get("ports") or []):
            yield f"container {container['name']}: expected no hostPort"


def role_label(pod: Workload) -> Iterator[str]:
    """A pod that no network policy knows."""
    if pod.labels.get(ROLE) not in ROLES:
        yield f"expected the label {ROLE} with one of {', '.join(sorted(ROLES))}, got {pod.labels.get(ROLE)}"


def token(objects: Sequence[Manifest]) -> Found:
    """Carries a token for the API server that it has no use for, or acts as whoever the namespace's default is."""
    accounts = {found["metadata"]["name"]: found for found in objects if found["kind"] == "ServiceAccount"}
    for name, account in accounts.items():
        if account.get("automountServiceAccountToken") is not False and not bound(objects, name):
            yield called(account), "expected automountServiceAccountToken: false, since no role is bound to it"
    for pod in workloads(objects):
        name = pod.spec.get("serviceAccountName") or "default"
        if name not in accounts:
            yield called(pod.owner), f"expected one of the service accounts {', '.join(sorted(accounts))}, got {name}"
        elif pod.spec.get("automountServiceAccountToken") and not bound(objects, name):
            yield called(pod.owner), f"mounts a token of {name}, which no role is bound to"


def wildcards(objects: Sequence[Manifest]) -> Found:
    """A role that grows with the cluster, or hands itself more."""
    for found, rule in rules_of(objects):
        for part in ("apiGroups", "resources", "verbs"):
            for name in rule.get(part) or []:
                if "*" in name:
                    yield called(found), f"expected {part} by name, got {name}"
        if dangerous := DANGEROUS_VERBS & set(rule.get("verbs") or []) - {"*"}:
            yield called(found), f"expected no verb {', '.join(sorted(dangerous))}"
        for resource in rule.get("resources") or []:
            verbs = set(rule.get("verbs") or [])
            if resource == "secrets" and READING & verbs:
                yield called(found), "expected nobody to read the secrets of the namespace"
            if resource.partition("/")[2] in INTO_PODS or (resource in RIGHTS and verbs - READING):
                yield called(found), f"expected nobody to {' or '.join(sorted(verbs))} {resource}"


def cluster_wide(objects: Sequence[Manifest]) -> Found:
    """Rights beyond the namespace, roles that others define, or for anybody but service accounts of ours."""
    accounts = {(space_of(found), found["metadata"]["name"]) for found in objects if found["kind"] == "ServiceAccount"}
    for found in objects:
        if found["kind"] in ("ClusterRole", "ClusterRoleBinding"):
            yield called(found), "expected roles of the namespace alone"
        elif found["kind"] == "RoleBinding":
            if found["roleRef"]["kind"] != "Role":
                yield called(found), f"expected a Role, got {found['roleRef']['kind']} {found['roleRef']['name']}"
            for subject in found.get("subjects") or []:
                named = (subject.get("namespace", space_of(found)), subject["name"])
                if subject["kind"] != "ServiceAccount" or named not in accounts:
                    yield called(found), f"expected a service account of ours, got {subject['kind']} {subject['name']}"


def train_job(objects: Sequence[Manifest]) -> Found:
    """A training that departs from its runtime in more than place and size; the runtime is held to the other rules."""
    for found in objects:
        if found["kind"] == "TrainJob":
            pod = Workload(found, {}, {})
            trainer = {"name": "trainer", **(found["spec"].get("trainer") or {})}
            told = [*image(trainer, pod), *plain_secret(trainer, pod)]
            if found["spec"]["runtimeRef"].get("kind") != "TrainingRuntime":
                told.append("expected a TrainingRuntime of the namespace")
            for patch in found["spec"].get("runtimePatches") or []:
                told += [f"patches {name}" for name in sorted(_patched(patch["trainingRuntimeSpec"]) - PATCHABLE)]
            yield from ((called(found), message) for message in told)


def _patched(part: Any) -> set[str]:
    """Names of the fields of pods that a patch of a runtime sets."""
    if isinstance(part, list):
        return {name for each in part for name in _patched(each)}
    if not isinstance(part, dict):
        return set()
    pod = part.get("template", {}).get("spec", {}) if "replicatedJobs" not in part else {}
    if "template" in part and "replicatedJobs" not in pod and "template" not in pod:
        return {name for name in pod if name != "volumes" or not all(map(_is_sized, pod[name]))}
    return {name for each in part.values() for name in _patched(each)}


def _is_sized(volume: dict[str, Any]) -> bool:
    """Whether a patch gives one of the runtime's folders a size, and does nothing else to it."""
    return (
        volume["name"] in ("shm", "tmp", "home")
        and volume.get("emptyDir", {}).keys() == {"sizeLimit"}
        and len(volume) == 2
    )


def default_deny(objects: Sequence[Manifest]) -> Found:
    """A namespace in which pods speak to whomever they like."""
    spaces = [found["metadata"]["name"] for found in objects if found["kind"] == "Namespace"]
    for space in spaces:
        if not any(_denies(found) for found in objects if _is_policy(found, space)):
            yield f"Namespace/{space}", "expected a NetworkPolicy that selects all pods and allows nothing, both ways"


def _is_policy(found: Manifest, space: str) -> bool:
    return found["kind"] == "NetworkPolicy" and found["metadata"].get("namespace", space) == space


def _denies(policy: Manifest) -> bool:
    spec = policy["spec"]
    silent = not spec.get("ingress") and not spec.get("egress")
    return spec["podSelector"] == {} and set(spec["policyTypes"]) == {"Ingress", "Egress"} and silent


def open_network(objects: Sequence[Manifest]) -> Found:
    """A way in or out that names nobody."""
    for found in objects:
        if found["kind"] == "NetworkPolicy":
            for direction, peers in (("egress", "to"), ("ingress", "from")):
                for rule in found["spec"].get(direction) or []:
                    yield from ((called(found), told) for told in _open_rule(found, direction, rule, peers))


def _open_rule(policy: Manifest, direction: str, rule: dict[str, Any], peers: str) -> Iterator[str]:
    if not rule.get(peers):
        yield f"{direction} for everybody"
    for peer in rule.get(peers) or []:
        if peer.get("namespaceSelector") == {} or peer.get("podSelector") == {}:
            yield f"{direction} for every pod"
        block = peer.get("ipBlock")
        if block and _is_open(policy, direction, block["cidr"]):
            if direction == "ingress" or not _may_leave(policy["spec"]["podSelector"]):
                yield f"{direction} for {block['cidr']}; only {' and '.join(OUTSIDE)} may leave"
            elif [port.get("port") for port in rule.get("ports") or []] != [443] or "endPort" in rule["ports"][0]:
                yield "expected port 443 alone"
            elif reached := _inside(block):
                yield f"reaches {reached}, which is no part of the internet"


def _may_leave(selector: dict[str, Any]) -> bool:
    rules = selector.get("matchExpressions") or []
    return any(each["key"] == ROLE and each["operator"] == "In" and {*each["values"]} <= {*OUTSIDE} for each in rules)


def _is_open(policy: Manifest, direction: str, cidr: str) -> bool:
    """Whether a block is of more than the cluster's own networks: wide, or public and not of a service."""
    network = ip_network(cidr)
    is_service = direction == "egress" and policy["metadata"]["name"] in SERVICES
    if network.is_global:
        return not is_service or network.num_addresses > SERVICE_ADDRESSES
    return network.prefixlen < (16 if network.version == 4 else 48)


def _inside(block: dict[str, Any]) -> str:
    whole, left = ip_network(block["cidr"]), [ip_network(cidr) for cidr in block.get("except") or []]
    for network in INSIDE:
        same = [other for other in left if other.version == network.version]
        touched = network.version == whole.version and network.overlaps(whole)
        if touched and not any(network.subnet_of(other) for other in same):  # type: ignore[arg-type]
            return str(network)
    return ""


def disruption(objects: Sequence[Manifest]) -> Found:
    """Replicas that a drain may take all at once, or one that no drain gets past."""
    budgets = [found for found in objects if found["kind"] == "PodDisruptionBudget"]
    for pod in workloads(objects):
        if pod.lives_long:
            own = [found for found in budgets if selects(found["spec"]["selector"], pod.labels)]
            if pod.replicas > 1 and not own:
                yield called(pod.owner), "expected a PodDisruptionBudget for its replicas"
            for found in own:
                if found["spec"].get("minAvailable", 0) >= pod.replicas or found["spec"].get("maxUnavailable") == 0:
                    yield called(found), "expected room for one pod to go, or nodes are never drained"


def pod_security(objects: Sequence[Manifest]) -> Found:
    """A namespace that admits what these rules do not see."""
    for found in objects:
        if found["kind"] == "Namespace":
            labels, prefix = labels_of(found), "pod-security.kubernetes.io/enforce"
            if labels.get(prefix) != "restricted" or not labels.get(f"{prefix}-version", "").startswith("v1."):
                yield called(found), "expected Pod Security to enforce restricted, of a version"


def unlimited(objects: Sequence[Manifest]) -> Found:
    """A namespace that may take the whole cluster, or whose pods ask for nothing by default."""
    for space in [found["metadata"]["name"] for found in objects if found["kind"] == "Namespace"]:
        own = [found["spec"] for found in objects if "spec" in found and space_of(found) == space]
        if not any({"requests.cpu", "requests.memory", "pods"} <= spec.get("hard", {}).keys() for spec in own):
            yield f"Namespace/{space}", "expected a ResourceQuota for processors, memory and pods"
        limits = [each for spec in own for each in spec.get("limits", []) if each.get("type") == "Container"]
        if not any({"cpu", "memory"} <= each.get("defaultRequest", {}).keys() for each in limits):
            yield f"Namespace/{space}", "expected a LimitRange with what containers request by default"


def exposed(objects: Sequence[Manifest]) -> Found:
    """A service that the world can reach."""
    for found in objects:
        spec = found.get("spec") or {}
        published = spec.get("type") in ("NodePort", "LoadBalancer") or spec.get("externalIPs")
        if found["kind"] == "Ingress" or (found["kind"] == "Service" and published):
            yield called(found), "expected a service of the cluster alone"


RULES: dict[str, Rule] = {
    "root user": _each_container(root_user),
    "privilege": _each_container(privilege),
    "writable root": _each_container(writable_root),
    "resources": _each_container(resources),
    "image": _each_container(image),
    "writable weights": _each_container(writable_weights),
    "probes": _each_container(probes),
    "secret in plain sight": _each_container(plain_secret),
    "secret in settings": plain_settings,
    "host": _each_pod(host),
    "role label": _each_pod(role_label),
    "token": token,
    "wildcards": wildcards,
    "cluster-wide": cluster_wide,
    "train job": train_job,
    "default deny": default_deny,
    "open network": open_network,
    "disruption": disruption,
    "pod security": pod_security,
    "unlimited": unlimited,
    "exposed": exposed,
}

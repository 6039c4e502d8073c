"""What a run needs in its namespace before anything is submitted: permissions, accounts, secrets, volumes, extensions.

Values of secrets are never read into a finding: only the names of their keys.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from cluster.api import ClusterApi
from cluster.findings import Finding, missing, ok, unchecked
from cluster.kinds import (
    CLAIMS,
    CRON_JOBS,
    EVENTS,
    JOBS,
    LOCAL_QUEUES,
    NAMESPACES,
    PODS,
    SECRETS,
    SERVICE_ACCOUNTS,
    STORAGE_CLASSES,
    TRAIN_JOBS,
    TRAINING_RUNTIMES,
    Kind,
)
from proxykd.exceptions import ClusterConflictError, ClusterError, ClusterForbiddenError, ClusterMissingError

PRIORITIES = Kind("scheduling.k8s.io/v1", "PriorityClass", "priorityclasses", is_namespaced=False)
JOB_SETS = Kind("jobset.x-k8s.io/v1alpha2", "JobSet", "jobsets")
OLDEST, NEWEST = (1, 33), (1, 37)
"""Minor versions of Kubernetes: the first and the last by whose schemas the manifests are checked."""

PULL_KEYS = {"kubernetes.io/dockerconfigjson": ".dockerconfigjson", "kubernetes.io/dockercfg": ".dockercfg"}
"""Type of a secret with which images are pulled -> the key in it; the first is the present one."""

_APPLY = "apply the overlay: kubectl apply -k k8s/overlays/production, say"
_RBAC = "bind the Role proxykd-submitter (k8s/base) to this identity, or have an administrator add the verb"


class Permission(NamedTuple):
    """A verb on a kind of object, as in a Role."""

    verb: str
    kind: Kind
    part: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.kind.plural}{f'/{self.part}' if self.part else ''}"


SUBMISSION = (
    *(Permission(verb, JOBS) for verb in ("create", "get", "list", "delete")),
    *(Permission(verb, SECRETS) for verb in ("create", "patch", "delete")),
    Permission("list", PODS),
    Permission("get", PODS, "log"),
    Permission("list", EVENTS),
)
"""What submitting, following and stopping a run takes: each is a call that a test has seen (tests/pipelines)."""

SCHEDULING = tuple(Permission(verb, CRON_JOBS) for verb in ("create", "get", "list", "patch", "delete"))
"""What a schedule takes beside that."""


def check_version(api: ClusterApi) -> Iterator[Finding]:
    """The API server answers, and is of a version that the manifests are made for."""
    version = api.version()
    what, parts = f"API server {api.address}", version.removeprefix("v").split(".")
    try:
        minor = int(parts[0]), int(parts[1])
    except (IndexError, ValueError):
        yield unchecked(what, f"its version reads {version!r}")
        return
    span = f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if minor < OLDEST:
        yield missing(what, version, f"upgrade the cluster: supported are Kubernetes {span}")
    elif minor > NEWEST:
        yield unchecked(what, f"{version}; checked are {span}")
    else:
        yield ok(what, version)


def check_namespace(api: ClusterApi) -> Iterator[Finding]:
    """The namespace is there, and what Pod Security it enforces."""
    what = f"namespace {api.namespace}"
    if (found := api.find(NAMESPACES, api.namespace)) is None:
        yield missing(what, "there is none", "kubectl apply -k k8s/overlays/production makes it, say")
        return
    level = found["metadata"].get("labels", {}).get("pod-security.kubernetes.io/enforce", "nothing")
    yield ok(what, f"enforces Pod Security {level}")


def check_permissions(api: ClusterApi, permissions: Collection[Permission]) -> Iterator[Finding]:
    """One line for all that this identity may do, and one for each thing that it may not."""
    lacking = [one for one in permissions if not api.allows(one.verb, one.kind, part=one.part)]
    for one in lacking:
        yield missing(f"permission to {one}", "forbidden", _RBAC)
    if not lacking:
        yield ok("permissions", f"all {len(permissions)} that submission needs")


def check_extension(api: ClusterApi, what: str, kind: Kind, remedy: str) -> Iterator[Finding]:
    """The cluster knows a kind of object that is not Kubernetes' own."""
    name = f"{what} ({kind.api_version})"
    try:
        next(iter(api.list(kind)), None)
    except ClusterMissingError:
        yield missing(name, f"the cluster knows no {kind.plural}", remedy)
    else:
        yield ok(name)


def check_kueue(api: ClusterApi) -> Iterator[Finding]:
    """Kueue is installed."""
    return check_extension(api, "Kueue", LOCAL_QUEUES, "install Kueue 0.19, or use pools without queue")


def check_trainer(api: ClusterApi, runtimes: Iterable[str]) -> Iterator[Finding]:
    """Kubeflow Trainer and what it is built on are installed, and the runtimes that TrainJobs refer to are there."""
    remedy = "install Kubeflow Trainer 2.3, or choose the launcher process or torchrun in the placement"
    yield from check_extension(api, "Kubeflow Trainer", TRAIN_JOBS, remedy)
    yield from check_extension(api, "JobSet", JOB_SETS, "install JobSet 0.12, which Kubeflow Trainer needs")
    for name in runtimes:
        what = f"training runtime {name}"
        yield ok(what) if api.find(TRAINING_RUNTIMES, name) else missing(what, "there is none", _APPLY)


def check_priorities(api: ClusterApi, kind: Kind, names: Iterable[str]) -> Iterator[Finding]:
    """Priority classes that pods or queued Jobs name: without them the API server, or Kueue, refuses them."""
    for name in names:
        what = f"{kind.name} {name}"
        remedy = f"kubectl apply -k k8s/overlays/... makes it, or name another one than {name} in the placement"
        yield ok(what) if api.find(kind, name) else missing(what, "there is none", remedy)


def check_accounts(api: ClusterApi, names: Iterable[str]) -> Iterator[Finding]:
    """Service accounts under which pods run, and the secrets with which these pull the image, where they name any."""
    pulling: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        what = f"service account {name}"
        found = api.find(SERVICE_ACCOUNTS, name)
        yield ok(what) if found else missing(what, "there is none", "apply k8s/base, or correct service_accounts")
        for one in (found or {}).get("imagePullSecrets") or []:
            pulling.setdefault(one["name"], []).append(name)
    for secret, accounts in pulling.items():
        yield _check_pull_secret(api, secret, accounts)


def _check_pull_secret(api: ClusterApi, name: str, accounts: Collection[str]) -> Finding:
    """A pod whose pull secret is missing is started all the same, and its image is then refused for want of a login."""
    kind, key = next(iter(PULL_KEYS.items()))
    made = f"kubectl -n {api.namespace} create secret generic {name} --type={kind} --from-file={key}=FILE"
    what, whose = f"pull secret {name}", f"{' and '.join(accounts)} pull with it"
    try:
        found = api.find(SECRETS, name)
    except ClusterForbiddenError:
        seen = _unread_secret(api, name, [key])
        return replace(seen, what=what, remedy=seen.remedy and made)
    if found is None:
        return missing(what, f"there is none, and {whose}", made)
    if PULL_KEYS.get(str(found.get("type"))) not in (found.get("data") or {}):
        return missing(what, f"no image is pulled with one of type {found.get('type')}", f"remove it, then {made}")
    return ok(what, whose)


def check_secrets(api: ClusterApi, wanted: Mapping[str, Collection[str]]) -> Iterator[Finding]:
    """Secrets and the keys in them, by name."""
    for name, keys in wanted.items():
        what = f"secret {name}"
        try:
            found = api.find(SECRETS, name)
        except ClusterForbiddenError:
            yield _unread_secret(api, name, keys)
            continue
        held = set((found or {}).get("data") or {})
        if found is None:
            yield missing(what, "there is none", _how_to_make(api, name, keys))
        elif lacking := sorted(set(keys) - held):
            yield missing(what, f"it lacks {', '.join(lacking)}", f"add the keys {', '.join(lacking)} to it")
        else:
            yield ok(what, ", ".join(sorted(held)))


def _unread_secret(api: ClusterApi, name: str, keys: Collection[str]) -> Finding:
    """Whether there is a secret, for an identity that may make but not read it: a trial to make one conflicts."""
    what, content = f"secret {name}", f"this identity may not read it; it should hold {', '.join(keys) or 'something'}"
    try:
        api.create(SECRETS, {"metadata": {"name": name}}, is_trial=True)
    except ClusterConflictError:
        return unchecked(what, f"it is there; {content}")
    except ClusterError:  # a rule of the namespace, or no right to make one either
        return unchecked(what, content)
    return missing(what, "there is none", _how_to_make(api, name, keys))


def _how_to_make(api: ClusterApi, name: str, keys: Collection[str]) -> str:
    files = " ".join(f"--from-file={key}=FILE" for key in keys) or "..."
    return f"kubectl -n {api.namespace} create secret generic {name} {files}"


def check_volumes(api: ClusterApi, names: Iterable[str]) -> Iterator[Finding]:
    """Volume claims, whether each is bound, and whether its storage class exists."""
    for name in dict.fromkeys(names):
        what = f"volume claim {name}"
        if (claim := api.find(CLAIMS, name)) is None:
            yield missing(what, "there is none", "apply k8s/base, or correct volumes")
            continue
        phase, wanted = claim.get("status", {}).get("phase", "Pending"), claim["spec"].get("storageClassName")
        if phase == "Bound":
            yield ok(what, f"bound, {claim['status'].get('capacity', {}).get('storage', 'size unknown')}")
        elif phase == "Lost":
            yield missing(what, "its volume is lost", "make the claim anew; what was in it is gone")
        else:
            yield _unbound(api, what, wanted)


def _unbound(api: ClusterApi, what: str, wanted: str | None) -> Finding:
    classes = {one["metadata"]["name"]: one for one in api.list(STORAGE_CLASSES)}
    if wanted is None:
        mark = "storageclass.kubernetes.io/is-default-class"
        defaults = [name for name, one in classes.items() if one["metadata"].get("annotations", {}).get(mark) == "true"]
        wanted = defaults[0] if defaults else None
    if not wanted or wanted not in classes:
        offered = ", ".join(sorted(classes)) or "none"
        found = f"not bound, and there is no storage class {wanted or 'by default'}; there are: {offered}"
        return missing(what, found, "name one of them in the claim")
    if classes[wanted].get("volumeBindingMode") == "WaitForFirstConsumer":
        return ok(what, f"not bound yet: class {wanted} waits for the first pod")
    return unchecked(what, f"not bound yet by class {wanted}", f"kubectl describe pvc {what.split()[-1]} says why")

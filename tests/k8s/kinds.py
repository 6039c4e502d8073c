"""The kinds the API server double knows, with the words the API uses for them."""

from typing import Any, NamedTuple


class Kind(NamedTuple):
    """One resource of the API.

    Attributes:
        group: API group; empty for the core group.
        version: Version that is served and stored.
        plural: Name in the path, in lower case.
        name: Kind as manifests spell it.
        is_namespaced: Whether its objects live in a namespace.
    """

    group: str
    version: str
    plural: str
    name: str
    is_namespaced: bool = True

    @property
    def api_version(self) -> str:
        """The ``apiVersion`` of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def described(self) -> dict[str, Any]:
        """The entry of the discovery document."""
        verbs = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"]
        return {
            "name": self.plural,
            "singularName": self.name.lower(),
            "namespaced": self.is_namespaced,
            "kind": self.name,
            "verbs": verbs,
        }


_TABLE = """
v1 pods Pod
v1 podtemplates PodTemplate
v1 services Service
v1 endpoints Endpoints
v1 events Event
v1 secrets Secret
v1 configmaps ConfigMap
v1 serviceaccounts ServiceAccount
v1 persistentvolumeclaims PersistentVolumeClaim
v1 resourcequotas ResourceQuota
v1 limitranges LimitRange
v1 namespaces Namespace cluster
v1 nodes Node cluster
v1 persistentvolumes PersistentVolume cluster
batch/v1 jobs Job
batch/v1 cronjobs CronJob
apps/v1 deployments Deployment
apps/v1 statefulsets StatefulSet
apps/v1 daemonsets DaemonSet
apps/v1 replicasets ReplicaSet
policy/v1 poddisruptionbudgets PodDisruptionBudget
networking.k8s.io/v1 networkpolicies NetworkPolicy
networking.k8s.io/v1 ingresses Ingress
rbac.authorization.k8s.io/v1 roles Role
rbac.authorization.k8s.io/v1 rolebindings RoleBinding
rbac.authorization.k8s.io/v1 clusterroles ClusterRole cluster
rbac.authorization.k8s.io/v1 clusterrolebindings ClusterRoleBinding cluster
scheduling.k8s.io/v1 priorityclasses PriorityClass cluster
discovery.k8s.io/v1 endpointslices EndpointSlice
storage.k8s.io/v1 storageclasses StorageClass cluster
coordination.k8s.io/v1 leases Lease
apiextensions.k8s.io/v1 customresourcedefinitions CustomResourceDefinition cluster
trainer.kubeflow.org/v1alpha1 trainjobs TrainJob
trainer.kubeflow.org/v1alpha1 trainingruntimes TrainingRuntime
trainer.kubeflow.org/v1alpha1 clustertrainingruntimes ClusterTrainingRuntime cluster
jobset.x-k8s.io/v1alpha2 jobsets JobSet
kueue.x-k8s.io/v1beta2 localqueues LocalQueue
kueue.x-k8s.io/v1beta2 workloads Workload
kueue.x-k8s.io/v1beta2 clusterqueues ClusterQueue cluster
kueue.x-k8s.io/v1beta2 cohorts Cohort cluster
kueue.x-k8s.io/v1beta2 topologies Topology cluster
kueue.x-k8s.io/v1beta2 resourceflavors ResourceFlavor cluster
kueue.x-k8s.io/v1beta2 workloadpriorityclasses WorkloadPriorityClass cluster
monitoring.coreos.com/v1 servicemonitors ServiceMonitor
monitoring.coreos.com/v1 podmonitors PodMonitor
monitoring.coreos.com/v1 prometheusrules PrometheusRule
external-secrets.io/v1 externalsecrets ExternalSecret
external-secrets.io/v1 secretstores SecretStore
"""


def _parsed(line: str) -> Kind:
    api_version, plural, name, *scope = line.split()
    group, _, version = api_version.rpartition("/")
    return Kind(group, version, plural, name, not scope)


KINDS: tuple[Kind, ...] = tuple(_parsed(line) for line in _TABLE.strip().splitlines())
BY_PATH: dict[tuple[str, str, str], Kind] = {(kind.group, kind.version, kind.plural): kind for kind in KINDS}
BY_NAME: dict[tuple[str, str], Kind] = {(kind.api_version, kind.name): kind for kind in KINDS}
CORE: dict[str, Kind] = {kind.name: kind for kind in reversed(KINDS)}
"""Kind's name -> kind; the names are unique in this table."""


def discovery(path: str) -> dict[str, Any] | None:
    """The document at a path such as ``/api``, ``/apis`` or ``/apis/batch/v1``; None where there is none."""
    groups = sorted({(kind.group, kind.version) for kind in KINDS})
    path = path.rstrip("/")
    if path == "/version":
        unknown = ("gitCommit", "gitTreeState", "buildDate", "goVersion", "compiler")
        known = {"major": "1", "minor": "35", "gitVersion": "v1.35.0", "platform": "linux/amd64"}
        return {**dict.fromkeys(unknown, ""), **known}
    if path == "/api":
        return {"kind": "APIVersions", "versions": ["v1"]}
    if path == "/apis":
        listed = [_group(group, version) for group, version in groups if group]
        return {"kind": "APIGroupList", "apiVersion": "v1", "groups": listed}
    parts = path.strip("/").split("/")
    if parts[0] not in ("api", "apis") or len(parts) > 3:
        return None
    if parts[0] == "apis" and len(parts) == 2:
        return next((_group(*pair) for pair in groups if pair[0] == parts[1]), None)
    group, version = ("", parts[1]) if parts[0] == "api" and len(parts) == 2 else (parts[-2], parts[-1])
    if (group, version) not in groups:
        return None
    kinds = [kind.described() for kind in KINDS if (kind.group, kind.version) == (group, version)]
    api_version = f"{group}/{version}" if group else version
    return {"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": kinds}


def _group(group: str, version: str) -> dict[str, Any]:
    served = {"groupVersion": f"{group}/{version}", "version": version}
    return {"name": group, "kind": "APIGroup", "apiVersion": "v1", "versions": [served], "preferredVersion": served}

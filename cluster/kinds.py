"""The kinds of object that are read or written, and their places on the API server."""

from typing import NamedTuple
from urllib.parse import quote


class Kind(NamedTuple):
    """A kind of object.

    Attributes:
        api_version: Group and version, for example ``batch/v1``; ``v1`` = the core group.
        name: As in a manifest, for example ``Job``.
        plural: As in a Role and in an address, for example ``jobs``.
        is_namespaced: Whether its objects lie in a namespace.
    """

    api_version: str
    name: str
    plural: str
    is_namespaced: bool = True

    @property
    def group(self) -> str:
        """As in a Role: "" = the core group."""
        return self.api_version.rpartition("/")[0]

    def path(self, namespace: str | None, name: str | None = None, part: str | None = None) -> str:
        """Address of a collection, of an object, or of a part of one.

        Args:
            namespace: None = that of the whole cluster: all namespaces.
            name: Of the object; None = the collection.
            part: For example ``log`` or ``status``.
        """
        place = f"/{'apis' if self.group else 'api'}/{self.api_version}"
        if self.is_namespaced and namespace is not None:
            place += f"/namespaces/{quote(namespace, safe='')}"
        return "/".join([f"{place}/{self.plural}", *(quote(word, safe="") for word in (name, part) if word)])


PODS = Kind("v1", "Pod", "pods")
SECRETS = Kind("v1", "Secret", "secrets")
SERVICES = Kind("v1", "Service", "services")
CLAIMS = Kind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SERVICE_ACCOUNTS = Kind("v1", "ServiceAccount", "serviceaccounts")
CONFIG_MAPS = Kind("v1", "ConfigMap", "configmaps")
EVENTS = Kind("v1", "Event", "events")
NAMESPACES = Kind("v1", "Namespace", "namespaces", is_namespaced=False)
NODES = Kind("v1", "Node", "nodes", is_namespaced=False)
JOBS = Kind("batch/v1", "Job", "jobs")
CRON_JOBS = Kind("batch/v1", "CronJob", "cronjobs")
ENDPOINT_SLICES = Kind("discovery.k8s.io/v1", "EndpointSlice", "endpointslices")
NETWORK_POLICIES = Kind("networking.k8s.io/v1", "NetworkPolicy", "networkpolicies")
STORAGE_CLASSES = Kind("storage.k8s.io/v1", "StorageClass", "storageclasses", is_namespaced=False)
ROLES = Kind("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDINGS = Kind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
RESOURCE_DEFINITIONS = Kind(
    "apiextensions.k8s.io/v1", "CustomResourceDefinition", "customresourcedefinitions", is_namespaced=False
)
ACCESS_REVIEWS = Kind(
    "authorization.k8s.io/v1", "SelfSubjectAccessReview", "selfsubjectaccessreviews", is_namespaced=False
)
TRAIN_JOBS = Kind("trainer.kubeflow.org/v1alpha1", "TrainJob", "trainjobs")
TRAINING_RUNTIMES = Kind("trainer.kubeflow.org/v1alpha1", "TrainingRuntime", "trainingruntimes")
LOCAL_QUEUES = Kind("kueue.x-k8s.io/v1beta2", "LocalQueue", "localqueues")
CLUSTER_QUEUES = Kind("kueue.x-k8s.io/v1beta2", "ClusterQueue", "clusterqueues", is_namespaced=False)
COHORTS = Kind("kueue.x-k8s.io/v1beta2", "Cohort", "cohorts", is_namespaced=False)
RESOURCE_FLAVORS = Kind("kueue.x-k8s.io/v1beta2", "ResourceFlavor", "resourceflavors", is_namespaced=False)
WORKLOADS = Kind("kueue.x-k8s.io/v1beta2", "Workload", "workloads")
PRIORITY_CLASSES = Kind(
    "kueue.x-k8s.io/v1beta2", "WorkloadPriorityClass", "workloadpriorityclasses", is_namespaced=False
)

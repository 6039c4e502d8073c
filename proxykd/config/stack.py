"""A stack: where a run's steps are started, where its artifacts lie, and what the place must have ready.

One file a stack, ``k8s/stacks/NAME.yaml``; ``proxykd stack apply`` registers it with ZenML. Secrets are names only:
of Kubernetes secrets and of ZenML's. What each step needs (pool, GPUs, memory) is the placement's, which a stack names.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, model_validator

import proxykd
from proxykd.config.addresses import fault_of_tracking
from proxykd.config.base import InputPath, PositiveFloat, Spec
from proxykd.config.loading import load_model, read_yaml
from proxykd.exceptions import ConfigError

STACKS = Path(proxykd.__file__).parents[1] / "k8s" / "stacks"
"""Where a stack that is named without a path is looked for; a checkout has it, the wheel alone has not."""

WHAT, HELP = "a stack", "docs/stacks.md"
_DIGEST = re.compile(r"[\w.\-/:]+@sha256:[0-9a-f]{64}")


def _check_image(value: str) -> str:
    if not _DIGEST.fullmatch(value):
        raise ValueError(
            "expected an image pinned by its digest, NAME@sha256:<64 hex digits>; `skopeo inspect docker://NAME:TAG` "
            "prints it"
        )
    return value


def _check_address(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError("expected an address that begins with http:// or https://")
    if parts.username or parts.password:
        raise ValueError("expected an address without user name and password: those belong in a secret")
    return value


def _check_tracking(value: str) -> str:
    if fault := fault_of_tracking(value):
        raise ValueError(f"expected an address that MLflow knows, {fault}")
    return value


ObjectName = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$", max_length=253)]
"""The name of a Kubernetes object."""

ImageReference = Annotated[str, AfterValidator(_check_image)]
"""A container image pinned by its digest."""

Address = Annotated[str, AfterValidator(_check_address), Field(examples=["http://mlflow:5000"])]
"""An HTTP address without credentials."""


class FolderStoreSpec(Spec):
    """Artifacts in a folder of this machine."""

    kind: Literal["folder"] = "folder"
    """A folder."""
    path: InputPath | None = None
    """The folder; None = ZenML's own in the workspace."""


class S3StoreSpec(Spec):
    """Artifacts in S3 or what speaks its protocol."""

    kind: Literal["s3"]
    """A bucket."""
    path: str = Field(pattern=r"^s3://[a-z0-9][a-z0-9.-]+(/.*)?$", examples=["s3://proxykd/artifacts"])
    """Bucket and prefix."""
    endpoint_url: Address | None = None
    """Where the storage answers; None = Amazon's own address."""
    region: str | None = None
    """The region; None = as the environment says."""
    secret: ObjectName | None = None
    """Kubernetes secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, which becomes the pods' environment; None =
    the pods' service account may use the bucket. This machine's own credentials come from its environment."""


class ServiceAccountsSpec(Spec):
    """Under which names the parts of a run speak to the API server."""

    submitter: ObjectName = "proxykd-submitter"
    """Whoever submits from inside the cluster (CI, a schedule)."""
    orchestrator: ObjectName = "proxykd-orchestrator"
    """The pod that starts the steps."""
    step: ObjectName = "proxykd-step"
    """The steps: may do nothing."""
    trainer: ObjectName = "proxykd-trainer"
    """Steps that start a TrainJob."""


class LocalStackSpec(Spec):
    """Steps on this machine, one after the other."""

    kind: Literal["local"]
    """This machine."""
    name: ObjectName
    """Name of the stack."""
    artifact_store: Annotated[FolderStoreSpec | S3StoreSpec, Field(discriminator="kind")] = FolderStoreSpec()
    """Where artifacts lie."""
    tracking_uri: Annotated[str, AfterValidator(_check_tracking)] | None = None
    """MLflow; None = as MLFLOW_TRACKING_URI says, else SQLite in the workspace."""
    tracking_secret: str | None = None
    """ZenML secret for a tracking server with a login, with the key token or username and password; None = none."""


class ClusterStackSpec(Spec):
    """What both kinds of cluster stack need."""

    name: ObjectName
    """Name of the stack."""
    context: str | None = None
    """Context of the kubeconfig; None = from inside the cluster, by the service account."""
    namespace: ObjectName = "proxykd"
    """Namespace of all pods."""
    is_on_this_machine: bool = False
    """Whether the cluster is one of this machine (kind, minikube), which may share its ZenML database and folders."""
    image: ImageReference
    """The image that holds the checkout."""
    container_registry: str = Field(min_length=1, examples=["ghcr.io/proxykd"])
    """Where the image lies."""
    artifact_store: S3StoreSpec
    """Where artifacts lie: pods share nothing else."""
    tracking_uri: Address = "http://mlflow:5000"
    """MLflow as the pods reach it."""
    tracking_secret: str | None = None
    """ZenML secret for a tracking server with a login, with the key token or username and password; None = none."""
    placement: InputPath
    """File that says which step runs where and with what (docs/stacks.md)."""
    service_accounts: ServiceAccountsSpec = ServiceAccountsSpec()
    """Under which names the parts of a run speak to the API server."""
    secrets: Mapping[ObjectName, tuple[str, ...]] = {}
    """Kubernetes secrets that runs need, each with the keys that must be in it."""
    volumes: tuple[ObjectName, ...] = ("proxykd-models", "proxykd-journal")
    """Volume claims that runs need."""
    start_timeout_s: PositiveFloat | None = 21_600.0
    """Seconds for which a step may wait for its pod (in a queue, say) while nothing else of the run runs, before the
    run is stopped; None = for ever. A preempted step's wait begins anew. Six hours: long enough for a pool that grows
    from nothing, short enough to be told the same day."""

    def pod_secrets(self, own: Iterable[str]) -> tuple[str, ...]:
        """Names of the Secrets that a pod gets: its own, and the artifact store's."""
        store = self.artifact_store.secret
        return tuple(dict.fromkeys((*own, *([store] if store else []))))


class KubernetesStackSpec(ClusterStackSpec):
    """Each step in a pod of its own, started by ZenML's Kubernetes orchestrator."""

    kind: Literal["kubernetes"]
    """Kubernetes."""
    zenml_url: Address | None = None
    """ZenML's server as the pods reach it; None = at the address by which this machine does (``ZENML_STORE_URL``)."""


class KubeflowStackSpec(ClusterStackSpec):
    """Each step in a pod of its own, started by Kubeflow Pipelines."""

    kind: Literal["kubeflow"]
    """Kubeflow Pipelines."""
    hostname: Address | None = None
    """Where Kubeflow Pipelines answers; None = through the context of the kubeconfig."""
    pipelines_namespace: ObjectName = "kubeflow"
    """Namespace of Kubeflow Pipelines itself."""
    pipelines_service_account: ObjectName | None = None
    """Service account of all pods of a run, which Kubeflow Pipelines gives to a run as a whole; None = its own choice
    (``pipeline-runner``, or ``default-editor`` where it serves several users). Steps that start a TrainJob need one:
    with the rights that Kubeflow asks of its own, and those of the Role proxykd-trainer."""

    @model_validator(mode="after")
    def _is_reachable(self) -> Self:
        if self.hostname is None and self.context is None:
            raise ValueError("expected hostname or context: Kubeflow Pipelines is reached through one of them")
        return self


StackSpec = LocalStackSpec | KubernetesStackSpec | KubeflowStackSpec
ClusterSpec = KubernetesStackSpec | KubeflowStackSpec
_KINDS: Mapping[str, type[Spec]] = {
    "local": LocalStackSpec,
    "kubernetes": KubernetesStackSpec,
    "kubeflow": KubeflowStackSpec,
}


def stack_file(file_or_name: str) -> Path:
    """The file of a stack: the path itself, or ``k8s/stacks/NAME.yaml``.

    Raises:
        ConfigError: if there is neither; the message lists the names that there are.
    """
    path = Path(file_or_name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    if (named := STACKS / f"{file_or_name}.yaml").is_file():
        return named
    names = ", ".join(sorted(file.stem for file in STACKS.glob("*.yaml"))) or "none"
    raise ConfigError(f"expected a stack's file or the name of one in {STACKS} ({names}), got {file_or_name!r}")


def load_stack(file_or_name: str) -> StackSpec:
    """Read and validate a stack.

    Args:
        file_or_name: A path, or NAME for ``k8s/stacks/NAME.yaml``.

    Raises:
        ConfigError: naming every key that is unknown, with the nearest known one, missing or out of bounds.
    """
    path = stack_file(file_or_name)
    values: dict[str, Any] = read_yaml(path, what=WHAT, example="k8s/stacks/local.yaml")
    kind = values.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ConfigError(f"{path} is not a stack: kind: expected one of {', '.join(_KINDS)}, got {kind!r}; {HELP}")
    found: StackSpec = load_model(path, _KINDS[kind], values, what=WHAT, help_text=HELP)
    return found

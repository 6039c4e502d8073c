"""ZenML's Kubernetes orchestrator with a patient client, as a flavour of its own.

ZenML repeats a call that the API server answers with an error, but not one that finds nobody: while the server is away
for a moment, it takes every running step for failed although their pods go on. Here the HTTP client itself waits.
"""

from typing import TYPE_CHECKING, Any

from zenml.integrations.kubernetes.flavors import KubernetesOrchestratorFlavor
from zenml.integrations.kubernetes.orchestrators import KubernetesOrchestrator

from cluster.connection import patient_retries
from cluster.flavors import PATIENT

if TYPE_CHECKING:
    from kubernetes.client import ApiClient


class PatientOrchestrator(KubernetesOrchestrator):
    """Waits while the API server is away."""

    def get_kube_client(self, incluster: bool | None = None) -> "ApiClient":
        """The client, whose connections are tried again.

        Args:
            incluster: Whether to use the pod's own credentials; None = as the component is configured.
        """
        from kubernetes.client import ApiClient

        client = super().get_kube_client(incluster=incluster)
        if client.configuration.retries is not None:
            return client
        client.configuration.retries = patient_retries()
        self._k8s_client = ApiClient(client.configuration)
        return self._k8s_client


class PatientOrchestratorFlavor(KubernetesOrchestratorFlavor):
    """What ZenML needs to know; settings and configuration are those of its Kubernetes orchestrator."""

    @property
    def name(self) -> str:
        """Under which stacks name it."""
        return PATIENT

    @property
    def display_name(self) -> str:
        """For people."""
        return "Kubernetes (proxykd)"

    @property
    def implementation_class(self) -> Any:
        """The orchestrator."""
        return PatientOrchestrator

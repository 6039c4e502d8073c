"""ZenML's Kubernetes orchestrator with a patient client, as a flavour of its own.

ZenML repeats a call that the API server answers with an error, but not one that finds nobody: while the server is away
for a moment, it takes every running step for failed although their pods go on. Here the HTTP client itself waits.
"""

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from kubernetes import client as kubernetes_client
from kubernetes.client import ApiClient, ApiException
from zenml.integrations.kubernetes.flavors import KubernetesOrchestratorFlavor
from zenml.integrations.kubernetes.orchestrators import KubernetesOrchestrator

from cluster.connection import context_names, patient_retries
from cluster.flavors import PATIENT
from cluster.run_entry import use_run_entry
from cluster.step_entry import use_step_entry

if TYPE_CHECKING:
    from zenml.orchestrators import SubmissionResult


class PatientClient(ApiClient):
    """Knows a Job that it made itself, where the answer was lost and the repeated call finds it there already."""

    def request(self, method: str, url: str, **call: Any) -> Any:
        """One call, with its repetitions; as the class above."""
        try:
            return super().request(method, url, **call)
        except ApiException as error:
            if method != "POST" or not url.endswith("/jobs") or _reason(error) != "AlreadyExists":
                raise
            wanted = call["body"]["metadata"]
            options = {key: call[key] for key in ("headers", "_request_timeout") if key in call}
            found = super().request("GET", f"{url}/{wanted['name']}", **options)
            if json.loads(found.data)["metadata"].get("labels") != wanted.get("labels"):
                raise
            return found


def _reason(error: ApiException) -> str:
    """The API server's word for why it refused a call; "" = something else refused it."""
    try:
        return str(json.loads(error.body)["reason"])
    except (TypeError, ValueError, KeyError):
        return ""


class PatientOrchestrator(KubernetesOrchestrator):
    """Waits while the API server is away, and lets the pod's settings win over the submitter's environment."""

    def submit_pipeline(
        self, snapshot: Any, stack: Any, base_environment: dict[str, str], *args: Any, **options: Any
    ) -> "SubmissionResult | None":
        """Submit without the variables that the orchestrator pod's own settings set: a pod would have them twice.

        Args:
            snapshot: What is run.
            stack: Where.
            base_environment: What ZenML hands on from this machine: the address of its server, say.
            args: As ZenML calls it.
            options: As ZenML calls it.
        """
        use_run_entry()
        pod = self.get_settings(snapshot).orchestrator_pod_settings
        kept = unset(base_environment, [] if pod is None else pod.env)
        return super().submit_pipeline(snapshot, stack, kept, *args, **options)

    def get_kubernetes_contexts(self) -> tuple[list[str], str]:
        """The kubeconfig's contexts, and the stack's own: which one is current for others does not matter."""
        return context_names(), self.config.kubernetes_context or ""

    def get_kube_client(self, incluster: bool | None = None) -> "ApiClient":
        """The client, whose connections are tried again.

        Args:
            incluster: Whether to use the pod's own credentials; None = as the component is configured.
        """
        client = super().get_kube_client(incluster=incluster)
        if client.configuration.retries is not None:
            return client
        client.configuration.retries = patient_retries()
        # ZenML's entry point takes these settings to a client that it makes itself; it shall be one of these too.
        kubernetes_client.ApiClient = PatientClient
        use_step_entry()
        self._k8s_client = PatientClient(client.configuration)
        return self._k8s_client


def unset(environment: Mapping[str, str], variables: Iterable[Any]) -> dict[str, str]:
    """The environment without what is set otherwise.

    Args:
        environment: Name -> value.
        variables: Of a container: Kubernetes' objects, or the same as dictionaries.
    """
    names = {one["name"] if isinstance(one, Mapping) else one.name for one in variables}
    return {name: value for name, value in environment.items() if name not in names}


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

"""What ZenML needs to know of ``cluster.kubeflow_orchestrator``: its settings, its configuration and its name.

Nothing of kfp is imported before an orchestrator is made.
"""

from pathlib import Path
from typing import Any

from pydantic import Field
from zenml.client import Client
from zenml.enums import StackComponentType
from zenml.exceptions import EntityExistsError
from zenml.integrations.kubeflow.flavors.kubeflow_orchestrator_flavor import (
    KubeflowOrchestratorConfig,
    KubeflowOrchestratorFlavor,
    KubeflowOrchestratorSettings,
)
from zenml.utils import source_utils

import proxykd

FLAVOR = "proxykd-kubeflow"
SOURCE = f"{__name__}.PlacedKubeflowFlavor"
KIND = StackComponentType.ORCHESTRATOR


class PlacedKubeflowSettings(KubeflowOrchestratorSettings):
    """Settings of a step or a pipeline: ZenML's and ours."""

    task: dict[str, Any] = Field(default_factory=dict)
    """The placement of a step's pod, as plain values."""
    service_account: str | None = None
    """Service account of all pods of a run; None = Kubeflow's own choice."""


class PlacedKubeflowConfig(KubeflowOrchestratorConfig):
    """Configuration of the component: ZenML's own, but for who tries a failed step again."""

    @property
    def handles_step_retries(self) -> bool:
        """Whether Kubeflow Pipelines alone does, with new pods; else ZenML would do so inside each of them, too."""
        return True


class PlacedKubeflowFlavor(KubeflowOrchestratorFlavor):
    """What ZenML needs to know."""

    @property
    def name(self) -> str:
        """Of the flavor."""
        return FLAVOR

    @property
    def config_class(self) -> type[PlacedKubeflowConfig]:
        """Of the component's configuration."""
        return PlacedKubeflowConfig

    @property
    def implementation_class(self) -> Any:
        """Of the component."""
        from cluster.kubeflow_orchestrator import PlacedKubeflowOrchestrator

        return PlacedKubeflowOrchestrator


def register_flavor() -> None:
    """Tell ZenML where the flavor's code is, unless it knows; safe to repeat, and to do twice at once."""
    source_utils.set_custom_source_root(str(Path(proxykd.__file__).parents[1]))
    client = Client()
    try:
        client.get_flavor_by_name_and_type(FLAVOR, KIND)
    except KeyError:
        try:
            client.create_flavor(SOURCE, KIND)
        except EntityExistsError:
            return

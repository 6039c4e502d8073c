"""Our own flavour of ZenML's Kubernetes orchestrator: its name, and making ZenML know it."""

from pathlib import Path
from typing import Any

BASE, PATIENT = "kubernetes", "proxykd-kubernetes"
"""ZenML's flavour and ours, which has the same settings."""
SOURCE = "cluster.orchestrator.PatientOrchestratorFlavor"
"""Where ZenML finds ours: in the checkout here, and in the image."""


def base_of(flavor: str) -> str:
    """The flavour of ZenML's own that has a flavour's settings."""
    return BASE if flavor == PATIENT else flavor


def register_patient(client: Any) -> None:
    """Make ZenML know our flavour; does nothing where it does.

    Args:
        client: ZenML's.
    """
    from zenml.enums import StackComponentType
    from zenml.exceptions import EntityExistsError
    from zenml.utils import source_utils

    if client.list_flavors(name=PATIENT, type=StackComponentType.ORCHESTRATOR).total:
        return
    source_utils.set_custom_source_root(str(Path(__file__).parents[1]))
    try:
        client.create_flavor(SOURCE, StackComponentType.ORCHESTRATOR)
    except EntityExistsError:  # somebody else was registering it
        return

"""Our own flavours of ZenML's Kubernetes orchestrator and MLflow tracker: their names, and making ZenML know them."""

from pathlib import Path
from typing import Any

PATIENT, TRACKER = "proxykd-kubernetes", "proxykd-mlflow"
_BASES = {PATIENT: "kubernetes", TRACKER: "mlflow"}
"""Our flavours -> ZenML's, which have the same settings."""
_SOURCES = {PATIENT: "cluster.orchestrator.PatientOrchestratorFlavor", TRACKER: "cluster.tracker.LazyTrackerFlavor"}
"""Where ZenML finds ours: in the checkout here, and in the image."""


def base_of(flavor: str) -> str:
    """The flavour of ZenML's own that has a flavour's settings."""
    return _BASES.get(flavor, flavor)


def register(client: Any, flavor: str, kind: Any) -> None:
    """Make ZenML know a flavour of ours; does nothing where it does, or where the flavour is ZenML's own.

    Args:
        client: ZenML's.
        flavor: Its name.
        kind: The type of component that it is a flavour of.
    """
    from zenml.exceptions import EntityExistsError
    from zenml.utils import source_utils

    if flavor not in _SOURCES or client.list_flavors(name=flavor, type=kind).total:
        return
    source_utils.set_custom_source_root(str(Path(__file__).parents[1]))
    try:
        client.create_flavor(_SOURCES[flavor], kind)
    except EntityExistsError:  # somebody else was registering it
        return

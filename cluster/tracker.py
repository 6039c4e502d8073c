"""ZenML's MLflow tracker as a flavour that imports MLflow only when a step asks to be tracked by it.

ZenML makes every component of a stack in each process of a run, and MLflow takes more than a second and 100 MiB of it.
Steps of ours ask for no tracker: those that write to MLflow do it themselves.
"""

from functools import cached_property
from typing import Any

from zenml.experiment_trackers import BaseExperimentTracker
from zenml.integrations.mlflow.flavors.mlflow_experiment_tracker_flavor import (
    MLFlowExperimentTrackerFlavor,
    MLFlowExperimentTrackerSettings,
)

from cluster.flavors import TRACKER


class LazyTracker(BaseExperimentTracker):
    """Has a tracking address, and hands each step that wants to be tracked to ZenML's own."""

    @property
    def settings_class(self) -> Any:
        """Settings that a step may have."""
        return MLFlowExperimentTrackerSettings

    @cached_property
    def _tracker(self) -> Any:
        from zenml.integrations.mlflow.experiment_trackers import MLFlowExperimentTracker

        names = ("name", "id", "config", "flavor", "type", "user", "created", "updated", "environment", "secrets")
        return MLFlowExperimentTracker(**{name: getattr(self, name) for name in names})

    def prepare_step_run(self, info: Any) -> None:
        """Before a step that is tracked."""
        self._tracker.prepare_step_run(info)

    def get_step_run_metadata(self, info: Any) -> Any:
        """What ZenML's page of such a step shows."""
        return self._tracker.get_step_run_metadata(info)

    def cleanup_step_run(self, info: Any, step_failed: bool) -> None:
        """After it."""
        self._tracker.cleanup_step_run(info, step_failed)


class LazyTrackerFlavor(MLFlowExperimentTrackerFlavor):
    """What ZenML needs to know; settings and configuration are those of its MLflow tracker."""

    @property
    def name(self) -> str:
        """Under which stacks name it."""
        return TRACKER

    @property
    def display_name(self) -> str:
        """For people."""
        return "MLflow (proxykd)"

    @property
    def implementation_class(self) -> Any:
        """The tracker."""
        return LazyTracker

"""How a step's process begins: as ZenML has it, without libraries that no step of ours is given by ZenML.

ZenML imports every installed library that it can store an object of or serve a model with, torch, scikit-learn and
MLflow among them, at each submission and in each step's pod. Our steps pass on folders alone.
"""

from importlib.util import find_spec
from typing import Any

from zenml.entrypoints.base_entrypoint_configuration import ENTRYPOINT_CONFIG_SOURCE_OPTION
from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration
from zenml.integrations.integration import Integration
from zenml.integrations.registry import integration_registry

SOURCE = f"{__name__}.StepEntry"
_zenml_arguments: Any = vars(StepEntrypointConfiguration)["get_entrypoint_arguments"].__func__


class StepEntry(StepEntrypointConfiguration):
    """ZenML's entry point of one step, which imports what the stack and the step need."""

    def run(self) -> None:
        """Run the step."""
        leave_out_libraries()
        super().run()


def leave_out_libraries() -> None:
    """Let ZenML activate no integration but those with ways to log in, which components of a stack may have."""
    for integration in integration_registry.integrations.values():
        if find_spec(f"{integration.__module__}.service_connectors") is None:
            integration.activate = Integration.activate


def use_step_entry() -> None:
    """Let orchestrators tell the pods of steps to begin with ``StepEntry``; they name ZenML's in their code."""
    StepEntrypointConfiguration.get_entrypoint_arguments = classmethod(_arguments)


def _arguments(entry: type[Any], /, **options: Any) -> list[str]:
    arguments: list[str] = _zenml_arguments(entry, **options)
    if entry is StepEntrypointConfiguration:  # and not one that ZenML made of it for other pods
        arguments[arguments.index(f"--{ENTRYPOINT_CONFIG_SOURCE_OPTION}") + 1] = SOURCE
    return arguments

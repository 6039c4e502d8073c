"""How a step's process begins: as ZenML has it, without libraries that are there for types no step passes on.

ZenML imports every installed library that it can store an object of, torch and scikit-learn among them, at each
submission and in each step's pod. Our steps pass on folders alone.
"""

from typing import Any

from zenml.entrypoints.base_entrypoint_configuration import ENTRYPOINT_CONFIG_SOURCE_OPTION
from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration
from zenml.integrations.integration import Integration
from zenml.integrations.registry import integration_registry

SOURCE = f"{__name__}.StepEntry"
_zenml_arguments = StepEntrypointConfiguration.get_entrypoint_arguments


class StepEntry(StepEntrypointConfiguration):
    """ZenML's entry point of one step, which imports what the stack and the step need."""

    def run(self) -> None:
        """Run the step."""
        leave_out_types()
        super().run()


def leave_out_types() -> None:
    """Let ZenML activate no integration that brings nothing but types: one without a component of a stack."""
    for name, integration in list(integration_registry.integrations.items()):
        if integration.flavors.__func__ is Integration.flavors.__func__:
            integration_registry.register_integration(name, Integration)


def start_steps_here() -> None:
    """Let orchestrators tell the pods of steps to begin with ``StepEntry``; they name ZenML's in their code."""
    StepEntrypointConfiguration.get_entrypoint_arguments = _arguments


def _arguments(**options: Any) -> list[str]:
    arguments = list(_zenml_arguments(**options))
    arguments[arguments.index(f"--{ENTRYPOINT_CONFIG_SOURCE_OPTION}") + 1] = SOURCE
    return arguments

"""What Kubeflow Pipelines asks of a stack and its placement, checked before anything is registered or submitted.

It gives all pods of a run one service account, and takes Secrets key by key, which the stack's file lists.
"""

from collections.abc import Mapping

from proxykd.config.placement import PlacementSpec, StepPlacementSpec
from proxykd.config.stack import KubeflowStackSpec
from proxykd.config.steps import STEPS
from proxykd.exceptions import ConfigError

ZENML_SECRET = "proxykd-zenml"
"""Address and key of the ZenML server, for every pod."""


def check_kubeflow(stack: KubeflowStackSpec, placement: PlacementSpec) -> None:
    """Check that Kubeflow Pipelines can give every step what its placement asks for.

    Raises:
        ConfigError: naming the first step whose account or Secrets it cannot give.
    """
    for name in STEPS:
        step = placement.step(name)
        check_account(stack, name, step)
        secret_keys(stack, step)


def check_account(stack: KubeflowStackSpec, name: str, step: StepPlacementSpec) -> None:
    """Check that a step does with the service account of its run, and that it may start a TrainJob if it has to.

    Args:
        stack: Names the account.
        name: Of the step.
        step: What it gets.

    Raises:
        ConfigError: if the step needs another account, or one where the stack names none.
    """
    account = stack.pipelines_service_account
    if step.service_account not in (None, account):
        raise ConfigError(
            f"expected step {name} to do with its run's service account, as Kubeflow Pipelines has one for all pods, "
            f"got the service account {step.service_account}; leave it out and name the run's as "
            f"`pipelines_service_account` of the stack {stack.name}, or choose a stack of kind kubernetes"
        )
    if step.launcher.kind == "trainjob" and account is None:
        raise ConfigError(
            f"expected `pipelines_service_account` in the stack {stack.name}, as step {name} starts a TrainJob and "
            "Kubeflow's own account may not; name one that may (docs/kubeflow.md), or start its processes in its own "
            "pod with `launcher: {kind: torchrun}`"
        )


def secret_keys(stack: KubeflowStackSpec, step: StepPlacementSpec) -> Mapping[str, tuple[str, ...]]:
    """Secret -> keys that a step's pod gets of it, the ZenML server's last.

    Raises:
        ConfigError: if the stack does not list the keys of one.
    """
    names = dict.fromkeys((*stack.pod_secrets(step.secrets), ZENML_SECRET))
    for name in names:
        if name not in stack.secrets:
            raise ConfigError(
                f"expected the keys of the Secret {name} under `secrets` of the stack {stack.name}, found "
                f"{sorted(stack.secrets) or 'none'}; Kubeflow Pipelines takes Secrets key by key: add `{name}: [KEY]`"
            )
    return {name: stack.secrets[name] for name in names}

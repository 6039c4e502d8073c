"""A placement in the terms of Kubeflow Pipelines: the pods of the Kubernetes orchestrator, as far as it can say them.

The pods come from ``pipelines.placement``, so that a step gets the same on both kinds of stack. Kubeflow Pipelines
takes Secrets key by key, which the stack's file lists. It gives all pods of a run one service account: a step that
needs another one is refused here, and one that starts a TrainJob unless the stack names an account that may. It has no
word for a pod's priority class, seccomp profile, file system and grace period: those are its own affair, and that of
the namespace's admission.
"""

from collections.abc import Mapping
from typing import Any

from cluster.kubeflow_flavor import PlacedKubeflowSettings
from cluster.kubeflow_task import Folder, SecretVariable, TaskPlacement, Toleration
from cluster.names import GPU
from pipelines.placement import checked, image_settings, retry_options, step_options
from proxykd.config.kubeflow import check_account, secret_keys
from proxykd.config.placement import PlacementSpec
from proxykd.config.stack import KubeflowStackSpec


def kubeflow_options(stack: KubeflowStackSpec, placement: PlacementSpec, steps: tuple[str, ...]) -> dict[str, Any]:
    """What ``Pipeline.with_options`` takes for a run on Kubeflow Pipelines.

    Args:
        stack: Image, addresses and Secrets.
        placement: Places and sizes.
        steps: The names of the pipeline's steps.

    Raises:
        ConfigError: if a step asks for what Kubeflow Pipelines cannot give, or for a Secret whose keys are not told.
    """
    tasks = task_placements(stack, placement, steps)
    account = {"service_account": stack.pipelines_service_account}
    run = {"user_namespace": stack.namespace, "synchronous": True, "timeout": 2**31, **account}
    return {
        "settings": {
            "docker": image_settings(stack.image),
            "orchestrator": checked(run, PlacedKubeflowSettings),
        },
        "step_configurations": {
            name: {"settings": {"orchestrator": {"task": task.model_dump(mode="json")}}, **retry_options(task.retries)}
            for name, task in tasks.items()
        },
    }


def task_placements(
    stack: KubeflowStackSpec, placement: PlacementSpec, steps: tuple[str, ...]
) -> dict[str, TaskPlacement]:
    """Step -> what its pod gets; arguments and errors as above."""
    return {name: _task(stack, placement, name) for name in steps}


def _task(stack: KubeflowStackSpec, placement: PlacementSpec, name: str) -> TaskPlacement:
    step = placement.step(name)
    pod = step_options(stack, placement, name)["settings"]["orchestrator"].pod_settings
    check_account(stack, name, step)
    requests = pod.resources["requests"]
    return TaskPlacement(
        cpu=requests["cpu"],
        memory=requests["memory"],
        gpus=int(requests.get(GPU, 0)),
        user=placement.user,
        node_selectors=pod.node_selectors,
        tolerations=tuple(Toleration.model_validate(_filled(one)) for one in pod.tolerations),
        labels=pod.labels,
        annotations=pod.annotations,
        environment={one["name"]: one["value"] for one in pod.env},
        secrets=tuple(
            SecretVariable(secret=secret, key=key, variable=key)
            for secret, keys in secret_keys(stack, step).items() for key in keys
        ),
        claims={path: one["persistentVolumeClaim"]["claimName"] for one, path in _mounted(pod)
                if "persistentVolumeClaim" in one},
        folders=tuple(_folder(one, path) for one, path in _mounted(pod) if "emptyDir" in one),
        retries=step.retries,
        deadline_s=step.deadline_s,
    )  # fmt: skip


def _mounted(pod: Any) -> list[tuple[Mapping[str, Any], str]]:
    """Volumes with the paths at which they lie."""
    paths = {one["name"]: one["mountPath"] for one in pod.volume_mounts}
    return [(volume, paths[volume["name"]]) for volume in pod.volumes]


def _folder(volume: Mapping[str, Any], path: str) -> Folder:
    own = volume["emptyDir"]
    return Folder(name=volume["name"], path=path, in_memory=own.get("medium") == "Memory", size=own.get("sizeLimit"))


def _filled(values: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}

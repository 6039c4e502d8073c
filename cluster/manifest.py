"""The TrainJob of a piece of work: the template ``k8s/trainjob/train-job.yaml``, filled in."""

import copy
from collections.abc import Mapping
from functools import cache
from math import floor
from pathlib import Path
from typing import Any

import yaml

from cluster.names import GPU, PRIORITY_LABEL, QUEUE_LABEL, STORAGE
from proxykd.config.launcher import LauncherSpec
from proxykd.config.placement import amount

TEMPLATE = Path(__file__).parents[1] / "k8s" / "trainjob" / "train-job.yaml"
WORK_ANNOTATION = "proxykd.dev/work"
CONTAINER = REPLICATED_JOB = "node"
MANAGER = "proxykd.dev/launcher"
PASSED_ON = (
    "PROXYKD_HOME",
    "PROXYKD_PROGRESS",
    "OMP_NUM_THREADS",
    "OMP_WAIT_POLICY",
    "TOKENIZERS_PARALLELISM",
    "HF_HOME",
    "HF_HUB_OFFLINE",
    "HF_HUB_DISABLE_TELEMETRY",
    "TQDM_DISABLE",
    "NCCL_DEBUG",
    "NCCL_SOCKET_IFNAME",
    "NCCL_IB_HCA",
    "GLOO_SOCKET_IFNAME",
)
"""Variables of the step that its training pods get too; nothing secret is among them."""


def train_job(
    name: str,
    spec: LauncherSpec,
    *,
    arguments: "list[str]",
    image: str,
    work: str,
    owner: Mapping[str, Any],
    environ: Mapping[str, str],
) -> dict[str, Any]:
    """The manifest.

    Args:
        name: Of the TrainJob.
        spec: Numbers, resources and places.
        arguments: Of ``proxykd.launching.node``: module and job's file.
        image: Of the pods.
        work: Hash of what is to be done, by which it is known again.
        owner: Reference to what it goes with; {} = nothing.
        environ: The step's environment, of which ``PASSED_ON`` is passed on.
    """
    body = copy.deepcopy(_template())
    metadata, wanted = body["metadata"], body["spec"]
    metadata |= {"name": name, "annotations": {WORK_ANNOTATION: work}}
    metadata["labels"] |= {
        label: value for label, value in {QUEUE_LABEL: spec.queue, PRIORITY_LABEL: spec.priority}.items() if value
    }
    metadata |= {"ownerReferences": [dict(owner)]} if owner else {}
    wanted["runtimeRef"]["name"] = spec.runtime
    wanted["trainer"] |= {
        "image": image,
        "args": arguments,
        "numNodes": spec.nodes,
        "numProcPerNode": spec.processes_per_node,
        "env": [{"name": key, "value": value} for key, value in _environment(spec, environ).items()],
    }
    if resources := _resources(spec):
        wanted["trainer"]["resourcesPerNode"] = resources
    wanted["runtimePatches"] = [{"manager": MANAGER, "trainingRuntimeSpec": _patch(spec)}]
    return body


def _environment(spec: LauncherSpec, environ: Mapping[str, str]) -> dict[str, str]:
    """What of the step's environment goes along; threads are those of the training's own processors."""
    found = {key: environ[key] for key in PASSED_ON if key in environ}
    if spec.cpu:
        found["OMP_NUM_THREADS"] = str(max(1, floor(amount(spec.cpu)) // spec.processes_per_node))
    return found


@cache
def _template() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(TEMPLATE.read_text(encoding="utf-8"))
    return read


def _resources(spec: LauncherSpec) -> dict[str, dict[str, str]]:
    """Requests and limits; processors have no limit, as throttling a trainer helps nobody."""
    given = {"memory": spec.memory, STORAGE: spec.scratch, GPU: str(spec.gpus) if spec.gpus else None}
    both = {name: amount for name, amount in given.items() if amount}
    found = {"requests": {**({"cpu": spec.cpu} if spec.cpu else {}), **both}, "limits": both}
    return {key: value for key, value in found.items() if value}


def _patch(spec: LauncherSpec) -> dict[str, Any]:
    pod: dict[str, Any] = {"terminationGracePeriodSeconds": spec.grace_s}
    if spec.node_selectors:
        pod["nodeSelector"] = dict(spec.node_selectors)
    if spec.tolerations:
        pod["tolerations"] = [dict(one) for one in spec.tolerations]
    # Merged by name with the runtime's folders: only their sizes change.
    sizes = {"shm": spec.shm, "tmp": spec.scratch, "home": spec.scratch}
    if volumes := [{"name": name, "emptyDir": {"sizeLimit": size}} for name, size in sizes.items() if size]:
        pod["volumes"] = volumes
    replicated = {"name": REPLICATED_JOB, "template": {"spec": {"template": {"spec": pod}}}}
    return {"template": {"spec": {"replicatedJobs": [replicated]}}}

"""What a run made on the cluster double, held against schemas and policy."""

import json
from typing import Any

from cluster.run_entry import COMMAND
from cluster.step_entry import SOURCE
from tests.k8s.kinds import CORE
from tests.k8s.policy import check
from tests.k8s.schemas import SUPPORTED, faults
from tests.support.kubectl import render
from tests.support.platform import Platform
from tests.support.program import CHECKOUT


def owner_of(found: Any) -> str:
    """Kind of what an object goes with; "" = nothing."""
    return next((str(one["kind"]) for one in found["metadata"].get("ownerReferences") or []), "")


def check_objects(platform: Platform, seen: list[Any], runtime: list[Any]) -> None:
    """Every object of the run, its training's too, is strictly valid, passes the policy, and shows no secret.

    Args:
        platform: What ran it.
        seen: Its TrainJob and that one's Job.
        runtime: What they refer to.
    """
    overlay = [*render(CHECKOUT / "k8s" / "overlays" / "local"), *runtime]
    jobs, pods = (platform.cluster.api.store.list(CORE[kind], "proxykd") for kind in ("Job", "Pod"))
    trained = [one for one in seen if one["kind"] == "TrainJob" or owner_of(one) == "TrainJob"]
    made = [*jobs, *pods, *seen]
    assert not [told for version in SUPPORTED for found in made for told in faults(found, version)]
    assert {one["kind"] for one in seen} == {"TrainJob", "Job"}
    assert check([*overlay, *jobs, *trained]) == check(overlay)
    assert platform.zenml.key not in json.dumps(made)
    begun: dict[bool, list[list[str]]] = {is_step: [] for is_step in (False, True)}
    for job in jobs:
        begun["step_name" in job["metadata"]["labels"]].append(words_of(job))
    assert all(begun.values())
    assert all(SOURCE in words for words in begun[True])
    assert all(words[: len(COMMAND)] == list(COMMAND) for words in begun[False])
    tokens = _tokens(jobs)
    assert len(tokens) == len(jobs)
    assert all("value" not in one and one["valueFrom"]["secretKeyRef"]["name"] for one in tokens)


def words_of(job: Any) -> list[str]:
    """What its pod's container begins with."""
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return [*container["command"], *container.get("args", [])]


def _tokens(jobs: list[Any]) -> list[Any]:
    containers = [container for job in jobs for container in job["spec"]["template"]["spec"]["containers"]]
    return [one for container in containers for one in container["env"] if one["name"] == "ZENML_STORE_API_TOKEN"]

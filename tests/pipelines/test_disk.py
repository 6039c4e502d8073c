"""The disk that a placement gives is the container's own limit, or a namespace's default evicts the pod before."""

import pytest

from pipelines.placement import step_options
from proxykd.config.placement import load_placement
from proxykd.config.stack import ClusterStackSpec, load_stack
from proxykd.config.steps import STEPS
from tests.support.program import CHECKOUT


@pytest.mark.parametrize("name", ["cpu", "gpu", "large", "pools"])
def test_the_disk_of_a_placement_is_request_and_limit_of_the_container(name: str) -> None:
    stack, placement = load_stack("kubernetes"), load_placement(CHECKOUT / "k8s" / "placements" / f"{name}.yaml")
    assert isinstance(stack, ClusterStackSpec)
    for step in STEPS:
        resources = step_options(stack, placement, step)["settings"]["orchestrator"].pod_settings.resources
        given = {resources[side]["ephemeral-storage"] for side in ("requests", "limits")}
        assert given == {placement.step(step).scratch}

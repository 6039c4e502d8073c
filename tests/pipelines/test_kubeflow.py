"""What Kubeflow Pipelines is sent for the main job: the committed file, and nothing secret in it."""

from kfp import components

from tests.support.program import CHECKOUT

GOLDEN = CHECKOUT / "tests" / "pipelines" / "golden" / "distill.yaml"


def test_the_committed_pipeline_is_one_to_kfp() -> None:
    component = components.load_component_from_file(str(GOLDEN))
    assert component.component_spec.name == "distill"

"""The orchestrator lets a few harmless variables through, and sends no pipeline in which a credential stands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cluster.kubeflow_task import TaskPlacement
from proxykd.exceptions import ClusterError, ClusterUnreachableError, ConfigError
from tests.support.secrets import KEY
from tests.support.site import Site

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]
GIVEN = {
    "ZENML_STORE_API_TOKEN": KEY,
    "ZENML_STORE_URL": "https://zenml.invalid",
    "ZENML_ACTIVE_STACK_ID": "stack",
    "MINE": "harmless",
}


def submit(task: TaskPlacement, folder: Path) -> str:
    """What would be sent of a pipeline with one step, to which ZenML gives ``GIVEN``."""
    from zenml import pipeline, step
    from zenml.config.compiler import Compiler
    from zenml.config.pipeline_run_configuration import PipelineRunConfiguration

    from cluster.kubeflow_orchestrator import check_withheld
    from pipelines import kubeflow
    from proxykd.config.stack import load_stack

    class Checking(kubeflow._Compiling):
        def _upload_and_run_pipeline(self, snapshot: Any, pipeline_file_path: str, run_name: str) -> None:
            check_withheld(Path(pipeline_file_path).read_text(encoding="utf-8"), self._withheld)
            super()._upload_and_run_pipeline(snapshot, pipeline_file_path, run_name)

    @step
    def split() -> None:
        """Nothing."""

    @pipeline
    def one() -> None:
        split()

    one.prepare()
    found: Any = load_stack("kubeflow")
    orchestrator, place = kubeflow._stack_of(found)
    orchestrator.__class__, orchestrator.folder = Checking, str(folder)
    settings = {"split": {"settings": {"orchestrator": {"task": task.model_dump(mode="json")}}}}
    configuration = PipelineRunConfiguration.model_validate({"steps": settings})
    compiled = Compiler().compile(pipeline=one, stack=place, run_configuration=configuration)
    build = kubeflow._Build(found.image)
    snapshot = kubeflow._Snapshot(compiled.step_configurations, compiled.pipeline_configuration, build)
    orchestrator.submit_pipeline(snapshot, place, GIVEN, {"split": GIVEN})
    return str(orchestrator.text)


def test_what_zenml_gives_passes_only_if_it_is_known_to_be_harmless(tmp_path: Path) -> None:
    text = submit(TaskPlacement(environment={"OWN": "shown"}), tmp_path)
    assert "ZENML_ACTIVE_STACK_ID" in text
    assert "shown" in text
    for hidden in (KEY, "ZENML_STORE", "zenml.invalid", "MINE", "harmless"):
        assert hidden not in text


def test_a_credential_that_came_another_way_stops_the_pipeline(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without credentials") as caught:
        submit(TaskPlacement(environment={"ADDRESS": f"https://user:{KEY}@teacher.invalid"}), tmp_path)
    assert KEY not in str(caught.value)


@pytest.mark.parametrize(
    ("health", "error", "words"),
    [
        (200, ClusterError, r"it refused: 404 .*identity that submits"),
        (503, ClusterUnreachableError, r"did not answer \(.*hostname or context"),
    ],
)
def test_a_run_that_is_not_taken_is_one_message(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, health: int, error: type[ClusterError], words: str
) -> None:
    import kfp
    from zenml.integrations.kubeflow.orchestrators.kubeflow_orchestrator import KubeflowOrchestrator

    from cluster.kubeflow_flavor import PlacedKubeflowSettings
    from cluster.kubeflow_orchestrator import PlacedKubeflowOrchestrator
    from pipelines import kubeflow
    from proxykd.config.stack import load_stack

    monkeypatch.setattr("kfp.client.client.time", SimpleNamespace(sleep=lambda _: None))
    site.pages = {"/apis/v2beta1/healthz": (health, "{}")}
    address = f"http://127.0.0.1:{site.server_port}"
    monkeypatch.setattr(KubeflowOrchestrator, "_get_kfp_client", lambda *_, **__: kfp.Client(host=address))
    monkeypatch.setattr(PlacedKubeflowOrchestrator, "get_settings", lambda *_: PlacedKubeflowSettings())
    stack: Any = load_stack("kubeflow")
    orchestrator, _ = kubeflow._stack_of(stack)
    orchestrator.__class__ = PlacedKubeflowOrchestrator
    (tmp_path / "pipeline.yaml").write_text("{}")
    snapshot = SimpleNamespace(pipeline_configuration=SimpleNamespace(name="one"), schedule=None)
    with pytest.raises(error, match=f"take the run a-run, but .*{words}"):
        orchestrator._upload_and_run_pipeline(snapshot, str(tmp_path / "pipeline.yaml"), "a-run")

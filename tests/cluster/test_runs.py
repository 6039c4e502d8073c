"""What ZenML says of runs, out of its own store on this machine."""

from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from zenml.client import Client
from zenml.config.pipeline_configurations import PipelineConfiguration
from zenml.enums import ExecutionStatus
from zenml.models import PipelineRequest, PipelineRunRequest, PipelineSnapshotRequest

from cluster import runs

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("default")]


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Of a pipeline without steps, in the tests' own ZenML."""
    monkeypatch.chdir(tmp_path)
    client = Client()
    project = client.active_project.id
    pipeline = client.zen_store.create_pipeline(PipelineRequest(name=f"p-{uuid4()}", project=project))
    asked = PipelineSnapshotRequest(
        project=project,
        run_name_template="run",
        pipeline_configuration=PipelineConfiguration(name=pipeline.name),
        client_version="0",
        server_version="0",
        stack=client.active_stack_model.id,
        pipeline=pipeline.id,
    )
    yield str(client.zen_store.create_snapshot(asked).id)
    client.delete_pipeline(pipeline.id)


def submitted(snapshot: str) -> str:
    client = Client()
    pipeline = client.get_snapshot(snapshot).pipeline
    asked = PipelineRunRequest(
        project=client.active_project.id,
        name=f"run-{uuid4()}",
        snapshot=snapshot,
        pipeline=pipeline.id if pipeline else None,
        orchestrator_run_id=str(uuid4()),
        status=ExecutionStatus.RUNNING,
    )
    return str(client.zen_store.get_or_create_run(asked)[0].id)


def test_a_snapshot_with_many_runs_that_ended_and_a_late_one_is_in_use(
    snapshot: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "_PAGE", 2)
    for _ in range(3):
        assert runs.close(submitted(snapshot), "ended")
    assert runs.life_of_snapshot(snapshot) == "ended"
    late = [submitted(snapshot) for _ in range(3)]
    assert runs.life_of_snapshot(snapshot) == "under way"
    assert runs.life_of_snapshot(snapshot, closed=late[:2]) == "under way"
    assert runs.life_of_snapshot(snapshot, closed=late) == "ended"
    assert runs.life_of_snapshot(str(uuid4())) == "unknown"

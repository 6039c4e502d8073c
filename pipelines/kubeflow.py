"""A pipeline as Kubeflow Pipelines reads it, compiled without a cluster, a registry of images or a ZenML server.

The file is for reading: for review, for policy checks and to compare it from one commit to the next. It is what
``cluster.kubeflow_orchestrator`` submits but for the identifiers that a run gets from the ZenML server; these are zero.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from zenml.artifact_stores.local_artifact_store import LocalArtifactStore, LocalArtifactStoreConfig
from zenml.config.compiler import Compiler
from zenml.config.pipeline_run_configuration import PipelineRunConfiguration
from zenml.container_registries import DefaultContainerRegistryFlavor
from zenml.enums import StackComponentType
from zenml.stack import Stack
from zenml.utils import source_utils

import proxykd
from cluster.kubeflow_orchestrator import PlacedKubeflowConfig, PlacedKubeflowOrchestrator
from cluster.kubeflow_task import TaskPlacement
from pipelines.distill import distill
from proxykd.config import RunSpec
from proxykd.config.shielding import shielded

NOBODY = UUID(int=0)
"""In place of the identifiers that a ZenML server gives out."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MODELS = ("proxy", "student")


@dataclass(frozen=True, slots=True)
class _Build:
    image: str

    def get_image(self, **_: Any) -> str:
        return self.image


@dataclass(frozen=True, slots=True)
class _Snapshot:
    """What the orchestrator reads of a snapshot that is in no store."""

    step_configurations: Mapping[str, Any]
    pipeline_configuration: Any
    build: _Build
    id: UUID = NOBODY


class _Compiling(PlacedKubeflowOrchestrator):
    """Keeps the file instead of sending it."""

    folder: str
    text: str

    @property
    def pipeline_directory(self) -> str:
        return self.folder

    def _upload_and_run_pipeline(self, snapshot: Any, pipeline_file_path: str, run_name: str) -> None:
        text = Path(pipeline_file_path).read_text(encoding="utf-8")
        self.text = text.replace(run_name, snapshot.pipeline_configuration.name)


def compile_distillation(run: RunSpec, *, image: str, placements: Mapping[str, TaskPlacement]) -> str:
    """The main job's intermediate representation.

    Args:
        run: The resolved specification; only which steps it has is told by it.
        image: Of every pod.
        placements: Step -> what its pod needs; ``default`` stands for every other step.

    Returns:
        Two YAML documents: the pipeline, and what Kubernetes needs to know of it.
    """
    source_utils.set_custom_source_root(str(Path(proxykd.__file__).parents[1]))
    pipeline = distill.copy()
    pipeline.prepare(
        specification=shielded(run.model_dump(mode="json")),
        inputs="",
        models=dict.fromkeys(_MODELS, ""),
        files="",
        trajectories="",
        task_files="",
        baseline=None,
    )
    return compile_pipeline(pipeline, image=image, placements=placements)


def compile_pipeline(pipeline: Any, *, image: str, placements: Mapping[str, TaskPlacement]) -> str:
    """The intermediate representation of any prepared ZenML pipeline; arguments as above."""
    orchestrator = _component(
        _Compiling, PlacedKubeflowConfig(kubeflow_hostname="https://kubeflow.invalid/pipeline"), "orchestrator"
    )
    registry = DefaultContainerRegistryFlavor()
    parts = {
        "orchestrator": orchestrator,
        "artifact_store": _component(LocalArtifactStore, LocalArtifactStoreConfig(path=""), "artifact_store"),
        "container_registry": _component(
            registry.implementation_class, registry.config_class(uri="registry.invalid"), "container_registry"
        ),
    }
    stack = Stack(id=NOBODY, name="compiling", **parts)
    steps = {
        name: {"settings": {"orchestrator": {"task": _placement(name, placements).model_dump(mode="json")}}}
        for name in pipeline.invocations
    }
    configuration = PipelineRunConfiguration.model_validate({"steps": steps})
    compiled = Compiler().compile(pipeline=pipeline, stack=stack, run_configuration=configuration)
    snapshot = _Snapshot(compiled.step_configurations, compiled.pipeline_configuration, _Build(image))
    with tempfile.TemporaryDirectory() as orchestrator.folder:
        orchestrator.submit_pipeline(snapshot, stack, {}, {name: {} for name in compiled.step_configurations})
    return str(orchestrator.text)


def _placement(step: str, placements: Mapping[str, TaskPlacement]) -> TaskPlacement:
    return placements.get(step) or placements.get("default") or TaskPlacement()


def _component(component: Any, config: Any, kind: str) -> Any:
    return component(
        name=kind,
        id=NOBODY,
        config=config,
        flavor="compiling",
        type=StackComponentType(kind),
        user=None,
        created=_EPOCH,
        updated=_EPOCH,
    )

"""A pipeline as Kubeflow Pipelines reads it, compiled without a cluster, a registry of images or a ZenML server.

The file is for reading: for review, for policy checks, and to compare it from one commit to the next. It is what
``cluster.kubeflow_orchestrator`` submits but for what a run gets from the ZenML server: its name and three identifiers,
which are zero here.
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
from cluster.kubeflow_flavor import PlacedKubeflowConfig
from cluster.kubeflow_orchestrator import PlacedKubeflowOrchestrator
from pipelines.distill import distill
from pipelines.kubeflow_placement import kubeflow_options
from pipelines.submitting import shards_of
from proxykd.config import RunSpec
from proxykd.config.placement import load_placement
from proxykd.config.shielding import shielded
from proxykd.config.stack import KubeflowStackSpec, StackSpec
from proxykd.config.steps import check_shards
from proxykd.exceptions import ConfigError

NOBODY = UUID(int=0)
"""In place of the identifiers that a ZenML server gives out."""
SERVER_VARIABLES = {"ZENML_ACTIVE_PROJECT_ID": str(NOBODY), "ZENML_ACTIVE_STACK_ID": str(NOBODY),
                    "ZENML_DISABLE_CREDENTIALS_DISK_CACHING": "true"}  # fmt: skip
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ROLES = ("proxy", "student")


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

    folder = ""
    text = ""

    @property
    def pipeline_directory(self) -> str:
        return self.folder

    def _upload_and_run_pipeline(self, snapshot: Any, pipeline_file_path: str, run_name: str) -> None:
        text = Path(pipeline_file_path).read_text(encoding="utf-8")
        self.text = text.replace(run_name, snapshot.pipeline_configuration.name)


def compile_distillation(run: RunSpec, stack: StackSpec, *, shards: Mapping[str, int] | None = None) -> str:
    """The main job's intermediate representation.

    Args:
        run: The resolved specification, of which this shows only which steps it has.
        stack: Where it would run.
        shards: Step -> in how many parts its prompts are worked on; of those left out the placement says it.

    Returns:
        Two YAML documents: the pipeline, and what Kubernetes needs to know of it.

    Raises:
        ConfigError: if the stack is not one of Kubeflow Pipelines, its placement asks for what these cannot give, or a
            step cannot be divided.
    """
    if not isinstance(stack, KubeflowStackSpec):
        raise ConfigError(f"expected a stack of kind kubeflow, got {stack.name} of kind {stack.kind}; name another one")
    source_utils.set_custom_source_root(str(Path(proxykd.__file__).parents[1]))
    divided = {**shards_of(run, stack), **(shards or {})}
    check_shards(run, divided)
    pipeline = distill.copy()
    pipeline.prepare(
        specification=shielded(run.model_dump(mode="json")),
        inputs="",
        models=dict.fromkeys(_ROLES, ""),
        files="",
        trajectories="",
        task_files="",
        baseline=None,
        portions=divided or None,
    )
    return compile_pipeline(pipeline, stack)


def compile_pipeline(pipeline: Any, stack: KubeflowStackSpec) -> str:
    """The same of any ZenML pipeline that is prepared."""
    orchestrator, place = _stack_of(stack)
    options = kubeflow_options(stack, load_placement(stack.placement), tuple(pipeline.invocations))
    steps, settings = options["step_configurations"], options["settings"]
    configuration = PipelineRunConfiguration.model_validate({"steps": steps, "settings": settings})
    compiled = Compiler().compile(pipeline=pipeline, stack=place, run_configuration=configuration)
    snapshot = _Snapshot(compiled.step_configurations, compiled.pipeline_configuration, _Build(stack.image))
    environments = {name: dict(SERVER_VARIABLES) for name in compiled.step_configurations}
    with tempfile.TemporaryDirectory() as orchestrator.folder:
        orchestrator.submit_pipeline(snapshot, place, dict(SERVER_VARIABLES), environments)
    return str(orchestrator.text)


def _stack_of(stack: KubeflowStackSpec) -> tuple[_Compiling, Stack]:
    """A stack of ZenML's that is registered nowhere: compiling reads nothing but its settings."""
    registry = DefaultContainerRegistryFlavor()
    orchestrator = _component(_Compiling, PlacedKubeflowConfig(kubernetes_context=stack.context), "orchestrator")
    store = _component(LocalArtifactStore, LocalArtifactStoreConfig(path=""), "artifact_store")
    images = _component(
        registry.implementation_class, registry.config_class(uri=stack.container_registry), "container_registry"
    )
    parts = {"orchestrator": orchestrator, "artifact_store": store, "container_registry": images}
    return orchestrator, Stack(NOBODY, stack.name, **parts)


def _component(component: Any, config: Any, kind: str) -> Any:
    times = {"created": _EPOCH, "updated": _EPOCH}
    place = {"id": NOBODY, "name": kind, "flavor": "compiling", "type": StackComponentType(kind)}
    return component(config=config, user=None, **place, **times)

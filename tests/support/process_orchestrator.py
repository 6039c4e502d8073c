"""A ZenML orchestrator that runs each step as a cluster does: a bare process that shares nothing with the others.

Every step gets an empty working directory, an empty home, a temporary folder of its own and few environment
variables; all three folders are gone when the step ends, so the artifact store alone can hand things over.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any
from uuid import uuid4

from zenml.entrypoints.step_entrypoint_configuration import StepEntrypointConfiguration
from zenml.orchestrators import BaseOrchestrator, BaseOrchestratorConfig, BaseOrchestratorFlavor

RUN_ID = "PROCESS_ORCHESTRATOR_RUN_ID"
ALLOWED = ("PATH", "PYTHONPATH", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "ZENML_CONFIG_PATH", "MLFLOW_TRACKING_URI")
"""What a pod would get, too: the code, the addresses of ZenML and MLflow, and the number of its cores."""


class Entrypoint(StepEntrypointConfiguration):
    """ZenML's own, less the import of every installed integration: the stack uses none, and it takes seconds."""

    def run(self) -> None:
        self.prepare_code_environment()
        self._run_step(step=self.step, snapshot=self.snapshot)


class ProcessOrchestrator(BaseOrchestrator):
    """Runs the steps one after the other, each in a process of its own."""

    @property
    def config(self) -> "ProcessOrchestratorConfig":
        return self._config  # type: ignore[return-value]

    def get_orchestrator_run_id(self) -> str:
        return os.environ[RUN_ID]

    def submit_pipeline(
        self,
        snapshot: Any,
        stack: Any,
        base_environment: dict[str, str],
        step_environments: dict[str, dict[str, str]],
        placeholder_run: Any = None,
    ) -> None:
        run_id = str(uuid4())
        for name in snapshot.step_configurations:
            arguments = Entrypoint.get_entrypoint_arguments(step_name=name, snapshot_id=snapshot.id)
            _, *entrypoint = Entrypoint.get_entrypoint_command()
            command = [sys.executable, *entrypoint, *arguments]
            self._run(name, command, {**step_environments[name], RUN_ID: run_id})

    def _run(self, name: str, command: list[str], environment: dict[str, str]) -> None:
        with tempfile.TemporaryDirectory(prefix="pod-") as pod:
            folders = {key: Path(pod) / key.lower() for key in ("HOME", "TMPDIR", "CWD")}
            for folder in folders.values():
                folder.mkdir()
            passed = {key: os.environ[key] for key in ALLOWED if key in os.environ}
            own = {"HOME": str(folders["HOME"]), "TMPDIR": str(folders["TMPDIR"]), "PROXYKD_HOME": self.config.journals}
            finished = subprocess.run(
                command,
                cwd=folders["CWD"],
                env={**environment, **passed, **own},
                capture_output=True,
                text=True,
                timeout=180,
            )
            left = sorted(path.name for key in ("TMPDIR", "CWD") for path in folders[key].glob("*proxykd*"))
            note = {"step": name, "status": finished.returncode, "left": left, "log": finished.stderr[-4000:]}
            with Path(self.config.notes).open("a", encoding="utf-8") as notes:
                notes.write(f"{note}\n")
            if finished.returncode:
                raise RuntimeError(f"step {name} failed:\n{finished.stdout[-4000:]}\n{finished.stderr[-4000:]}")


class ProcessOrchestratorConfig(BaseOrchestratorConfig):
    """Where the journal is kept (a volume, on a cluster) and where each step's end is written down."""

    journals: str
    notes: str


class ProcessOrchestratorFlavor(BaseOrchestratorFlavor):
    """What ZenML needs to know."""

    name = "process"
    config_class = ProcessOrchestratorConfig
    implementation_class = ProcessOrchestrator

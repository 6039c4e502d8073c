"""Where a run keeps its state on one machine, and the environment that points every engine there.

Everything is under one folder (``.proxykd`` below the current folder, or ``$PROXYKD_HOME``): the teacher's journal,
ZenML's database and artifacts, MLflow's database and artifacts. Variables that the user has set already win, so the
same run goes to a shared MLflow server or to another ZenML stack without a change here.
"""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Workspace:
    """The folder of a run's state.

    Attributes:
        root: Absolute path of the folder.
    """

    root: Path

    @classmethod
    def default(cls) -> "Workspace":
        """``$PROXYKD_HOME``, else ``.proxykd`` below the current folder."""
        return cls(Path(os.environ.get("PROXYKD_HOME", ".proxykd")).resolve())

    @property
    def journal(self) -> Path:
        """The teacher's journal: every paid response, shared by all runs of the workspace."""
        return self.root / "journal.sqlite"

    @property
    def mlflow_uri(self) -> str:
        """Tracking address of the embedded MLflow."""
        return f"sqlite:///{self.root / 'mlflow.db'}"

    def environment(self) -> dict[str, str]:
        """Variables that keep ZenML, MLflow and Great Expectations inside the workspace and quiet."""
        return {
            "PROXYKD_HOME": str(self.root),
            "ZENML_CONFIG_PATH": str(self.root / "zenml"),
            "ZENML_ANALYTICS_OPT_IN": "false",
            "ZENML_LOGGING_VERBOSITY": "CRITICAL",
            "ZENML_ENABLE_RICH_TRACEBACK": "false",
            "AUTO_OPEN_DASHBOARD": "false",
            "MLFLOW_TRACKING_URI": self.mlflow_uri,
            "GX_ANALYTICS_ENABLED": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_LOGGING_LEVEL": "WARNING",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            # No bars but the house's own, which say so, and the hub's downloads, which end with the terminal.
            "TQDM_DISABLE": "1",
            # Threads that wait sleep instead of spinning: beside any other load, spinning is ten times slower.
            "OMP_WAIT_POLICY": "PASSIVE",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def set_environment(self) -> None:
        """Set those variables of ``environment`` that are not set yet; some count only before an engine is imported."""
        for name, value in self.environment().items():
            os.environ.setdefault(name, value)

    def enter(self) -> None:
        """Create the folder and set the environment.

        Raises:
            OSError: if the folder cannot be created.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        self.set_environment()

    def publish(self, page: Path, name: str) -> Path:
        """Copy a report to where a person finds it, ``reports/NAME``; the newest one of a name stays."""
        destination = self.root / "reports" / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, destination)
        return destination

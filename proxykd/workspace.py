"""Where a run keeps its state on one machine, and the environment that points every engine there.

Everything is under one folder (``.proxykd`` below the current folder, or ``$PROXYKD_HOME``): the teacher's journal,
ZenML's database and artifacts, MLflow's database and artifacts. Variables that the user has set already win, so the
same run goes to a shared MLflow server or to another ZenML stack without a change here.
"""

import fcntl
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from proxykd.exceptions import BusyError, StorageError

ENGINES = ("ZENML_", "MLFLOW_")
"""How the names of the engines' variables begin."""
HOME_VARIABLE = "PROXYKD_HOME"
HOLDER = "holder.json"
"""Names the run whose steps write into a workspace that is a volume."""
_LEFT_S = 86_400.0
"""Age from which a temporary folder that nobody works in was left: an artifact's is in the store long before."""


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
        return cls(Path(os.environ.get(HOME_VARIABLE, ".proxykd")).resolve())

    @property
    def journal(self) -> Path:
        """The teacher's journal: every paid response, shared by all runs of the workspace."""
        return self.root / "journal.sqlite"

    @property
    def portions(self) -> Path:
        """Where portions of the prompts that are asked apart keep their journals."""
        return self.root / "portions"

    def accepted(self, name: str) -> Path:
        """What the last accepted runs called ``name`` measured: the baseline of the next one's drift."""
        return self.root / "accepted" / f"{name}.json"

    @property
    def reports(self) -> Path:
        """The reports of finished runs, ``NAME.html`` and ``NAME.md``."""
        return self.root / "reports"

    @property
    def tmp(self) -> Path:
        """Temporary folders, on the disk whose space the plan has checked."""
        return self.root / "tmp"

    @property
    def mlflow_database(self) -> Path:
        """Runs and registry of the embedded MLflow."""
        return self.root / "mlflow.db"

    @property
    def mlflow_uri(self) -> str:
        """Tracking address of the embedded MLflow."""
        return f"sqlite:///{self.mlflow_database}"

    def environment(self) -> dict[str, str]:
        """Variables that keep ZenML, MLflow and Great Expectations inside the workspace and quiet."""
        return {
            HOME_VARIABLE: str(self.root),
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
        """Set those variables of ``environment`` that are not set yet; some count only before an engine is imported.

        An empty variable counts as not set: CI passes on empty what nobody told it.
        """
        for name in [name for name, value in os.environ.items() if not value and name.startswith(ENGINES)]:
            del os.environ[name]
        for name, value in self.environment().items():
            os.environ.setdefault(name, value)

    def enter(self) -> None:
        """Create the folder and set the environment.

        Raises:
            StorageError: if the folder cannot be made.
        """
        _make(self.root)
        self.set_environment()

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other runs out of the workspace, and clear away the temporary folders of those that were killed.

        The system gives the lock back when the process ends, however it ends.

        Raises:
            BusyError: if another run has it; names that run's process.
            StorageError: if the folder cannot be made, or its disk knows no locks.
        """
        _make(self.root)
        with (self.root / "run.lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise BusyError(
                    f"expected no other run in the workspace {self.root}, but process {file.read().strip() or '?'} is "
                    "running there; wait for its end, or set PROXYKD_HOME to another folder"
                ) from None
            except OSError as error:
                raise StorageError(f"cannot lock {file.name}: {error}; set PROXYKD_HOME to a local disk") from error
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            self._empty_tmp()
            yield

    @contextmanager
    def temporary_folder(self, name: str, *, is_kept: bool = False) -> Iterator[Path]:
        """An empty folder in ``tmp``, removed at the end; a workspace that did not exist does not exist again then.

        It is locked meanwhile, so that a run that starts beside whoever works in it leaves it alone.

        Args:
            name: For people who look into ``tmp``.
            is_kept: Whether it is removed after a failure only.
        """
        is_new = not self.root.exists()
        _make(self.tmp)
        # On a volume that many pods see, nobody has the workspace's lock.
        self._empty_tmp(older_than_s=_LEFT_S)
        folder = Path(tempfile.mkdtemp(prefix=f"proxykd-{name}-", dir=self.tmp))
        is_done = False
        try:
            with _flock(folder):
                yield folder
            is_done = True
        finally:
            if not (is_done and is_kept):
                shutil.rmtree(folder, ignore_errors=True)
            if is_new:
                with suppress(OSError):  # not empty any more
                    self.tmp.rmdir()
                    self.root.rmdir()

    def take(self, run_id: str, name: str, *, is_in_the_way: Callable[[str], bool]) -> None:
        """Be the one run whose steps write here, on a volume that pods of several runs see.

        Steps of one run may work here side by side. Where the disk knows locks, no two runs decide at the same moment;
        where it knows none, a run that was overtaken meanwhile is refused at its next step.

        Args:
            run_id: Identity of the run.
            name: Its name.
            is_in_the_way: Whether the run of an identity, which was here last, may still write.

        Raises:
            BusyError: if that one may; names it.
            OSError: if the folder cannot be written.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "holder.lock").open("w") as file:
            with suppress(OSError):  # the disk knows no locks
                fcntl.flock(file, fcntl.LOCK_EX)
            holder = self._holder()
            if holder.get("run_id") == run_id:
                return
            if holder and is_in_the_way(holder["run_id"]):
                raise BusyError(
                    f"expected no other run at work in {self.root}, but {holder['name']} is under way there, and two "
                    f"would write one journal and one checkpoint; look at it with `proxykd runs {holder['name']}` and "
                    "wait for its end (`proxykd gc --stack STACK --yes` closes it if its pods are gone), then run again"
                )
            partial = self.root / f"{HOLDER}.{uuid4().hex}"
            partial.write_text(json.dumps({"run_id": run_id, "name": name}), encoding="utf-8")
            os.replace(partial, self.root / HOLDER)

    def _holder(self) -> dict[str, str]:
        """Which run was here last; {} = none was."""
        try:
            found: dict[str, str] = json.loads((self.root / HOLDER).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        return found

    def _empty_tmp(self, *, older_than_s: float = 0.0) -> None:
        """Remove the temporary folders of killed processes, in which nobody works any more."""
        for folder in self.tmp.glob("proxykd-*"):
            with suppress(FileNotFoundError):  # another step was faster
                if time.time() - folder.stat().st_mtime >= older_than_s:
                    with _flock(folder) as is_unused:
                        if is_unused:
                            shutil.rmtree(folder, ignore_errors=True)

    def publish(self, page: Path, name: str) -> Path:
        """Copy a report to where a person finds it, ``reports/NAME``; the newest one of a name stays."""
        destination = self.reports / name
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(page, destination)
        return destination


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"expected to make the folder {folder}: {error.strerror}; free some space, mend the permission, or set "
            f"{HOME_VARIABLE} to another folder"
        ) from error


@contextmanager
def _flock(folder: Path) -> Iterator[bool]:
    """Lock a folder if that can be done at once; whether it was (some disks know no locks).

    The lock is a file beside it: of a file, a network disk tells all machines, of a folder only the own one.
    """
    path = folder.with_name(f".{folder.name}.lock")
    descriptor = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)

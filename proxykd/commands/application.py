"""The application beside the library, for commands: its modules, and the environment in which its engines answer.

Nothing of it is imported before a command needs it, and no engine before the environment is set.
"""

import atexit
import gc
import importlib.util
import os
from pathlib import Path
from typing import Any

from proxykd.commands.disk import refuse_damaged
from proxykd.exceptions import ConfigError, ModelError

_ENGINES = ("zenml", "mlflow", "great_expectations")


def with_tracking(module: str) -> Any:
    """A module that reads the registry, in an environment where MLflow answers.

    Args:
        module: Its dotted name.

    Raises:
        ConfigError: if the application is not installed, or no tracking server answers.
        ModelError: if the workspace has no registry yet, which MLflow would take seconds to make, and to find empty.
    """
    from proxykd.workspace import Workspace

    find_application(module)
    workspace = Workspace.default()
    is_own = (os.environ.get("MLFLOW_TRACKING_URI") or workspace.mlflow_uri) == workspace.mlflow_uri
    if is_own and not os.environ.get("MLFLOW_REGISTRY_URI") and not workspace.mlflow_database.exists():
        raise ModelError(
            f"expected a registry in {workspace.mlflow_database}, found none: no run has registered a model there; run "
            "a specification first, or set PROXYKD_HOME or MLFLOW_TRACKING_URI to where one did"
        )
    _enter()
    check_tracking()
    return import_application(module)


def with_engines(module: str) -> Any:
    """A module in an environment where ZenML answers.

    Args:
        module: Its dotted name.

    Raises:
        ConfigError: if the application is not installed.
    """
    _enter()
    return import_application(module)


def has_runs() -> bool:
    """Whether ZenML may know of runs; False where it would keep them in the workspace, and has kept none there yet."""
    from proxykd.workspace import Workspace

    own = Workspace.default().environment()["ZENML_CONFIG_PATH"]
    is_elsewhere = (os.environ.get("ZENML_CONFIG_PATH") or own) != own or bool(os.environ.get("ZENML_STORE_URL"))
    return is_elsewhere or Path(own).exists()


def check_tracking() -> None:
    """One call to the tracking server, where there is one, and else a look at the workspace's database.

    Raises:
        ConfigError: if the server does not answer, or refuses us.
        StorageError: if the database is none.
    """
    from proxykd.workspace import Workspace

    refuse_damaged(Workspace.default().mlflow_database)
    server = import_application("steps.adapters.tracking_server")
    server.check_tracking_server(os.environ["MLFLOW_TRACKING_URI"])


def import_application(module: str) -> Any:
    """Import a module of the checkout: the pipelines are the application, and the wheel holds the library alone.

    Args:
        module: Its dotted name.

    Raises:
        ConfigError: if the application is not installed.
    """
    find_application(module)
    return importlib.import_module(module)


def find_application(module: str) -> None:
    """Check, without importing anything, that the application and its engines are installed.

    Args:
        module: Dotted name of one of its modules.

    Raises:
        ConfigError: naming what is not there.
    """
    package = module.partition(".")[0]
    missing = [name for name in (package, *_ENGINES) if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"expected proxykd's checkout with the extra `pipeline`, found no {', '.join(missing)}: the wheel holds "
            "the library alone; clone the repository and run `make install` there"
        )


def spare_the_collector() -> None:
    """Collect cycles rarely: the engines hold a million objects that stay to the end.

    Looking through them time and again, and once more when the interpreter ends, takes seconds.
    """
    gc.set_threshold(100_000)
    atexit.register(gc.freeze)


def _enter() -> None:
    from proxykd.progress import hush_engines
    from proxykd.workspace import Workspace

    spare_the_collector()
    Workspace.default().enter()
    hush_engines()

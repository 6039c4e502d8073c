"""What a step is told, the sections of the specification that it declares, and the folders that it works in.

The sections are step parameters, as the hash of the step's code is: ZenML's cache key changes when, and only when,
something that the step depends on does.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from proxykd.config import RunSpec
from proxykd.config.shielding import shielded
from proxykd.records import hash_json
from proxykd.workspace import HOME_VARIABLE, Workspace


def settings_for(run: RunSpec, *sections: str) -> dict[str, Any]:
    """The named sections of the run as plain JSON values, shielded; ``RunSpec.view`` reads them."""
    plain = run.model_dump(mode="json")
    return {name: shielded(plain[name]) for name in sections}


@contextmanager
def new_folder(name: str) -> Iterator[Path]:
    """An empty temporary folder for the files of an artifact.

    It outlives the context: the materializer removes it once its files are in the artifact store. If the step fails,
    it is removed here.
    """
    with workspace().temporary_folder(name, is_kept=True) as folder:
        yield folder


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty temporary folder that is removed at the end."""
    with workspace().temporary_folder("scratch") as folder:
        yield folder


def checkpoint_folder(models: Mapping[str, str], code: str) -> Path:
    """Where training that is killed leaves its checkpoints for the same command.

    Args:
        models: Identity of the models that are trained.
        code: Hash of the code that trains them: other code begins anew.
    """
    return checkpoints() / hash_json([dict(models), code])


def checkpoints() -> Path:
    """The folder of all ``checkpoint_folder``s."""
    return workspace().root / "checkpoints"


def workspace() -> Workspace:
    """Where temporary folders are: on the workspace's disk, or on the system's where a step has no workspace."""
    if HOME_VARIABLE in os.environ:
        return Workspace.default()
    return Workspace(Path(tempfile.gettempdir()) / f"proxykd-{os.getuid()}")

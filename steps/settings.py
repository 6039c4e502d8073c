"""What a step is told: the sections of the specification that it declares, and a hash of the code that it runs.

Both are step parameters, so ZenML's cache key changes when, and only when, something that the step depends on does.
"""

import ast
import hashlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import proxykd
from proxykd.config import RunSpec
from proxykd.config.shielding import shielded
from proxykd.exceptions import ClusterError
from proxykd.records import hash_json
from proxykd.workspace import HOME_VARIABLE, Workspace

CHECKOUT = Path(proxykd.__file__).parents[1]
CODE_SUFFIX, COMPILED_FOLDER = ".py", "__pycache__"


def settings_for(run: RunSpec, *sections: str) -> dict[str, Any]:
    """The named sections of the run as plain JSON values, shielded; ``RunSpec.view`` reads them."""
    plain = run.model_dump(mode="json")
    return {name: shielded(plain[name]) for name in sections}


@cache
def code_hash(module: str) -> str:
    """16 hex digits over a module, all of the checkout that it imports directly or not, and the data files of those.

    Imports are read from the sources, so that one inside a function counts too.

    Args:
        module: Dotted name, for example ``steps.split``.
    """
    digest = hashlib.sha256()
    for file in sorted(_with_data(_closure(_files_of(module)))):
        digest.update(file.relative_to(CHECKOUT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def require_code(module: str, told: str) -> None:
    """Refuse work of other code than the run was submitted with: its results would be kept as that code's.

    Args:
        module: The step's, for example ``steps.split``.
        told: ``code_hash`` of it where the run was submitted.

    Raises:
        ClusterError: if the module's own differs.
    """
    if (own := code_hash(module)) != told:
        raise ClusterError(
            f"expected the code that the run was submitted with, {told} of {module}, got {own}: this pod's image was "
            "made of another checkout; name in the stack an image that is made of the one you submit from (`make "
            "image`, `make push`), or submit from the one that this image was made of"
        )


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


def _closure(files: set[Path]) -> set[Path]:
    found: set[Path] = set()
    while files:
        found |= files
        sources = [file.read_bytes() for file in files]
        files = set().union(*(_files_of(name) for source in sources for name in _imports(source))) - found
    return found


@cache
def _imports(source: bytes) -> frozenset[str]:
    """By the text and not by the file's name: a file that changes is read anew, and all others are not."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


@cache
def _files_of(name: str) -> set[Path]:
    """The sources of a module of the checkout and of the packages above it; none for any other module."""
    parts = name.split(".")
    paths = [CHECKOUT.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)]
    candidates = [file for path in paths for file in (path / "__init__.py", path.with_suffix(CODE_SUFFIX))]
    return {file for file in candidates if file.is_file()}


def _package_of(file: Path) -> Path:
    """The folder of the nearest package above a file: a room's data are not those of the rooms inside it."""
    return next(folder for folder in file.parents if (folder / "__init__.py").exists() or folder == CHECKOUT)


def _with_data(files: set[Path]) -> set[Path]:
    rooms = {file.parent for file in files if file.parent.parent != CHECKOUT and file.parent != CHECKOUT}
    data = {file for room in rooms for file in room.rglob("*") if file.is_file() and _package_of(file) == room}
    # Compilers leave their work beside the sources while a run is under way, and desktops hidden files.
    own = {file for file in data if file.parent.name != COMPILED_FOLDER and not file.name.startswith(".")}
    return files | {file for file in own if file.suffix != CODE_SUFFIX}

"""Which code a module is: its own, all that it imports, and the data files beside them, as one hash.

Results are kept under the hash of the code that made them, so whoever works for a run compares its own with the run's.
"""

import ast
import hashlib
import re
from functools import cache
from pathlib import Path

import proxykd
from proxykd.exceptions import CodeError

CHECKOUT = Path(proxykd.__file__).parents[1]
ROOMS = ("cluster", "pipelines", "proxykd", "steps")
"""Packages of the checkout; beside an installed library lie all others."""
_SUFFIX = ".py"
_NO_DATA = re.compile(r"__pycache__$|\.|#|kubeconfig|.*(~|\.(bak|db|env|ini|key|orig|p12|pem|pyc|rej|save|swp))$")
"""Names of files and folders that compilers, editors and desktops leave, or that no image takes in (.dockerignore)."""
_MODULE = re.compile(r"\w+(\.\w+)+")


@cache
def code_hash(module: str) -> str:
    """16 hex digits over a module, all of the checkout that it imports directly or not, and the data files of those.

    Imports are read from the sources, so that one inside a function counts too; so does a module that a string names,
    as programs are started by their names. A process keeps to what it found first.

    Args:
        module: Dotted name, for example ``steps.split``.
    """
    return _hash_now(module)


def _hash_now(module: str) -> str:
    digest = hashlib.sha256()
    for file in code_files(module):
        digest.update(file.relative_to(CHECKOUT).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:16]


def code_files(module: str) -> list[Path]:
    """The files that a module's hash is over, sorted."""
    return sorted(_with_data(_closure(_files_of(module))))


def require_code(module: str, told: str) -> None:
    """Refuse work of other code than the run was submitted with: its results would be kept as that code's.

    Args:
        module: Dotted name, for example ``steps.split``.
        told: ``code_hash`` of it where the run was submitted.

    Raises:
        CodeError: if the module's own differs.
    """
    if (own := _hash_now(module)) != told:
        raise CodeError(
            f"expected the code that the run was submitted with, {told} of {module}, got {own}. On a cluster: the "
            "image holds other code than the checkout that submitted; build and push that one's image (`make image`, "
            "`make push`), write it into the stack, and apply the stack and its schedules again. On one machine: the "
            "code was changed during the run; run the same command again"
        )


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
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and _MODULE.fullmatch(node.value):
            names.add(node.value)
    return frozenset(names)


@cache
def _files_of(name: str) -> set[Path]:
    """The sources of a module of the checkout and of the packages above it; none for any other module."""
    parts = name.split(".")
    if parts[0] not in ROOMS:
        return set()
    paths = [CHECKOUT.joinpath(*parts[:length]) for length in range(1, len(parts) + 1)]
    candidates = [file for path in paths for file in (path / "__init__.py", path.with_suffix(_SUFFIX))]
    return {file for file in candidates if file.is_file()}


def _package_of(file: Path) -> Path:
    """The folder of the nearest package above a file: a room's data are not those of the rooms inside it."""
    return next(folder for folder in file.parents if (folder / "__init__.py").exists() or folder == CHECKOUT)


def _with_data(files: set[Path]) -> set[Path]:
    rooms = {file.parent for file in files if file.parent.parent != CHECKOUT and file.parent != CHECKOUT}
    return files.union(*(_data_of(room) for room in rooms))


def _data_of(room: Path) -> set[Path]:
    """The data files of a package, without those of packages inside it."""
    found = set()
    for file in room.rglob("*"):
        is_data = file.suffix != _SUFFIX and not any(map(_NO_DATA.match, file.relative_to(room).parts))
        if is_data and file.is_file() and _package_of(file) == room:
            found.add(file)
    return found

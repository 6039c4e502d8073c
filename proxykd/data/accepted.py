"""What accepted runs measured: the baseline against which the next run of the same name is held.

A run is accepted when it has come to its end, past every gate. The file keeps the last accepted corpus and the one
before it, so that a run that is repeated on the same corpus is compared with what it was compared with at first, and
not with itself.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from proxykd.artifacts import ValidationResult, read_json, write_json
from proxykd.exceptions import InputError
from proxykd.records import hash_json

_KEPT = ("num_rows", "rules", "lengths")


def read_baseline(path: Path) -> dict[str, Any] | None:
    """The content of the file; None = no run was accepted yet.

    Raises:
        ArtifactError: if it is damaged.
    """
    return read_json(path) if path.exists() else None


def choose_baseline(baseline: Mapping[str, Any] | None, validated: str) -> dict[str, Any] | None:
    """The measures to compare with; None = there are none.

    Args:
        baseline: As ``read_baseline`` gave it.
        validated: Hash of the validated rows of this run: the last accepted run on other rows counts.
    """
    for name in ("last", "before"):
        if baseline is not None and (found := baseline[name]) is not None and found["validated"] != validated:
            return dict(found)
    return None


def accept(result: ValidationResult, path: Path) -> None:
    """Make a run the baseline of the next.

    Args:
        result: Of its validation.
        path: The file; replaced in one step.
    """
    content, validated = read_json(result.path / "result.json"), result.manifest["made_from"]["validated"]
    last = {"validated": validated, **{name: content[name] for name in _KEPT}}
    temporary = path.with_suffix(".tmp")
    write_json(temporary, {"last": last, "before": choose_baseline(read_baseline(path), validated)})
    os.replace(temporary, path)


def hash_files(paths: Sequence[Path]) -> str:
    """Hex SHA-256 over the content of files, and of all files in folders, in the given order.

    Of folders, hidden files and ``__pycache__`` do not count: programs and desktops leave them, and no image takes
    them in (.dockerignore).

    Raises:
        InputError: if one cannot be read.
    """
    digests: list[Any] = []
    for path in paths:
        files = sorted(filter(partial(_counts, path), path.rglob("*"))) if path.is_dir() else [path]
        try:
            for file in files:
                with file.open("rb") as opened:
                    digest = hashlib.file_digest(opened, "sha256").hexdigest()
                digests.append([os.path.relpath(file, path), digest])
        except OSError as error:
            raise InputError(f"expected a readable file or folder, as the specification names it: {error}") from error
    return hash_json(digests)


def check_files(paths: Sequence[Path], identity: str, *, section: str) -> None:
    """Check that files and folders are those that a run was submitted with.

    Args:
        paths: The files and folders.
        identity: ``hash_files`` of what was submitted with.
        section: Of the specification, which names them.

    Raises:
        InputError: if they are others, or one cannot be read.
    """
    try:
        found = f"others (hash {own:.12})" if (own := hash_files(paths)) != identity else ""
    except InputError as error:
        found = f"not all of them ({error})"
    if found:
        raise InputError(
            f"expected the files of the section {section} that the run was submitted with (hash {identity:.12}), found "
            f"{found}. On a cluster: put the same files on the volume, or build and push the image of the checkout "
            "that holds them (`make image`, `make push`) and write it into the stack; to use what is there now, submit "
            "the run, or apply the schedule, again. On one machine: they changed meanwhile; run the same command again"
        )


def _counts(folder: Path, file: Path) -> bool:
    parts = file.relative_to(folder).parts
    return not any(part.startswith(".") or part == "__pycache__" for part in parts) and file.is_file()

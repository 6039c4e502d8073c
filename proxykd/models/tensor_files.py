"""Tensors and what is said of them, in one file that is always a whole one, whoever else writes it at the same time.

Each writer has a file of its own and moves it into place once it is on the disk, so that the header and the tensors of
what stands there are of one writer and of one moment.
"""

import os
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from proxykd.exceptions import StorageError

STALE_S = 3_600.0
"""Seconds after which an unfinished file that grows no more is a killed writer's."""


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """Write a file of tensors, or replace the one that is there at once.

    Args:
        tensors: Name -> tensor.
        path: Of the file; its folder is created.
        metadata: The header.

    Raises:
        OSError: if the disk refuses it; nothing is left of it then. A ``StorageError`` if it is full.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _sweep(path)
    partial = path.with_name(f"{path.name}.{uuid4().hex}.partial")
    try:
        _write(tensors, partial, metadata)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _write(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    try:
        save_file(dict(tensors), path, metadata=dict(metadata))
    except SafetensorError as error:  # what the library makes of every error of the disk's
        raise StorageError(
            f"expected to write tensors into {path.parent}: {error}; free some space and run the same command again: "
            "it goes on from here"
        ) from error


@contextmanager
def open_tensors(path: Path) -> Iterator[Any]:
    """A file of tensors, for reading: the one that stands there now, though another one may take its place meanwhile.

    ``safe_open`` opens a path twice, for the header and for the tensors; a descriptor's path leads to one file.

    Args:
        path: Of the file.

    Raises:
        OSError: if it cannot be opened.
        SafetensorError: if it is no file of tensors.
    """
    with path.open("rb") as file, safe_open(f"/proc/self/fd/{file.fileno()}", framework="pt") as found:
        yield found


def _sweep(path: Path) -> None:
    for partial in path.parent.glob(f"{path.name}.*.partial"):
        with suppress(OSError):  # another one was faster
            if time.time() - partial.stat().st_mtime > STALE_S:
                partial.unlink()

"""Arrays that grow on disk, and the description that makes a folder of them whole.

A folder holds one ``.npy`` file an array and ``ngrams.json``: the format, facts about the counts, and for every array
its type, shape and CRC-32. It appears under its name only when it is complete. No array can hold an object, so that
opening one runs no code.
"""

import os
import shutil
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from proxykd.artifacts import read_json, write_json
from proxykd.exceptions import ArtifactError

FORMAT = "ngrams-1"
DESCRIPTION = "ngrams.json"

Array = NDArray[Any]


class ArrayFile:
    """A new ``.npy`` file to whose first axis rows are appended.

    Args:
        path: The file.
        dtype: Of the array.
        row_shape: Shape of one row; () = numbers.
    """

    def __init__(self, path: Path, dtype: str, row_shape: tuple[int, ...] = ()) -> None:
        self.dtype, self.row_shape, self.num_rows, self._checksum = np.dtype(dtype), row_shape, 0, 0
        self._file = path.open("wb")
        self._write_header()
        self._start = self._file.tell()

    def append(self, rows: Array) -> None:
        """Write ``rows`` [any number, *row_shape] after those already there."""
        rows = np.ascontiguousarray(rows, self.dtype)
        self._checksum = _checksum(rows, self._checksum)
        self._file.write(_bytes_of(rows))
        self.num_rows += len(rows)

    def close(self) -> dict[str, Any]:
        """Finish the file; its facts for the description."""
        self._file.seek(0)
        self._write_header()
        if self._file.tell() != self._start:
            raise ArtifactError(f"expected a header of {self._start} bytes for {self.num_rows} rows; use fewer rows")
        self._file.close()
        shape = [self.num_rows, *self.row_shape]
        return {"dtype": self.dtype.str, "shape": shape, "crc32": self._checksum}

    def _write_header(self) -> None:
        shape = (self.num_rows, *self.row_shape)
        # numpy leaves room in a header for its first axis to grow.
        npy.write_array_header_1_0(self._file, {"descr": self.dtype.str, "fortran_order": False, "shape": shape})


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of ``folder`` if all goes well and disappears if not."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def describe(folder: Path, facts: Mapping[str, Any], arrays: Mapping[str, Mapping[str, Any]]) -> None:
    """Write the description of ``folder``."""
    write_json(folder / DESCRIPTION, {"format": FORMAT, **facts, "arrays": dict(arrays)})


def read_description(folder: Path) -> dict[str, Any]:
    """The description of ``folder``.

    Raises:
        ArtifactError: if there is none, or it is of another format.
    """
    description = read_json(folder / DESCRIPTION)
    if description.get("format") != FORMAT:
        raise ArtifactError(
            f"expected n-gram counts in the format {FORMAT} in {folder}, found {description.get('format')!r}; "
            "count them again"
        )
    return description


def open_array(folder: Path, name: str, expected: Mapping[str, Any]) -> Array:
    """One array of ``folder``, mapped and read-only, after its type, shape and checksum have been compared.

    Raises:
        ArtifactError: if the file is missing, cut short or changed.
    """
    path = folder / f"{name}.npy"
    try:
        mapped = np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, EOFError) as error:
        raise ArtifactError(f"expected an array of n-gram counts in {path}: {error}; count them again") from None
    found = {"dtype": mapped.dtype.str, "shape": list(mapped.shape), "crc32": _checksum(mapped, 0)}
    if found != dict(expected):
        raise ArtifactError(f"expected {dict(expected)} in {path}, found {found}; count them again")
    return mapped


def _bytes_of(array: Array) -> memoryview:
    return memoryview(array.reshape(-1).view(np.uint8))


def _checksum(array: Array, before: int) -> int:
    return zlib.crc32(_bytes_of(array), before)

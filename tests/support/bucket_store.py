"""An artifact store with an object store's address, ``s3://bucket``: nothing in it has a path on this machine.

Whoever treats an artifact's address as a local path fails here as with a real bucket.
"""

import os
from collections.abc import Iterable
from typing import Any, ClassVar

from zenml.artifact_stores import BaseArtifactStore, BaseArtifactStoreConfig, BaseArtifactStoreFlavor
from zenml.artifact_stores.base_artifact_store import PathType
from zenml.io.local_filesystem import LocalFilesystem as Disk

SCHEME = "s3://"


class BucketStoreConfig(BaseArtifactStoreConfig):
    """The address, and the folder in which this machine keeps the objects."""

    SUPPORTED_SCHEMES: ClassVar[set[str]] = {SCHEME}

    folder: str


class BucketStore(BaseArtifactStore):
    """Objects below ``s3://`` are files below the folder."""

    @property
    def config(self) -> BucketStoreConfig:
        return self._config  # type: ignore[return-value]

    def _disk(self, path: PathType) -> str:
        assert isinstance(path, str)
        assert path.startswith(SCHEME), path
        return os.path.join(self.config.folder, path.removeprefix(SCHEME))

    def open(self, name: PathType, mode: str = "r") -> Any:
        path = self._disk(name)
        if "r" not in mode:  # object stores have no folders to create first
            os.makedirs(os.path.dirname(path), exist_ok=True)
        return Disk.open(path, mode)

    def copyfile(self, src: PathType, dst: PathType, overwrite: bool = False) -> None:
        Disk.copyfile(self._disk(src), self._disk(dst), overwrite)

    def exists(self, path: PathType) -> bool:
        return bool(Disk.exists(self._disk(path)))

    def glob(self, pattern: PathType) -> list[PathType]:
        return [self._address(found) for found in Disk.glob(self._disk(pattern))]

    def isdir(self, path: PathType) -> bool:
        return bool(Disk.isdir(self._disk(path)))

    def listdir(self, path: PathType) -> list[PathType]:
        return list(Disk.listdir(self._disk(path)))

    def makedirs(self, path: PathType) -> None:
        Disk.makedirs(self._disk(path))

    def mkdir(self, path: PathType) -> None:
        Disk.mkdir(self._disk(path))

    def remove(self, path: PathType) -> None:
        Disk.remove(self._disk(path))

    def rename(self, src: PathType, dst: PathType, overwrite: bool = False) -> None:
        Disk.rename(self._disk(src), self._disk(dst), overwrite)

    def rmtree(self, path: PathType) -> None:
        Disk.rmtree(self._disk(path))

    def stat(self, path: PathType) -> Any:
        return Disk.stat(self._disk(path))

    def size(self, path: PathType) -> int | None:
        return Disk.size(self._disk(path))

    def walk(
        self, top: PathType, topdown: bool = True, onerror: Any = None
    ) -> Iterable[tuple[PathType, list[PathType], list[PathType]]]:
        for parent, folders, files in Disk.walk(self._disk(top), topdown, onerror):
            yield self._address(parent), folders, files

    def _address(self, path: PathType) -> str:
        return SCHEME + os.path.relpath(str(path), self.config.folder)


class BucketStoreFlavor(BaseArtifactStoreFlavor):
    """What ZenML needs to know."""

    name = "bucket"
    config_class = BucketStoreConfig
    implementation_class = BucketStore

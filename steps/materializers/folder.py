"""One materializer for every artifact of the run: a sealed folder of Parquet, safetensors, JSON and HTML files.

Saving moves the folder's files into the artifact store and removes the folder; loading hands out the store's own
folder where the store is on this machine (so that shards stay memory-mapped) and a temporary copy elsewhere.
"""

import os
import shutil
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.io import fileio
from zenml.materializers.base_materializer import BaseMaterializer

from proxykd.artifacts import Artifact


def for_outputs(*names: str) -> "dict[str, type[FolderMaterializer]]":
    """The materializer of each of several outputs.

    Named one by one: given one for all, ZenML puts the outputs into the order of a set, which differs from process to
    process and is part of the cache key.
    """
    return dict.fromkeys(names, FolderMaterializer)


class FolderMaterializer(BaseMaterializer):
    """Stores any ``proxykd.artifacts.Artifact`` file by file; nothing is pickled."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Artifact,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA
    SKIP_REGISTRATION: ClassVar[bool] = False

    def save(self, data: Artifact) -> None:
        """Move the folder's files into the artifact store."""
        # ZenML asks for the hash and the pages after it has saved, when the folder is gone.
        self._hash, self._pages = data.hash, sorted(page.name for page in data.path.glob("*.html"))
        for file in sorted(path for path in data.path.rglob("*") if path.is_file()):
            destination = os.path.join(self.uri, file.relative_to(data.path).as_posix())
            fileio.makedirs(os.path.dirname(destination))
            if _is_local(self.uri):
                shutil.move(file, destination)
            else:
                fileio.copy(str(file), destination)
        shutil.rmtree(data.path)

    def load(self, data_type: type[Artifact]) -> Artifact:
        """The artifact, its files on this machine."""
        if _is_local(self.uri):
            return data_type(Path(self.uri))
        with self.get_temporary_directory(delete_at_exit=False) as folder:
            _download(self.uri, Path(folder))
            return data_type(Path(folder))

    def compute_content_hash(self, data: Artifact) -> str | None:
        """The artifact's own hash: equal content is a cache hit, whoever made it."""
        return self._hash

    def save_visualizations(self, data: Artifact) -> dict[str, VisualizationType]:
        """The HTML pages at the top of the folder, for the dashboard."""
        return {os.path.join(self.uri, page): VisualizationType.HTML for page in self._pages}


def _is_local(uri: str) -> bool:
    return "://" not in uri


def _download(uri: str, folder: Path) -> None:
    for parent, _, names in fileio.walk(uri):
        relative = os.path.relpath(str(parent), uri)
        for name in names:
            target = folder / relative / str(name)
            target.parent.mkdir(parents=True, exist_ok=True)
            fileio.copy(os.path.join(str(parent), str(name)), str(target))

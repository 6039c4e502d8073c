"""Sealed artifacts by their hash, from ZenML's artifact store, wherever that is."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from zenml.client import Client

_PAGE = 100


def find_artifacts(hashes: Collection[str]) -> dict[str, Path | str]:
    """The folder of each artifact, or why there is none.

    Args:
        hashes: As ``Artifact.hash``; ZenML keeps it as the content hash of what it stored.
    """
    wanted = set(hashes)
    found: dict[str, Path | str] = {}
    for version in _versions():
        if not wanted - found.keys():
            break
        digest = version.content_hash
        if digest in wanted and not isinstance(found.get(digest), Path):
            found[digest] = _folder(version)
    return {digest: found.get(digest, "not in the artifact store of this workspace") for digest in wanted}


def _versions() -> Iterator[Any]:
    number, total = 1, 1
    while number <= total:
        page = Client().list_artifact_versions(sort_by="desc:created", page=number, size=_PAGE, hydrate=True)
        yield from page.items
        number, total = number + 1, page.total_pages


def _folder(version: Any) -> Path | str:
    try:
        folder: Path = version.load().path
    except Exception as error:  # whatever a store of any kind raises
        return f"cannot be read: {error} ({version.uri})"
    return folder if folder.is_dir() else f"it is gone ({version.uri})"

"""``targets.json``: what a store is, with a checksum of itself, and whether it is the one that was wanted."""

import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from proxykd.artifacts import read_json, write_json
from proxykd.exceptions import ArtifactError
from proxykd.records import canonical_json
from proxykd.targets.codec import FORMATS

DESCRIPTION = "targets.json"
PRIOR_FOLDER = "prior"
"""Folder of a targets artifact that holds the prior's own store, where the estimator keeps it."""


def write_description(folder: Path, description: Mapping[str, Any]) -> None:
    """Write it with its checksum."""
    write_json(folder / DESCRIPTION, {**description, "checksum": _checksum(description)})


def read_description(folder: Path, expected: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Read and check it.

    Args:
        folder: The store.
        expected: Fields that must have these values: tokenizer, proxy, corpus, say.

    Raises:
        ArtifactError: if it is missing, damaged, of an unknown format or not the wanted one.
    """
    path = folder / DESCRIPTION
    try:
        description = read_json(path)
    except ArtifactError as error:
        raise ArtifactError(f"no targets can be read from {folder}: {error}; estimate them again") from error
    checksum = description.pop("checksum", None)
    if description.get("format") not in FORMATS:
        raise ArtifactError(
            f"expected targets in a format of {list(FORMATS)} in {folder}, found {description.get('format')!r}; "
            "estimate them again"
        )
    if checksum != _checksum(description):
        raise ArtifactError(f"{path} is damaged or was edited: its checksum is wrong; copy the store again")
    for name, value in (expected or {}).items():
        if description.get(name) != value:
            raise ArtifactError(
                f"expected targets made with {name}={value!r} in {folder}, found {description.get(name)!r}; estimate "
                "the targets again"
            )
    return description


def check_sizes(folder: Path, description: Mapping[str, Any]) -> None:
    """Refuse a store with a file missing or of another size.

    Raises:
        ArtifactError: naming the file.
    """
    for shard in description["shards"]:
        path, num_bytes = folder / shard["file"], shard["bytes"]
        found = path.stat().st_size if path.is_file() else None
        if found != num_bytes:
            what = "no such file" if found is None else f"{found} bytes"
            raise ArtifactError(f"expected {num_bytes} bytes of targets in {path}, found {what}; estimate them again")


def _checksum(description: Mapping[str, Any]) -> int:
    return zlib.crc32(canonical_json(description).encode())

"""Hugging Face datasets as rows: from the hub at one commit, or from a folder of data files or of ``save_to_disk``.

The datasets library runs no code of a dataset's. Rows of the hub and of data files are streamed; a folder that
``save_to_disk`` wrote is mapped into memory.
"""

import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from proxykd.config.prompts import HuggingFacePromptsSpec
from proxykd.data.rows import Row
from proxykd.exceptions import InputError

_COMMIT = re.compile("[0-9a-f]{40}")
_SAVED = ("dataset_dict.json", "state.json")


def iter_dataset(spec: HuggingFacePromptsSpec, wanted: set[str] | None) -> Iterator[Row]:
    """The rows of a split, in its order.

    Args:
        spec: Which one.
        wanted: Columns that a row must have if the dataset has them; None = all.

    Raises:
        InputError: if the dataset cannot be read, naming the row from which on.
    """
    number = 0
    rows = _load(spec)
    names = rows.column_names
    if wanted is not None and names is not None and wanted <= set(names):
        rows = rows.select_columns(sorted(wanted))
    iterator = iter(rows)
    while True:
        try:
            value = next(iterator, None)
        except Exception as error:  # each format has its own reader, and each reader its own errors
            raise InputError(
                f"{spec.source}, row {number + 1}: expected a row of the split {spec.split!r}, found {_words_of(error)}"
            ) from error
        if value is None:
            return
        number += 1
        yield Row(spec.source, "row", number, value)


def identity_of(spec: HuggingFacePromptsSpec) -> str:
    """What a dataset is, for good: ``commit:<40 hex digits>`` on the hub, ``files:<64 hex digits>`` of a folder.

    Raises:
        InputError: if the hub cannot be asked, or knows no such dataset or revision.
    """
    folder = Path(spec.source)
    if not folder.is_dir():
        return f"commit:{_commit_of(spec.source, spec.revision)}"
    digest = hashlib.sha256()
    for file in sorted(file for file in folder.rglob("*") if file.is_file()):
        name = file.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in name.split("/")):
            continue
        with file.open("rb") as content:
            digest.update(name.encode() + b"\0" + hashlib.file_digest(content, "sha256").digest())
    return f"files:{digest.hexdigest()}"


def _load(spec: HuggingFacePromptsSpec) -> Any:
    import datasets

    folder = Path(spec.source)
    is_local = folder.is_dir()
    if is_local and spec.revision is not None:
        raise InputError(f"expected no prompts.revision, because {folder} is a folder; leave it out")
    commit = None if is_local else _commit_of(spec.source, spec.revision)
    try:
        if is_local and any((folder / name).exists() for name in _SAVED):
            return _saved_split(datasets.load_from_disk(str(folder)), spec)
        source = str(folder.resolve()) if is_local else spec.source
        return datasets.load_dataset(source, spec.config, split=spec.split, revision=commit, streaming=True)
    except InputError:
        raise
    except Exception as error:  # the library raises whatever its readers raise
        raise InputError(
            f"expected the split {spec.split!r} of the dataset {spec.source}, found {_words_of(error)}; "
            "correct prompts.source, prompts.config or prompts.split"
        ) from error


def _saved_split(saved: Any, spec: HuggingFacePromptsSpec) -> Any:
    if not isinstance(saved, dict):
        if (name := saved.split) is not None and str(name) != spec.split:
            raise InputError(f"expected the split {spec.split!r} in {spec.source}, found {str(name)!r} alone")
        return saved
    if spec.split not in saved:
        raise InputError(f"expected the split {spec.split!r} in {spec.source}, found {', '.join(map(repr, saved))}")
    return saved[spec.split]


@cache
def _commit_of(name: str, revision: str | None) -> str:
    """Asked once a process, so that one command reads one commit; not at all where the revision is one."""
    if revision is not None and _COMMIT.fullmatch(revision):
        return revision
    from huggingface_hub import HfApi

    try:
        return str(HfApi().dataset_info(name, revision=revision, timeout=30).sha)
    except Exception as error:  # the hub's client and its transport raise errors of their own
        raise InputError(
            f"expected a folder, or the name of a dataset on the Hugging Face hub, in prompts.source={name!r} "
            f"(revision {revision or 'main'}), found {_words_of(error)}; where the hub cannot be reached, "
            "download the dataset and name its folder"
        ) from error


def _words_of(error: Exception) -> str:
    """An error of a library's on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split()):.300}"

"""Texts of further evaluation sets, one by one, and the name of each: what training rows must not contain."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from proxykd.exceptions import InputError


def iter_texts(path: Path) -> Iterator[tuple[str, str]]:
    """Each text of an evaluation file with its name, FILE:LINE.

    Args:
        path: .jsonl, of which every string counts at any depth, keys left out; or text, a text a line.

    Raises:
        InputError: if the file cannot be read or a line is not what it should be.
    """
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    name = f"{path.name}:{number}"
                    texts = _strings(_parse(line, path, number)) if path.suffix == ".jsonl" else [line]
                    yield from ((text, name) for text in texts)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"expected a readable UTF-8 file for validation.evaluation_files, got {path}: {error}"
        ) from error


def _parse(line: str, path: Path, number: int) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise InputError(f"expected a JSON value on each line of {path}, line {number} has none: {error}") from None


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)

"""Rows that a person lets teach although a rule drops them.

The list is a JSONL file that belongs to the user and can be reviewed like code: who released which row, and why.
"""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from proxykd.config.base import Spec
from proxykd.config.validation import ValidationSpec
from proxykd.data.evaluation_texts import iter_texts
from proxykd.data.quality import Verdict
from proxykd.exceptions import InputError

_WITHOUT_TEXT = {Verdict.FAILED, Verdict.FILTERED, Verdict.EMPTY}


class Release(Spec):
    """A line of the list."""

    prompt_id: str = Field(pattern="^[0-9a-f]{16}$")
    """The row's prompt."""
    sample_idx: int | None = Field(default=None, ge=0)
    """Which of its samples; None = all of them that have a text, at least one."""
    by: str = Field(min_length=1)
    """Who released it."""
    reason: str = Field(min_length=1)
    """Why it may teach."""


class Releases:
    """The released rows of a run.

    Args:
        releases: Line number -> line.
        path: Where they were read; for messages.
    """

    def __init__(self, releases: dict[int, Release], path: Path | None = None) -> None:
        self._path = path
        self._by_row = {(r.prompt_id, r.sample_idx): (number, r) for number, r in releases.items()}
        self._unused, self._textless = set(releases), set[int]()

    def find(self, prompt_id: str, sample_idx: int, verdict: Verdict) -> str:
        """Who releases a row and why; "" = nobody does, or nothing drops it.

        Raises:
            InputError: if the row is released but has no text.
        """
        for key in ((prompt_id, sample_idx), (prompt_id, None)):
            if key in self._by_row:
                number, release = self._by_row[key]
                if verdict in _WITHOUT_TEXT:
                    return self._pass_over(number, release, sample_idx, verdict)
                self._unused.discard(number)
                return "" if verdict is Verdict.KEEP else f"{release.by}: {release.reason}"
        return ""

    def _pass_over(self, number: int, release: Release, sample_idx: int, verdict: Verdict) -> str:
        if release.sample_idx is not None:
            raise InputError(
                f"line {number} of {self._path} releases sample {sample_idx} of prompt {release.prompt_id}, which is "
                f"{verdict} and has no text to teach; remove the line"
            )
        self._textless.add(number)
        return ""

    def names(self, prompt_id: str, sample_idx: int | None) -> bool:
        """Whether the list has a line for this row, or for all samples if ``sample_idx`` is None."""
        return (prompt_id, sample_idx) in self._by_row

    def require_all_used(self) -> None:
        """Check that every line named a row of the run that has a text.

        Raises:
            InputError: naming the first lines that did not.
        """
        if absent := self._unused - self._textless:
            raise InputError(
                f"{self._path} releases rows that this run does not have ({self._first(absent)}); remove them, or "
                "check that the list belongs to these prompts"
            )
        if textless := self._unused & self._textless:
            raise InputError(
                f"{self._path} releases prompts no sample of which has a text to teach ({self._first(textless)}); "
                "remove them"
            )

    def _first(self, numbers: set[int]) -> str:
        rows = {number: key for key, (number, _) in self._by_row.items() if number in numbers}
        first = ", ".join(f"line {number}: {key[0]}" for number, key in sorted(rows.items())[:5])
        return f"{len(numbers)} in all; {first}"


def read_releases(path: Path | None) -> Releases:
    """The list in ``path``; None = an empty one.

    Raises:
        InputError: if the file cannot be read, a line is no release, or a row is named twice.
    """
    if path is None:
        return Releases({})
    try:
        # str.splitlines would also end a line at characters that JSON leaves as they are, such as U+2028.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"expected a list of released rows for validation.release, got {path}: {error}") from error
    releases: dict[int, Release] = {}
    seen: dict[tuple[str, int | None], int] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            release = releases[number] = _parse(line, path, number)
            first = seen.setdefault((release.prompt_id, release.sample_idx), number)
            if first != number:
                raise InputError(f"{path} releases the same row on lines {first} and {number}; remove one")
    return Releases(releases, path)


def check_files(spec: ValidationSpec) -> None:
    """Check, before anything is spent, that the files which the section `validation` names can be used.

    Raises:
        InputError: if one cannot.
    """
    read_releases(spec.release)
    for file in spec.evaluation_files:
        for _ in iter_texts(file):
            pass
    if spec.refusal_model is not None and not (spec.refusal_model / "config.json").is_file():
        raise InputError(
            f"expected a model folder with config.json for validation.refusal_model, found none at {spec.refusal_model}"
        )


def append_release(path: Path, release: Release) -> None:
    """Add a line to the list in ``path``, which is made if there is none.

    Raises:
        InputError: if the list cannot be used, or names the row already.
    """
    if path.exists() and read_releases(path).names(release.prompt_id, release.sample_idx):
        raise InputError(f"{path} releases this row already; nothing was added")
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps(release.model_dump(mode="json", exclude_none=True), ensure_ascii=False)
    is_cut = path.exists() and path.read_bytes()[-1:] not in (b"", b"\n")  # an editor may leave the last line open
    with path.open("a", encoding="utf-8") as file:
        file.write(("\n" if is_cut else "") + line + "\n")


def _parse(line: str, path: Path, number: int) -> Release:
    try:
        value: Any = json.loads(line)
        return Release.model_validate(value)
    except (ValueError, ValidationError) as error:
        raise InputError(
            f'expected {{"prompt_id": ..., "sample_idx": ..., "by": ..., "reason": ...}} on line {number} of {path}: '
            f"{error}"
        ) from None

"""Files and datasets -> rows: a mapping of columns each, with the place where it stands, one at a time.

What a row means is ``proxykd.data.prompts``'s business. Anything that is not as the specification says is an
``InputError`` that names the file and the place, because a row that is silently left out would change what the run
means. No source is ever held whole: JSONL and CSV are read by line, Parquet and datasets by batch.
"""

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxykd.config.prompts import (
    CsvPromptsSpec,
    FilePromptsSpec,
    HuggingFacePromptsSpec,
    JsonlPromptsSpec,
    OpenAIFinetuningPromptsSpec,
    ParquetPromptsSpec,
)
from proxykd.config.templates import ROW, columns_in
from proxykd.exceptions import InputError

_BOM = b"\xef\xbb\xbf"
_LONGEST_CELL = 2**24
_BATCH_ROWS = 1024


@dataclass(frozen=True, slots=True)
class Row:
    """One row and where it stands.

    Attributes:
        path: The file, or the name of the dataset.
        unit: What its places are called: "line" or "row".
        number: Which of them, from 1.
        value: Column -> value in plain Python types.
    """

    path: str
    unit: str
    number: int
    value: Mapping[str, Any]

    @property
    def source(self) -> str:
        """Short name of the place, for records: ``prompts.jsonl:3``."""
        return f"{self.path.rstrip('/').rpartition('/')[2]}:{self.number}"

    def error(self, message: str) -> InputError:
        """An error that names the place."""
        return error_at(self.path, self.unit, self.number, message)


def error_at(path: object, unit: str, number: int, message: str) -> InputError:
    """An error that names a place in a file."""
    return InputError(f"{path}, {unit} {number}: {message}")


def iter_rows(spec: FilePromptsSpec, *more_columns: str) -> Iterator[Row]:
    """The rows of a source, in its order.

    Args:
        spec: Which source.
        more_columns: Columns that are needed beside those that ``spec`` names; others may be left out of the rows.

    Raises:
        InputError: if the source is missing or is not what ``spec`` says, naming the place.
    """
    if isinstance(spec, JsonlPromptsSpec | OpenAIFinetuningPromptsSpec):
        return _iter_jsonl(spec.path)
    if isinstance(spec, CsvPromptsSpec):
        return _iter_csv(spec)
    if isinstance(spec, ParquetPromptsSpec):
        return _iter_parquet(spec.path, _wanted_columns(spec, more_columns))
    assert isinstance(spec, HuggingFacePromptsSpec)
    from proxykd.data.hub import iter_dataset

    return iter_dataset(spec, _wanted_columns(spec, more_columns))


def parquet_files(path: Path) -> list[Path]:
    """The Parquet files that ``path`` stands for: itself, or those in the folder by name.

    Raises:
        InputError: if it is a folder without any.
    """
    if not path.is_dir():
        return [path]
    if not (found := sorted(path.glob("*.parquet"))):
        raise InputError(f"expected Parquet files in the folder {path}, found none; correct prompts.path")
    return found


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Turns the system's refusals into an error that names the file."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"expected a readable file of prompts at {path}: {error.strerror or error}; correct prompts.path"
        ) from None


def _wanted_columns(spec: FilePromptsSpec, more_columns: Sequence[str]) -> set[str] | None:
    """The columns that a row must have if its source has them; None = all."""
    in_templates = set[str]().union(*map(columns_in, spec.templates().values()))
    return None if ROW in in_templates else spec.named_columns() | in_templates | set(more_columns)


def _decode(path: Path, number: int, content: bytes) -> str:
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise error_at(
            path, "line", number, f"expected UTF-8, found the byte 0x{content[error.start]:02x}; save the file as UTF-8"
        ) from None


def _iter_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Numbered lines without a byte order mark."""
    with readable(path), path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            yield number, raw.removeprefix(_BOM) if number == 1 else raw


class _TwinError(ValueError):
    pass


def _refuse_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object each of whose keys occurs once; of twins JSON would take the last one silently."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _TwinError(next(key for place, key in enumerate(keys) if key in keys[:place]))
    return found


_JSON = json.JSONDecoder(object_pairs_hook=_refuse_twins)


def _iter_jsonl(path: Path) -> Iterator[Row]:
    for number, content in _iter_lines(path):
        if content.strip():
            yield Row(str(path), "line", number, _parse_object(path, number, content.rstrip()))


def _parse_object(path: Path, number: int, content: bytes) -> dict[str, Any]:
    def error(message: str) -> InputError:
        return error_at(path, "line", number, message)

    try:
        value = _JSON.decode(_decode(path, number, content))
    except _TwinError as twin:
        raise error(f"expected each key of an object once, found {twin.args[0]!r} twice; remove one") from None
    except json.JSONDecodeError as found:
        raise error(f"expected one JSON object a line, found {found.msg} at column {found.colno}; correct it") from None
    except RecursionError:
        raise error("expected one JSON object a line, found one nested too deeply") from None
    if not isinstance(value, dict):
        raise error(f"expected a JSON object, found {describe(value)}; write one {{...}} a line")
    return value


def _iter_csv(spec: CsvPromptsSpec) -> Iterator[Row]:
    """Rows by the line on which each begins; blank lines are skipped."""
    path, columns = spec.path, spec.columns
    csv.field_size_limit(_LONGEST_CELL)
    lines = (_decode(path, number, raw) for number, raw in _iter_lines(path))
    reader, number = csv.reader(lines, delimiter=spec.delimiter, strict=True), 1
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            raise error_at(
                path, "line", number, f"expected a row of CSV, found none: {error}; look for a quote that is not closed"
            ) from None
        if cells is None:
            return
        if cells and columns is None:
            columns = _check_header(path, number, cells)
        elif cells:
            assert columns is not None
            if len(cells) != len(columns):
                raise error_at(
                    path,
                    "line",
                    number,
                    f"expected {len(columns)} cells as in the header, found {len(cells)}; put cells that hold "
                    f"{spec.delimiter!r} or a line break in double quotes, or correct prompts.delimiter",
                )
            yield Row(str(path), "line", number, dict(zip(columns, cells, strict=True)))
        number = reader.line_num + 1


def _check_header(path: Path, number: int, cells: list[str]) -> tuple[str, ...]:
    if twice := sorted({cell for cell in cells if cells.count(cell) > 1}):
        raise error_at(
            path,
            "line",
            number,
            f"expected a header of distinct names, found {twice[0]!r} twice; rename one, or name the columns of a file "
            "without a header in prompts.columns",
        )
    return tuple(cells)


def _iter_parquet(path: Path, wanted: set[str] | None) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    with readable(path):
        for part in parquet_files(path):
            try:
                # Pre-buffering would read the whole part ahead.
                with pq.ParquetFile(part, pre_buffer=False) as file:
                    yield from _iter_batches(part, file, wanted)
            except (pa.ArrowException, UnicodeDecodeError) as error:
                raise InputError(f"expected a Parquet file at {part}: {error}; correct prompts.path") from None


def _iter_batches(part: Path, file: Any, wanted: set[str] | None) -> Iterator[Row]:
    names = [name for name in file.schema_arrow.names if wanted is None or name in wanted]
    if wanted is not None and not wanted <= set(names):
        # The complaint about the column that is not there names those that are.
        names = file.schema_arrow.names
    number = 0
    for batch in file.iter_batches(batch_size=_BATCH_ROWS, columns=names):
        for value in batch.to_pylist():
            number += 1
            yield Row(str(part), "row", number, value)


def describe(value: Any) -> str:
    """What kind of value it is, and its beginning."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null", bytes: "bytes"}
    kind = "a number" if isinstance(value, int | float) else f"a {type(value).__name__}"
    return f"{names.get(type(value), kind)} ({json.dumps(value, default=str):.60})"

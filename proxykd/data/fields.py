"""What stands in a row's columns, as text; every complaint names the place and the columns that there are."""

import difflib
from typing import Any

from proxykd.config.templates import UnknownNameError, render_template
from proxykd.data.rows import Row, describe


def value_of(row: Row, column: str) -> Any:
    """The value of a column.

    Raises:
        InputError: if the row has no such column, naming those that it has.
    """
    if column not in row.value:
        raise row.error(f"expected the field {column!r}, {_found(row, column)}; name the right one under prompts or "
                        "teacher")  # fmt: skip
    return row.value[column]


def text_of(row: Row, column: str) -> str:
    """The text of a column.

    Raises:
        InputError: if it is missing or is not a string.
    """
    value = value_of(row, column)
    if not isinstance(value, str):
        raise row.error(f"expected {column!r} to be a string, found {describe(value)}; correct the {row.unit}")
    return storable(row, column, value)


def optional_text(row: Row, column: str) -> str:
    """The text of a column; "" for null.

    Raises:
        InputError: if the row has no such column, or it is neither a string nor null.
    """
    return "" if value_of(row, column) is None else text_of(row, column)


def render_field(row: Row, key: str, template: str) -> str:
    """The text that a template makes of a row.

    Args:
        row: The row.
        key: The template's key under ``prompts``, for messages.
        template: The template.

    Raises:
        InputError: if it cannot be rendered, naming the columns that there are where one is missing.
    """
    try:
        text = render_template(template, row.value)
    except UnknownNameError as error:
        raise row.error(
            f"prompts.{key} asks for the column {error.name!r}, {_found(row, error.name)}; correct the template, or "
            f"say what stands in for it: {{{{ {error.name} | default('') }}}}"
        ) from None
    except ValueError as error:
        raise row.error(f"prompts.{key} cannot be rendered: {error}; correct the template or the row") from None
    return storable(row, key, text)


def storable(row: Row, column: str, text: str) -> str:
    """``text``, which is Unicode.

    Raises:
        InputError: if it holds half a surrogate pair, as JSON can spell and no UTF-8 file can hold.
    """
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise row.error(f"expected {column!r} to be Unicode text, found half a surrogate pair (\\ud8..); correct it")
    return text


def _found(row: Row, wanted: str) -> str:
    """The columns that there are, and the one that was probably meant."""
    close = difflib.get_close_matches(wanted, row.value, n=1)
    names = ", ".join(map(repr, row.value)) or "none"
    return f"found {names:.200}{f' (did you mean {close[0]!r}?)' if close else ''}"

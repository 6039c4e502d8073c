"""The template language for columns: Jinja expressions over one row, in a sandbox that can neither call nor hang.

``{{ question }}`` puts a column's value, ``{% if %}`` and ``{% for %}`` work as in Jinja, null is an empty text, and a
name that the row does not have is an error, never an empty text. A template makes the same text from the same row for
ever: what draws numbers, reads files or runs code is left out, and so is what makes a long text from a short one
(repetition, padding to a width), so that ``MAX_CHARACTERS`` holds in memory too.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import AfterValidator

if TYPE_CHECKING:
    from jinja2 import Template
    from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_CHARACTERS = 2**20
"""Most characters that a template may make of one row; a prompt of so many fits no teacher's context."""
ROW = "row"
"""Name under which a template finds the whole row, for columns whose name is no identifier: row["my column"]."""
MAX_RANGE = 1000
"""Most steps of one range()."""

_UNKNOWN_NAME = re.compile("'(.*)' is undefined")
_LEFT_OUT_FILTERS = ("attr", "center", "format", "indent", "pprint", "random", "urlize", "xmlattr")
_LEFT_OUT_METHODS = frozenset({"center", "expandtabs", "format", "format_map", "ljust", "rjust", "zfill", "translate"})


class UnknownNameError(ValueError):
    """A template asks for a name that the row does not have.

    Attributes:
        name: The name.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


def compile_template(source: str) -> "Template":
    """The template, ready to be rendered; each text is compiled once.

    Raises:
        ValueError: if it is not a template, naming the line.
    """
    return _compile(source)


def columns_in(source: str) -> set[str]:
    """Names that a template takes from the row; ``ROW`` is among them where it looks at the whole of it."""
    from jinja2 import meta

    environment = _environment()
    return set(meta.find_undeclared_variables(environment.parse(source))) - set(environment.globals)


def render_template(source: str, columns: Mapping[str, Any]) -> str:
    """The text of one row, without white space at its ends.

    Args:
        source: The template.
        columns: The row.

    Raises:
        UnknownNameError: if it asks for a name that the row does not have.
        ValueError: if it fails in another way, or makes a text that is too long; the message names no place.
    """
    from jinja2 import TemplateError, UndefinedError
    from jinja2.exceptions import SecurityError

    parts, length = [], 0
    try:
        for part in compile_template(source).generate({ROW: columns, **columns}):
            parts.append(part)
            if (length := length + len(part)) > MAX_CHARACTERS:
                raise ValueError(f"expected a text of at most {MAX_CHARACTERS:,} characters, and it makes a longer one")
    except UndefinedError as error:
        if name := _UNKNOWN_NAME.fullmatch(str(error)):
            raise UnknownNameError(name[1]) from None
        raise ValueError(f"it asks for something that is not there: {error}") from None
    except (SecurityError, OverflowError, MemoryError) as error:
        raise ValueError(f"it asks for something that templates may not: {error}") from None
    except (
        TemplateError,
        ArithmeticError,
        LookupError,
        TypeError,
        AttributeError,
        RecursionError,
        RuntimeError,
    ) as error:
        raise ValueError(f"it fails on this row: {type(error).__name__}: {error}") from None
    return "".join(parts).strip()


def _check_template(value: str) -> str:
    compile_template(value)
    return value


TemplateText = Annotated[str, AfterValidator(_check_template)]
"""A template over the columns of a row."""


@cache
def _compile(source: str) -> "Template":
    from jinja2 import TemplateSyntaxError

    try:
        return _environment().from_string(source)
    except TemplateSyntaxError as error:
        raise ValueError(
            f"expected a template such as '{{{{ question }}}}', found {error.message} at line {error.lineno}"
        ) from None
    except RecursionError:
        raise ValueError("expected a template, found one nested too deeply") from None


@cache
def _environment() -> "ImmutableSandboxedEnvironment":
    from jinja2 import StrictUndefined
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Environment(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"*", "**", "%"})

        def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
            numbers = all(isinstance(side, int | float) for side in (left, right))
            if not numbers or operator == "**":
                raise SecurityError(f"the operator {operator} on {type(left).__name__} and {type(right).__name__}")
            return super().call_binop(context, operator, left, right)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in _LEFT_OUT_METHODS and super().is_safe_attribute(obj, attr, value)

        def wrap_str_format(self, value: Any) -> Any:
            if super().wrap_str_format(value) is not None:
                raise SecurityError("the method format")
            return None

    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: "" if value is None else value,
    )
    for name in _LEFT_OUT_FILTERS:
        del environment.filters[name]
    # Jinja's own escapes characters for web pages.
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False, default=str)
    environment.globals.clear()
    environment.globals["range"] = _range
    return environment


def _range(*bounds: int) -> range:
    """As Python's, but short."""
    if len(found := range(*bounds)) > MAX_RANGE:
        raise OverflowError(f"a range of more than {MAX_RANGE} steps")
    return found

"""Keeps ``${NAME}`` from being filled in where a specification passes through an orchestrator.

ZenML puts the value of an environment variable in place of ``${NAME}`` wherever it stands in the parameters of a
pipeline, and stores the result: the key itself would be in its database and in its messages. So parameters carry
``$ {NAME}``, which it leaves alone, and what reads them takes the space out again. Spaces that were there stay.
"""

import re
from collections.abc import Callable
from typing import Any

_BARE, _SHIELDED = re.compile(r"\$( *)\{"), re.compile(r"\$ ( *)\{")


def shielded(value: Any) -> Any:
    """``value``, of plain JSON types, with a space more between each ``$`` and ``{``."""
    return _mapped(value, lambda text: _BARE.sub(r"$ \1{", text))


def unshielded(value: Any) -> Any:
    """The inverse of ``shielded``; what was never shielded stays as it is."""
    return _mapped(value, lambda text: _SHIELDED.sub(r"$\1{", text))


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {change(key): _mapped(item, change) for key, item in value.items()}
    if isinstance(value, list):
        return [_mapped(item, change) for item in value]
    return value

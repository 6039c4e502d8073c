"""Names that hold the user's own words -> keys that MLflow takes.

Tasks, slices and JSON schemas name metrics and parameters. MLflow takes word characters, ``_ - . : /`` and spaces, 250
in all, and no key that would be another path once its ``..`` and ``//`` are resolved.
"""

import re

from proxykd.records import hash_text

MAX_CHARS = 250
"""Most characters of a key."""

_REFUSED = re.compile(r"[^\w\-. :]")
_UNRESOLVED = ("", ".", "..")
_HASH_CHARS = 8


def tracking_key(name: str, end: str = "") -> str:
    """A name as a key: itself where MLflow takes it, else with ``_`` for what it refuses and a short hash.

    Args:
        name: Any text; its hash keeps two names apart that would else become the same key.
        end: What follows it, e.g. ``/low``; of characters that MLflow takes.

    Returns:
        At most ``MAX_CHARS`` characters.

    Example:
        >>> tracking_key("accuracy/math", "/low"), tracking_key("accuracy/c++", "/low")
        ('accuracy/math/low', 'accuracy/c__-45f3ea66/low')
    """
    parts = ("_" if part in _UNRESOLVED else _REFUSED.sub("_", part) for part in name.split("/"))
    kept, room = "/".join(parts), MAX_CHARS - len(end)
    if kept == name and len(name) <= room:
        return name + end
    mark = f"-{hash_text(name)[:_HASH_CHARS]}"
    return kept[: room - len(mark)] + mark + end

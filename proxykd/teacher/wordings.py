"""Texts of requests with places to fill: the package's, or a file of the user's in their stead."""

from collections.abc import Collection
from importlib.resources import files
from pathlib import Path
from string import Template

from proxykd.exceptions import ConfigError
from proxykd.records import Message


def read_template(
    package: str, name: str, path: Path | None, *, key: str, needs: Collection[str], allows: Collection[str] = ()
) -> Template:
    """A template with ``$place`` where something is put in, and ``$$`` for a dollar sign.

    Args:
        package: The package whose ``templates`` folder holds the standard one.
        name: Of the standard one, without its ending.
        path: The user's text file; None = the standard one.
        key: Key of the specification that names the file, for messages.
        needs: Places that must be there.
        allows: Places that may be there besides.

    Raises:
        ConfigError: if the file cannot be read, lacks a place or has one that is not known.
    """
    source = files(package).joinpath("templates", f"{name}.txt") if path is None else path
    try:
        template = Template(source.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"expected a text file for {key} at {path}: {error}") from None
    found = set(template.get_identifiers())
    if not template.is_valid() or not set(needs) <= found <= {*needs, *allows}:
        wanted = ", ".join(f"${place}" for place in sorted(needs))
        besides = f" and if wanted {', '.join(f'${place}' for place in sorted(allows))}" if allows else ""
        raise ConfigError(f"expected {wanted}{besides} in {path}, found {sorted(found)}; write $$ for a dollar sign")
    return template


def question_text(messages: tuple[Message, ...]) -> str:
    """A prompt's text without its system message; a conversation is written out with its roles."""
    turns = [message for message in messages if message.role != "system"]
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role.capitalize()}: {turn.content}" for turn in turns)

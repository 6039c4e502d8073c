"""OpenAI's fine-tuning files: the chat before the assistant's last message, and that message.

A line is ``{"messages": [...]}``. What is sent to a teacher here is text alone, so a chat that calls tools or shows
pictures cannot be carried and is refused; keys that change nothing in the text (weight, name, the list of tools that
no message calls) are passed over.
"""

from typing import Any

from proxykd.data.fields import storable
from proxykd.data.rows import Row, describe
from proxykd.records import Message

_CALLS = ("tool_calls", "function_call", "audio")
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}


def parse_chat(row: Row) -> tuple[list[Message], str | None]:
    """The messages of a line up to the last one of the user's, and the assistant's text after it.

    Returns:
        The messages, and the text; None where the line ends with the user's message.

    Raises:
        InputError: if the line is of another shape, naming it.
    """
    turns = row.value.get("messages")
    if not isinstance(turns, list) or not turns:
        found = ", ".join(map(repr, row.value)) or "none"
        raise row.error(f"expected a list of messages under 'messages', found the keys {found:.200}")
    messages = [_parse_turn(row, idx, turn) for idx, turn in enumerate(turns)]
    if messages[-1].role != "assistant":
        return messages, None
    return messages[:-1], messages[-1].content


def parse_completion(row: Row) -> str:
    """The assistant's text at the end of a line.

    Raises:
        InputError: if the line ends otherwise, or that message is marked as none to learn from (weight 0).
    """
    text = parse_chat(row)[1]
    if text is None:
        raise row.error("expected the assistant's message at the end, which teacher.kind=recorded takes as the "
                        "completion, found the user's; add it, or ask a live teacher")  # fmt: skip
    if row.value["messages"][-1].get("weight") == 0:
        raise row.error("expected a last message to learn from, found one of weight 0; remove the line")
    return text


def _parse_turn(row: Row, idx: int, turn: Any) -> Message:
    where = f"messages[{idx}]"
    if not isinstance(turn, dict):
        raise row.error(f"expected {where} to be an object with a role and a content, found {describe(turn)}")
    if turn.get("role") in ("tool", "function") or any(turn.get(key) for key in _CALLS):
        raise row.error(f"expected {where} to be text, found a call of a tool or sound, which are not carried; "
                        "remove the line")  # fmt: skip
    if turn.get("role") not in _ROLES:
        raise row.error(f"expected {where} to have one of the roles {', '.join(_ROLES)}, found {turn.get('role')!r}")
    return Message(_ROLES[turn["role"]], _parse_content(row, where, turn.get("content")))


def _parse_content(row: Row, where: str, content: Any) -> str:
    """A string, or the texts of a list of parts."""
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
    for part in parts:
        if isinstance(part, dict) and part.get("type") != "text":
            raise row.error(f"expected {where} to be text, found a part of type {part.get('type')!r}, which is not "
                            "carried; remove the line")  # fmt: skip
        if not isinstance(part, dict) or not isinstance(part.get("text"), str):
            raise row.error(f"expected the content of {where} to be text, found {describe(content)}")
    return storable(row, where, "".join(part["text"] for part in parts))

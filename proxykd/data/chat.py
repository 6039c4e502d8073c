"""Chat messages -> the text that a model continues.

A tokenizer that has a chat template renders with it. One that has none (a base model's) gets a plain layout whose
last line ends in a newline, so that the completion's tokens start as they would in running text.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from proxykd.exceptions import InputError
from proxykd.records import Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def render_prompt(tokenizer: "PreTrainedTokenizerBase", messages: Sequence[Message]) -> str:
    """The text after which the assistant's completion begins.

    Args:
        tokenizer: Its chat template is used where it has one, with the generation prompt.
        messages: Chat turns, at least one; the last one the user's.

    Raises:
        InputError: if there are no messages, or the chat template does not accept them.
    """
    if not messages:
        raise InputError("expected at least one message in a prompt, got none")
    if not getattr(tokenizer, "chat_template", None):
        return _leading_bos(tokenizer) + render_plain(messages)
    turns: list[dict[str, Any]] = [{"role": message.role, "content": message.content} for message in messages]
    from jinja2 import TemplateError

    try:
        return str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except TemplateError as error:
        roles = [message.role for message in messages]
        raise InputError(
            f"the model's chat template does not accept messages with the roles {roles}: {error}; "
            "leave out prompts.system, or choose a model whose template knows these roles"
        ) from None


def render_plain(messages: Sequence[Message]) -> str:
    r"""The layout for tokenizers without a chat template.

    Example:
        >>> render_plain([Message("user", "2 + 2?")])
        'User:\n2 + 2?\n\nAssistant:\n'
    """
    turns = "".join(f"{message.role.capitalize()}:\n{message.content}\n\n" for message in messages)
    return f"{turns}Assistant:\n"


def _leading_bos(tokenizer: "PreTrainedTokenizerBase") -> str:
    # Models that were trained with a beginning-of-sequence token need it: only templates write it by themselves.
    bos = tokenizer.bos_token
    return str(bos) if bos and list(tokenizer("a").input_ids)[:1] == [tokenizer.bos_token_id] else ""

"""Rendering: a chat template where there is one, a plain layout where there is none."""

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from proxykd.data.chat import render_plain, render_prompt
from proxykd.exceptions import InputError
from proxykd.records import Message

MESSAGES = (Message("system", "Be brief."), Message("user", "2 + 2?"))


def make_tokenizer(*, adds_bos: bool = False, template: str | None = None) -> PreTrainedTokenizerFast:
    inner = Tokenizer(models.WordLevel({"<s>": 0, "</s>": 1, "[UNK]": 2, "a": 3}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    if adds_bos:
        inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def test_template_gets_every_message_and_the_generation_prompt() -> None:
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
    template = turns + "{% if add_generation_prompt %}[assistant]{% endif %}"
    rendered = render_prompt(make_tokenizer(template=template), MESSAGES)
    assert rendered == "[system]Be brief.[user]2 + 2?[assistant]"


def test_plain_layout_ends_in_a_newline_and_holds_the_turns_in_order() -> None:
    assert render_plain(MESSAGES) == "System:\nBe brief.\n\nUser:\n2 + 2?\n\nAssistant:\n"
    assert render_prompt(make_tokenizer(), MESSAGES) == render_plain(MESSAGES)


def test_plain_layout_begins_with_bos_where_the_model_was_trained_with_it() -> None:
    assert render_prompt(make_tokenizer(adds_bos=True), MESSAGES) == "<s>" + render_plain(MESSAGES)


def test_template_that_refuses_a_role_says_what_to_do() -> None:
    template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match=r"\['system', 'user'\].*System role not supported.*prompts\.system"):
        render_prompt(make_tokenizer(template=template), MESSAGES)


def test_no_messages_is_an_error() -> None:
    with pytest.raises(InputError, match="at least one message"):
        render_prompt(make_tokenizer(), ())

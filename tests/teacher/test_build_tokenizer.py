"""The embedded tokenizer: short on the teacher's texts, lossless on any text, and exactly what the script makes."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer

from proxykd.teacher.build_tokenizer import EMBEDDED_FOLDER, build
from proxykd.teacher.problems import generate_prompts, sample_completion

_TOKENIZER = Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))


def test_the_committed_files_are_what_the_script_makes(tmp_path: Path) -> None:
    build(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (EMBEDDED_FOLDER / name).read_bytes()


@given(st.text())
def test_any_text_round_trips(text: str) -> None:
    assert _TOKENIZER.decode(_TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


def test_every_word_and_number_of_the_teacher_is_one_token() -> None:
    rng = random.Random(5)
    for prompt in generate_prompts(1000, seed=5):
        question = prompt.messages[0].content
        for text in (question, sample_completion(question, rng)):
            encoding = _TOKENIZER.encode(text)
            assert all(len(token) > 1 or token in ".,:+-=x?Ċ" for token in encoding.tokens), encoding.tokens
            assert len(encoding.ids) <= 60


def test_the_vocabulary_is_small() -> None:
    assert _TOKENIZER.get_vocab_size() <= 512


@pytest.mark.integration
def test_transformers_loads_it_with_its_chat_template() -> None:
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast.from_pretrained(EMBEDDED_FOLDER)
    assert (tokenizer.pad_token, tokenizer.eos_token, tokenizer.padding_side) == ("<|pad|>", "<|eos|>", "right")
    rendered = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi."}], tokenize=False, add_generation_prompt=True
    )
    assert rendered == "<|user|>Hi.<|eos|><|assistant|>"
    ids = tokenizer(rendered, add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == rendered
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|user|>")

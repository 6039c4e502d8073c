"""Counting word by word gives what the tokenizer says of the whole text, for every tokenizer that is said to be so."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from proxykd.models.token_counts import WordwiseCounter, is_additive

QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA = QWEN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CORPUS = [
    "the cat's hat, it'll do: 12 345 6!\n\nAnd so on... don't\t(stop) \u00e9t\u00e9 \u6771\u4eac",
    " a  b   c ",
] * 3


def pattern(regex, behaviour="isolated", *, invert=False):
    split = pre_tokenizers.Split(Regex(regex), behaviour, invert=invert)
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def build(splitting, *, normalizer=None, added=("<|end|>",), model=None, **flags):
    backend = Tokenizer(model or models.BPE())
    backend.pre_tokenizer = splitting
    if normalizer is not None:
        backend.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    backend.train_from_iterator(CORPUS, trainer)
    backend.add_tokens([AddedToken(content, **flags) for content in added])
    return backend


def definition(backend):
    return json.loads(backend.to_str())


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
ADDITIVE = {
    "GPT-2": build(BYTE_LEVEL),
    "prefixed": build(pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "digits": build(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), BYTE_LEVEL])),
    "Qwen": build(pattern(QWEN), normalizer=normalizers.NFC()),
    "Llama": build(pattern(LLAMA)),
    "inverted": build(pattern(QWEN, "removed", invert=True)),
    "left strip": build(BYTE_LEVEL, lstrip=True, normalized=False),
    "single word": build(pattern(QWEN), added=("<|end|>", "cat"), single_word=True),
}
SPACES = (" ", " ", " ", "  ", "\n", "\t", "\r\n", "\x85", "\x1c", "\xa0", "\u180e", "\u3000")
OTHERS = ("the", "cat", "'s", "'", "12", "345", ".", ",", "\u0301", "e", "\u1100", "\u1161", "\u6771", "<|end|>", "<|")
PIECES = st.sampled_from((*SPACES, *OTHERS, "\u017f", "\U0001f600", "\x00"))


@pytest.mark.parametrize("kind", ADDITIVE)
@settings(max_examples=50)
@given(texts=st.lists(st.lists(PIECES, max_size=20).map("".join) | st.text(max_size=30), max_size=4))
def test_pieces_add_up_to_the_text(kind, texts):
    backend = ADDITIVE[kind]
    whole = [len(backend.encode(text, add_special_tokens=False)) for text in texts]
    counter = WordwiseCounter(backend)
    assert counter(texts) == whole
    assert counter(texts) == whole  # now from memory


@pytest.mark.parametrize("kind", ADDITIVE)
def test_byte_level_tokenizers_are_counted_word_by_word(kind):
    assert is_additive(definition(ADDITIVE[kind]))


@pytest.mark.parametrize(
    "backend",
    [
        build(pattern(r"\S+\s*")),  # a space belongs to the word before it
        build(pattern(QWEN, "merged_with_previous")),
        build(BYTE_LEVEL, rstrip=True),
        build(BYTE_LEVEL, added=("two words",)),
        build(BYTE_LEVEL, normalizer=normalizers.Strip()),
        build(BYTE_LEVEL, normalizer=normalizers.NFKC()),
        build(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)),
        build(pre_tokenizers.Metaspace()),
        build(BYTE_LEVEL, model=models.BPE(dropout=0.1)),
    ],
)
def test_others_are_asked_for_whole_texts(backend):
    assert not is_additive(definition(backend))


def test_memory_of_pieces_is_bounded(monkeypatch):
    monkeypatch.setattr("proxykd.models.token_counts._MAX_CACHED_CHARS", 1000)
    counter = WordwiseCounter(ADDITIVE["GPT-2"])
    for idx in range(200):
        assert counter([f"word number {idx}"]) == [len(ADDITIVE["GPT-2"].encode(f"word number {idx}"))]
        assert len(counter._later._counts) < 20

"""Token bytes spell the text, whatever the family of the tokenizer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers

from proxykd.exceptions import ModelError
from proxykd.models.token_bytes import TokenBytes, token_bytes_of
from tests.support.tokenizer_pairs import EOS, byte_level, bytes_of, lower_case, sentence_piece, word_piece

BYTE_LEVEL, SENTENCE_PIECE = bytes_of(byte_level()), bytes_of(sentence_piece())


def spell(vocabulary: TokenBytes, text: str) -> bytes:
    return vocabulary.join(vocabulary.backend.encode(text, add_special_tokens=False).ids)


@given(st.text())
def test_byte_level_tokens_spell_every_text(text: str) -> None:
    assert spell(BYTE_LEVEL, text) == text.encode()


@given(st.text(min_size=1))
def test_sentence_piece_tokens_spell_every_text_after_a_dummy_prefix(text: str) -> None:
    # A Metaspace tokenizer reads its own space character as a space.
    plain = text.replace("\u2581", " ").encode()
    assert spell(SENTENCE_PIECE, text) in (b" " + plain, plain)


def test_the_dummy_prefix_is_recognised() -> None:
    found = [bytes_of(make()).has_dummy_prefix for make in (byte_level, sentence_piece, lower_case, word_piece)]
    assert found == [False, True, False, True]


def test_word_pieces_continue_or_begin_a_word() -> None:
    vocabulary = bytes_of(word_piece())
    assert spell(vocabulary, "jumps over") == b" jumps over"
    assert spell(vocabulary, "subtract, then") == b" subtract , then"


def test_control_tokens_stand_for_no_bytes_even_where_a_text_spells_them_out() -> None:
    assert BYTE_LEVEL.values[BYTE_LEVEL.eos_id] is None
    assert spell(BYTE_LEVEL, f"a{EOS}b") == f"a{EOS}b".encode()
    assert BYTE_LEVEL.eos_id not in BYTE_LEVEL.backend.encode(EOS, add_special_tokens=False).ids


def test_every_byte_has_a_token_of_its_own() -> None:
    for vocabulary in (BYTE_LEVEL, SENTENCE_PIECE):
        assert {bytes([byte]) for byte in range(256)} <= set(vocabulary.values)


def test_a_tokenizer_without_markers_stands_for_its_own_text() -> None:
    backend = Tokenizer(models.WordLevel({EOS: 0, "one": 1, "zwölf": 2}, unk_token=EOS))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    assert bytes_of(backend).values == (EOS.encode(), b"one", "zwölf".encode())


def test_a_tokenizer_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ModelError, match="no such token"):
        TokenBytes.of_backend(byte_level(), eos_token="<none>")

    class Slow:
        eos_token = EOS

    with pytest.raises(ModelError, match="fast tokenizer"):
        token_bytes_of(Slow())

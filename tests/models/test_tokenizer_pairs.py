"""Which method a pair of tokenizers needs, and how much of the text it covers."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from proxykd.config.models import ModelSpec
from proxykd.models.tokenizer_pairs import describe_pair, measure_pair
from tests.support.tokenizer_pairs import EOS, TEXTS, byte_level, sentence_piece


def save(folder: Path, tokenizer: Tokenizer) -> ModelSpec:
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS).save_pretrained(folder)
    return ModelSpec(source=str(folder))


def renumbered(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokens in the opposite order."""
    definition = json.loads(tokenizer.to_str())
    vocab = definition["model"]["vocab"]
    last = len(vocab) - 1
    definition["model"]["vocab"] = {token: last - idx for token, idx in vocab.items()}
    for token in definition["added_tokens"]:
        token["id"] = last - token["id"]
    return Tokenizer.from_str(json.dumps(definition))


def test_one_tokenizer_needs_nothing(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one", byte_level()), save(tmp_path / "other", byte_level())
    assert measure_pair(one, one, TEXTS) == measure_pair(one, other, TEXTS)
    assert measure_pair(one, other, TEXTS).method == "same"


def test_the_same_tokens_under_other_ids_are_translated_exactly(tmp_path: Path) -> None:
    found = measure_pair(
        save(tmp_path / "one", byte_level()), save(tmp_path / "other", renumbered(byte_level())), TEXTS
    )
    assert found == ("renumbered", 1.0, 0.0, 0.0, 1.0, 1.0)
    assert "exactly" in describe_pair(found)


def test_other_tokens_are_aligned_and_the_shares_add_up(tmp_path: Path) -> None:
    found = measure_pair(save(tmp_path / "one", byte_level()), save(tmp_path / "other", sentence_piece()), TEXTS)
    assert found.method == "aligned"
    assert found.one_to_one + found.grouped + found.unaligned == pytest.approx(1.0)
    assert 0.0 < found.shared_vocabulary < 1.0
    assert f"{found.one_to_one:.1%} of the characters one to one" in describe_pair(found)

"""Sources are found without being imported; tokenizers that differ are told apart by name."""

import subprocess
import sys

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from proxykd.config.models import ModelSpec
from proxykd.exceptions import ModelError
from proxykd.models.sources import resolve_source
from proxykd.models.tokenizers import check_same_tokenizer, load_tokenizer, tokenizer_fingerprint

WORDS = ("<pad>", "<end>", "a", "b", "c")


def save_tokenizer(folder, words=WORDS, *, end="<end>", pad=None, split=None):
    backend = Tokenizer(models.WordLevel({word: idx for idx, word in enumerate(words)}, unk_token=words[0]))
    backend.pre_tokenizer = split or pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=end, pad_token=pad).save_pretrained(folder)
    return ModelSpec(source=str(folder))


def test_padding_is_on_the_right_with_the_end_token_where_there_is_no_other(tmp_path):
    tokenizer = load_tokenizer(save_tokenizer(tmp_path))
    assert (tokenizer.padding_side, tokenizer.pad_token_id) == ("right", tokenizer.eos_token_id)
    own = load_tokenizer(save_tokenizer(tmp_path / "own", pad="<pad>"))
    assert own.pad_token_id == 0


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    with pytest.raises(ModelError, match="end-of-sequence"):
        load_tokenizer(save_tokenizer(tmp_path, end=None))


def test_equal_tokenizers_have_equal_fingerprints(tmp_path):
    one, two = save_tokenizer(tmp_path / "one"), save_tokenizer(tmp_path / "two")
    assert tokenizer_fingerprint(load_tokenizer(one)) == tokenizer_fingerprint(load_tokenizer(two))
    check_same_tokenizer(one, two)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"words": (*WORDS, "d")}, r"size of the vocabulary \(5 against 6"),
        ({"words": ("<pad>", "<end>", "b", "a", "c")}, r"token 'a' has id 2 against 3"),
        ({"end": "<pad>"}, r"end-of-sequence token \('<end>' against '<pad>'\)"),
        ({"split": pre_tokenizers.WhitespaceSplit()}, "pre-tokenizer"),
    ],
)
def test_the_first_difference_is_named(tmp_path, changes, message):
    one, two = save_tokenizer(tmp_path / "one"), save_tokenizer(tmp_path / "two", **changes)
    assert tokenizer_fingerprint(load_tokenizer(one)) != tokenizer_fingerprint(load_tokenizer(two))
    with pytest.raises(ModelError, match=message):
        check_same_tokenizer(one, two)


def test_a_living_teacher_is_not_told_to_be_aligned(tmp_path):
    """``cross_tokenizer`` beside it is refused: one message must not send the user to the other."""
    one, two = save_tokenizer(tmp_path / "one"), save_tokenizer(tmp_path / "two", words=(*WORDS, "d"))
    with pytest.raises(ModelError, match=r"leave student\.living_teacher out and set student\.cross_tokenizer"):
        check_same_tokenizer(one, two, is_living=True)
    with pytest.raises(ModelError, match=r"one family, or set student\.cross_tokenizer"):
        check_same_tokenizer(one, two)


def test_embedded_models_share_a_tokenizer():
    check_same_tokenizer(ModelSpec(source="embedded:proxy"), ModelSpec(source="embedded:student"))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("embedded:teacher", "embedded:proxy or embedded:student"),
        ("package:nothing", "IMPORT_NAME/FILE.gguf"),
        ("package:no_such_package/model.gguf", "pip install"),
        ("package:proxykd/model.gguf", r"found \[\]"),
        ("./no/such/folder", "model folder"),
    ],
)
def test_a_source_that_is_not_there_is_explained(source, message):
    with pytest.raises(ModelError, match=message):
        resolve_source(source)


def test_a_package_is_found_without_being_imported(tmp_path, monkeypatch):
    (tmp_path / "gguf_package").mkdir()
    (tmp_path / "gguf_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    (tmp_path / "gguf_package" / "model.gguf").touch()
    monkeypatch.syspath_prepend(tmp_path)
    source = resolve_source("package:gguf_package/model.gguf")
    assert (source.location, source.gguf_file) == (str(tmp_path / "gguf_package"), "model.gguf")


def test_comparing_tokenizers_needs_no_torch(tmp_path):
    one, two = (save_tokenizer(tmp_path / name).source for name in ("one", "two"))
    code = (
        "import sys; from proxykd.config.models import ModelSpec; from proxykd.models.tokenizers import *;"
        f"check_same_tokenizer(ModelSpec(source={one!r}), ModelSpec(source={two!r}));"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)

"""Sizes from small files agree with the models themselves; a GGUF file's head is read without its weights."""

import json
import struct
from pathlib import Path

import pytest

from proxykd.config.models import LoraSpec, ModelSpec
from proxykd.exceptions import ModelError
from proxykd.models.gguf_metadata import GgufMetadata
from proxykd.models.loading import attach_lora, load_model, lower_frozen
from proxykd.models.sizes import model_size
from proxykd.models.sources import Source
from proxykd.models.tokenizer_files import read_tokenizer


@pytest.mark.parametrize("name", ["proxy", "student"])
@pytest.mark.parametrize("num_layers", [None, 2])
def test_a_size_is_that_of_the_loaded_model(name: str, num_layers: int | None) -> None:
    spec = ModelSpec(source=f"embedded:{name}", num_layers=num_layers)
    model = load_model(spec, seed=0)
    assert model_size(spec).num_parameters == pytest.approx(model.num_parameters(), rel=0.01)
    assert model_size(spec).vocab_size == model.config.vocab_size


def test_adapters_train_little_and_keep_the_rest() -> None:
    spec = ModelSpec(source="embedded:proxy", lora=LoraSpec(rank=4))
    size, whole = model_size(spec), model_size(ModelSpec(source="embedded:proxy"))
    model = attach_lora(load_model(spec, seed=0), LoraSpec(rank=4))
    trainable = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    assert size.num_trainable == pytest.approx(trainable, rel=0.01)
    assert size.training_bytes < whole.training_bytes
    before = sum(weight.nbytes for weight in model.parameters())
    lower_frozen(model, "bfloat16")
    saved = before - sum(weight.nbytes for weight in model.parameters())
    assert size.training_bytes - size.aligning_bytes == pytest.approx(saved, rel=0.01)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _gguf(path: Path, *, tokens: tuple[str, ...] = ("<e>", "a", "b", "ab")) -> Path:
    def number(name: str, value: int) -> bytes:
        return _text(name) + struct.pack("<II", 4, value)

    def texts(name: str, values: tuple[str, ...]) -> bytes:
        return _text(name) + struct.pack("<IIQ", 9, 8, len(values)) + b"".join(map(_text, values))

    settings = [
        _text("general.architecture") + struct.pack("<I", 8) + _text("llama"),
        number("llama.embedding_length", 8),
        number("llama.block_count", 3),
        number("llama.attention.head_count", 2),
        _text("tokenizer.ggml.model") + struct.pack("<I", 8) + _text("gpt2"),
        texts("tokenizer.ggml.tokens", tokens),
        _text("tokenizer.ggml.token_type") + struct.pack("<IIQ4i", 9, 5, 4, 3, 1, 1, 1),
        texts("tokenizer.ggml.merges", ("a b",)),
        number("tokenizer.ggml.eos_token_id", 0),
    ]
    tensors = [_text("token_embd.weight") + struct.pack("<IQQIQ", 2, 8, 4, 0, 0)]
    tensors += [_text("output.weight") + struct.pack("<IQQIQ", 2, 8, 4, 0, 128)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(settings))
    path.write_bytes(head + b"".join(settings) + b"".join(tensors))
    return path


def test_the_head_of_a_gguf_file(tmp_path: Path) -> None:
    config = GgufMetadata.read(_gguf(tmp_path / "m.gguf")).config()
    assert config == {
        "hidden_size": 8,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "vocab_size": 4,
        "tie_word_embeddings": False,
    }


def test_a_gguf_tokenizer_counts_with_its_merges_and_control_tokens(tmp_path: Path) -> None:
    _gguf(tmp_path / "m.gguf")
    files = read_tokenizer(Source(str(tmp_path), gguf_file="m.gguf"))
    assert files is not None
    assert files.build is not None
    assert files.build().encode("ab<e>a").ids == [3, 0, 1]
    assert files.parts["end-of-sequence token"] == "<e>"


@pytest.mark.parametrize("length", [3, 30, 200])
def test_a_gguf_file_that_was_cut_short_is_refused(tmp_path: Path, length: int) -> None:
    file = _gguf(tmp_path / "m.gguf")
    file.write_bytes(file.read_bytes()[:length])
    with pytest.raises(ModelError, match=r"expected a GGUF file .*m\.gguf.*download it again"):
        GgufMetadata.read(file)


def test_what_a_configuration_leaves_out_is_asked_of_transformers(tmp_path: Path) -> None:
    settings = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    (tmp_path / "model.safetensors").touch()
    assert model_size(ModelSpec(source=str(tmp_path))).vocab_size == 50

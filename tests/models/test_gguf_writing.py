"""A model that went through GGUF is the same model, in transformers and in llama.cpp; what cannot go is refused."""

import json
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    MistralConfig,
    Qwen2Config,
    Qwen3Config,
)

from proxykd.config.models import ModelSpec
from proxykd.exceptions import ModelError
from proxykd.models.gguf_metadata import GgufMetadata
from proxykd.models.gguf_vocabulary import Vocabulary
from proxykd.models.gguf_writing import Precision, write_gguf
from proxykd.models.loading import load_model, load_tokenizer, save_model
from tests.support.tiny_families import SIZES, STRANGE, byte_level_tokenizer, save_tiny

MODELS = {
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "llama-untied": LlamaConfig(**SIZES, rope_parameters={"rope_theta": 5000.0, "rope_type": "default"}),
    "mistral": MistralConfig(**SIZES, sliding_window=None),
    "qwen2": Qwen2Config(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=128),
}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_reads_the_same_model_back(name: str, tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    model = save_tiny(tmp_path, MODELS[name], tokenizer)
    written = write_gguf(tmp_path, tmp_path / "m.gguf", licence="mit")
    assert written.settings["general.license"] == "mit"
    assert written.config()["num_key_value_heads"] == 2
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = tokenizer(STRANGE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert back(ids).logits.equal(model(ids).logits)


@pytest.mark.parametrize(("precision", "error"), [("f16", 2e-3), ("bf16", 2e-2), ("q8_0", 4e-2)])
def test_lower_precisions_are_near(precision: Precision, error: float, tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    model = save_tiny(tmp_path, MODELS["llama"], tokenizer)
    write_gguf(tmp_path, tmp_path / "f32.gguf")
    write_gguf(tmp_path, tmp_path / "m.gguf", precision=precision)
    assert (tmp_path / "m.gguf").stat().st_size < (tmp_path / "f32.gguf").stat().st_size
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="m.gguf", dtype=torch.float32).eval()
    ids = tokenizer(STRANGE, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        difference = (back(ids).logits - model(ids).logits).abs().max()
    assert 0 < difference < error


def test_shards_are_written_whole(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    model = save_tiny(tmp_path / "whole", MODELS["llama"], tokenizer)
    model.save_pretrained(tmp_path / "shards", max_shard_size="50KB")
    tokenizer.save_pretrained(tmp_path / "shards")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 1
    for name in ("whole", "shards"):
        write_gguf(tmp_path / name, tmp_path / name / "m.gguf")
    whole, shards = (GgufMetadata.read(tmp_path / name / "m.gguf") for name in ("whole", "shards"))
    assert whole == shards


def test_the_vocabulary_is_that_of_thebyte_level_tokenizer(tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer()
    save_tiny(tmp_path, MODELS["llama"], tokenizer)
    settings = write_gguf(tmp_path, tmp_path / "m.gguf").settings
    tokens = settings["tokenizer.ggml.tokens"]
    assert tokens[: len(tokenizer)] == tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    assert tokens[len(tokenizer) :] == [f"[PAD{idx}]" for idx in range(len(tokenizer), 512)]
    assert settings["tokenizer.ggml.token_type"][:4] == [3, 3, 3, 1]  # the special ones are control tokens
    assert settings["tokenizer.ggml.eos_token_id"] == tokenizer.eos_token_id
    assert settings["tokenizer.ggml.add_bos_token"] is False
    assert settings["tokenizer.chat_template"] == tokenizer.chat_template
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="m.gguf")
    assert again(STRANGE)["input_ids"] == tokenizer(STRANGE)["input_ids"]


@pytest.mark.parametrize("name", ["gpt-2", "smollm", "llama-bpe", "qwen2"])
def test_the_way_text_is_cut_into_words_has_llama_cpps_name(name: str) -> None:
    assert Vocabulary.of(byte_level_tokenizer(name), size=512).pre == name


def _with_bos(found: Tokenizer) -> None:
    found.post_processor = processors.TemplateProcessing(single="<|user|> $A", special_tokens=[("<|user|>", 2)])


def test_a_bos_in_front_of_every_text_is_said() -> None:
    tokenizer = byte_level_tokenizer(change=_with_bos)
    with pytest.raises(ModelError, match="other tokens around a text"):
        Vocabulary.of(tokenizer, size=512)
    tokenizer.bos_token = "<|user|>"
    assert Vocabulary.of(tokenizer, size=512).adds_bos


def _set(**parts: Any) -> Callable[[Tokenizer], None]:
    def change(found: Tokenizer) -> None:
        for name, value in parts.items():
            setattr(found, name, value)

    return change


REFUSED_TOKENIZERS = {
    "normalises text": _set(normalizer=normalizers.Lowercase()),
    "no name for the way": _set(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True)),
    "only byte-level BPE": _set(model=models.WordLevel({"a": 0}, unk_token="a")),
    "prefixes or suffixes": _set(model=models.BPE({"a": 0}, [], continuing_subword_prefix="##")),
}


@pytest.mark.parametrize("reason", REFUSED_TOKENIZERS)
def test_a_tokenizer_that_gguf_cannot_describe_is_refused(reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        Vocabulary.of(byte_level_tokenizer(change=REFUSED_TOKENIZERS[reason]), size=512)
    with pytest.raises(ModelError, match="beyond the model's vocabulary"):
        Vocabulary.of(byte_level_tokenizer(), size=100)


def test_whole_words_that_no_merge_makes_are_refused(tmp_path: Path) -> None:
    spec = ModelSpec(source="embedded:student")
    save_model(load_model(spec, seed=0), load_tokenizer(spec), tmp_path)
    with pytest.raises(ModelError, match=r"come from no merge; llama\.cpp would spell them out"):
        write_gguf(tmp_path, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


REFUSED_MODELS = {
    "it is a 'gpt_neox'": {"model_type": "gpt_neox"},
    "its rope is scaled": {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}},
    "it sets attention_bias": {"attention_bias": True},
    "its activation is gelu": {"hidden_act": "gelu"},
    "a sliding window": {"sliding_window": 64},
}


@pytest.mark.parametrize("reason", REFUSED_MODELS)
def test_an_architecture_that_would_come_out_otherwise_is_refused(reason: str, tmp_path: Path) -> None:
    save_tiny(tmp_path, MODELS["llama"], byte_level_tokenizer())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **REFUSED_MODELS[reason]}))
    with pytest.raises(ModelError, match=reason):
        write_gguf(tmp_path, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_a_size_that_does_not_fit_the_precision_is_refused(tmp_path: Path) -> None:
    save_tiny(tmp_path, LlamaConfig(**{**SIZES, "intermediate_size": 100}), byte_level_tokenizer())
    with pytest.raises(ModelError, match="choose another precision"):
        write_gguf(tmp_path, tmp_path / "m.gguf", precision="q8_0")
    assert not (tmp_path / "m.gguf").exists()


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"expected a model folder with config\.json"):
        write_gguf(tmp_path, tmp_path / "m.gguf")


def _llama_cpp(path: Path) -> Any:
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path, params.hostnames, params.port = str(path), ["127.0.0.1"], 0
    params.n_parallel, params.n_ctx, params.verbosity, params.warmup, params.ui = 1, 256, 0, False, False
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
    return xllamacpp.Server(params)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "cut"), [("llama", "gpt-2"), ("llama-untied", "smollm"), ("qwen2", "qwen2"), ("qwen3", "llama-bpe")]
)
def test_llama_cpp_reads_the_same_tokens_and_writes_the_same_text(name: str, cut: str, tmp_path: Path) -> None:
    tokenizer = byte_level_tokenizer(cut)
    model = save_tiny(tmp_path, MODELS[name], tokenizer)
    write_gguf(tmp_path, tmp_path / "m.gguf")
    server = _llama_cpp(tmp_path / "m.gguf")

    def ask(path: str, body: dict[str, Any]) -> Any:
        address = f"{server.listening_address}{path}"
        request = urllib.request.Request(address, json.dumps(body).encode(), {"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    ids = tokenizer(STRANGE)["input_ids"]
    assert ask("/tokenize", {"content": STRANGE, "add_special": True})["tokens"] == ids
    asked = {"prompt": ids, "n_predict": 12, "temperature": 0.0, "ignore_eos": True, "return_tokens": True}
    ours = model.generate(torch.tensor([ids]), max_new_tokens=12, min_new_tokens=12, do_sample=False, pad_token_id=0)
    assert ask("/completion", asked)["tokens"] == ours[0, len(ids) :].tolist()

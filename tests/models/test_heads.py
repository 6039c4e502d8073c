"""Heads as products: the same logits as the model's own, whatever its family scales, caps or adapts."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from proxykd.exceptions import ModelError
from proxykd.models.forward import collate, completion_hidden, completion_labels, completion_logits
from proxykd.models.heads import apply_head, factored_logits, is_factored
from proxykd.student.objective import student_objective

from .tiny import PAD, VOCAB, random_examples, tiny_llama

LENGTHS = [(3, 5), (2, 1), (6, 4)]
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": PAD,
}
FAMILIES = {
    "llama": {"tie_word_embeddings": False},
    "gemma2": {"final_logit_softcapping": 2.0},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 4.0},
}


def family_model(name: str) -> Any:
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **{**SHAPE, **FAMILIES[name], "initializer_range": 0.5})
    return AutoModelForCausalLM.from_config(config).eval()


@pytest.fixture(autouse=True)
def _own_generator() -> Any:
    with torch.random.fork_rng():
        yield


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_are_the_models_own(name: str) -> None:
    model, batch = family_model(name), collate(random_examples(LENGTHS), pad_id=PAD)
    full = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    own = full[:, :-1][batch.loss_mask[:, 1:]]
    torch.testing.assert_close(completion_logits(model, batch), own, rtol=1e-5, atol=1e-5)
    product = factored_logits(model, completion_hidden(model, batch))
    torch.testing.assert_close(product.dense(), own, rtol=1e-5, atol=1e-5)


def adapted(model: Any, **settings: Any) -> Any:
    config = LoraConfig(**{"r": 2, "lora_alpha": 6, "init_lora_weights": False, "task_type": "CAUSAL_LM", **settings})
    return get_peft_model(model, config)


def loss_gradients(model: Any, *, is_fused: bool) -> tuple[Tensor, dict[str, Tensor]]:
    batch = collate(random_examples(LENGTHS), pad_id=PAD)
    model.zero_grad()
    hidden = completion_hidden(model, batch)
    logits = factored_logits(model, hidden) if is_fused else apply_head(model, hidden)
    loss = student_objective(logits, completion_labels(batch), None, alpha=0.0).loss
    loss.backward()  # type: ignore[no-untyped-call]
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")  # peft asks transformers for it
@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["lm_head"]},
        {"target_modules": ["q_proj", "lm_head"], "use_rslora": True},
        {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    ],
    ids=["lora", "rslora", "modules_to_save"],
)
def test_adapters_on_the_head_learn_as_through_peft(settings: dict[str, Any]) -> None:
    model = adapted(family_model("llama"), **settings)
    assert is_factored(model)
    loss, dense = loss_gradients(model, is_fused=False)
    own, fused = loss_gradients(model, is_fused=True)
    torch.testing.assert_close(own, loss)
    assert any("lm_head" in name for name in fused)
    assert fused.keys() == dense.keys()
    for name, gradient in dense.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_disabled_or_merged_adapter_has_no_pair_of_its_own() -> None:
    model = adapted(family_model("llama"), target_modules=["lm_head"])
    hidden = torch.randn(3, 16)
    assert len(factored_logits(model, hidden).weights) == 2
    with model.disable_adapter():
        assert len(factored_logits(model, hidden).weights) == 1
    expected = factored_logits(model, hidden).dense()
    model.merge_adapter()
    assert len(factored_logits(model, hidden).weights) == 1
    torch.testing.assert_close(factored_logits(model, hidden).dense(), expected)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_head_that_is_no_such_product_is_left_to_its_module() -> None:
    dora = adapted(family_model("llama"), target_modules=["lm_head"], use_dora=True)
    watched = tiny_llama()
    watched.lm_head.register_forward_hook(lambda module, args, output: output)
    for model in (dora, watched):
        assert not is_factored(model)
        with pytest.raises(ModelError, match="apply_head"):
            factored_logits(model, torch.zeros(1, 16))


def test_tied_weights_get_one_gradient_from_both_ends() -> None:
    model = tiny_llama()
    _, dense = loss_gradients(model, is_fused=False)
    _, fused = loss_gradients(model, is_fused=True)
    assert "lm_head.weight" not in fused
    for name, gradient in dense.items():
        torch.testing.assert_close(fused[name], gradient, rtol=1e-4, atol=1e-5)

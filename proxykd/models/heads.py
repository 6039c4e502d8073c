"""What a model's head is made of: the tensors that ``proxykd.fused`` multiplies, in place of calling the head.

Known are plain linear heads, tied or not, linear heads under LoRA adapters (peft), and heads that peft trains as a
whole (``modules_to_save``); scores multiplied by the configuration's ``logit_scale`` (Cohere) or
``lm_head_multiplier`` (Falcon-H1), divided by its ``logits_scaling`` (Granite), and capped by its
``final_logit_softcapping`` (Gemma) or ``logits_soft_cap`` (RecurrentGemma). Any other head must be called as a module:
``is_factored`` tells.
"""

from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from proxykd.exceptions import ModelError
from proxykd.factored_logits import FactoredLogits

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def plain_model(model: "PreTrainedModel") -> "PreTrainedModel":
    """A model without its peft wrapper; adapters inside it stay."""
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def decoder_layers(model: "PreTrainedModel") -> list[nn.Module]:
    """A model's decoder layers, whatever the architecture calls them; none where they are no list."""
    plain = plain_model(model)
    number = plain.config.get_text_config().num_hidden_layers
    lists = (part for part in plain.get_decoder().children() if isinstance(part, nn.ModuleList))
    return next((list(part) for part in lists if len(part) == number), [])


def is_head_adapted(model: "PreTrainedModel") -> bool:
    """Whether adapters, or a trained copy (peft), stand in the place of a model's head."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import ModulesToSaveWrapper

    return isinstance(plain_model(model).get_output_embeddings(), BaseTunerLayer | ModulesToSaveWrapper)


def apply_head(model: "PreTrainedModel", hidden: Tensor) -> Tensor:
    """Logits, float [n, vocab], of hidden states [n, hidden], as the model itself computes them."""
    plain = plain_model(model)
    logits: Tensor = plain.get_output_embeddings()(hidden)
    scale, softcap = _scale_of(plain.config), _softcap_of(plain.config)
    if scale != 1.0:
        logits = logits * scale
    return logits if softcap is None else softcap * (logits / softcap).tanh()


def is_factored(model: "PreTrainedModel") -> bool:
    """Whether a model's logits are a sum of products that this module knows."""
    head = _unwrap(plain_model(model).get_output_embeddings())
    linear = head.base_layer if _is_lora(head) else head
    # Whoever hooked onto the module waits for a call that would not come; FSDP's hooks gather what is gathered here.
    is_watched = any(part._forward_hooks or part._forward_pre_hooks for part in {head, linear})
    return type(linear) is nn.Linear and (not is_watched or hasattr(linear.weight, "full_tensor"))


def factored_logits(model: "PreTrainedModel", hidden: Tensor) -> FactoredLogits:
    """What ``apply_head`` would compute, not multiplied out.

    Args:
        model: A causal language model, with or without adapters.
        hidden: What its decoder returns, float [n, hidden].

    Raises:
        ModelError: if the head is not one that this module knows.
    """
    if not is_factored(model):
        raise ModelError("expected a head that is a linear layer, perhaps with LoRA adapters; call apply_head instead")
    plain = plain_model(model)
    head, inputs, weights = _unwrap(plain.get_output_embeddings()), [hidden], []
    linear = head.base_layer if _is_lora(head) else head
    weights.append(linear.weight)
    for name in _active_adapters(head) if _is_lora(head) else ():
        down = head.lora_A[name]
        inputs.append(down(head.lora_dropout[name](hidden.to(down.weight.dtype))) * head.scaling[name])
        weights.append(head.lora_B[name].weight)
    scale, softcap = _scale_of(plain.config), _softcap_of(plain.config)
    return FactoredLogits(tuple(inputs), tuple(weights), linear.bias, scale=scale, softcap=softcap)


def _unwrap(head: Any) -> Any:
    """The module that is called: peft keeps a trained copy of a head in ``modules_to_save`` beside the original."""
    from peft.utils import ModulesToSaveWrapper

    if not isinstance(head, ModulesToSaveWrapper):
        return head
    if head.disable_adapters or not head.active_adapters:
        return head.original_module
    return head.modules_to_save[head.active_adapters[0]]


def _is_lora(head: Any) -> bool:
    """Whether a head is a linear layer under plain LoRA adapters: no DoRA or other variant, no bias in B."""
    from peft.tuners.lora import Linear

    if type(head) is not Linear or head.fan_in_fan_out:
        return False
    return all(name not in head.lora_variant and head.lora_B[name].bias is None for name in _active_adapters(head))


def _active_adapters(head: Any) -> list[str]:
    return (
        [] if head.disable_adapters or head.merged else [name for name in head.active_adapters if name in head.lora_A]
    )


def _scale_of(config: Any) -> float:
    text = config.get_text_config()
    scale = getattr(text, "logit_scale", None) or getattr(text, "lm_head_multiplier", None) or 1.0
    scaling = getattr(text, "logits_scaling", None) or 1.0
    # One name, two meanings: HyperCLOVA X multiplies by what Granite divides by.
    return float(scale * scaling if text.model_type.startswith("hyperclovax") else scale / scaling)


def _softcap_of(config: Any) -> float | None:
    text = config.get_text_config()
    caps = (getattr(text, name, None) for name in ("final_logit_softcapping", "logits_soft_cap"))
    return next((float(cap) for cap in caps if cap is not None), None)

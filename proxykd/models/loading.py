"""Source -> model: loading, pruning, LoRA, and saving in a form that plain transformers reads.

Weights are float32 while they are trained; ``autocast`` lowers the arithmetic alone. Whatever the source, the model
that comes out is an ordinary transformers model: nothing of ours is needed to load what ``save_model`` writes.
"""

import gc
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaConfig

from proxykd.config.models import LoraSpec, ModelSpec
from proxykd.exceptions import ModelError, StorageError
from proxykd.models.heads import decoder_layers, plain_model
from proxykd.models.sources import EMBEDDED_SHAPES, Source, missing_model, resolve_source
from proxykd.models.tokenizers import load_tokenizer, load_tokenizer_from

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "attach_lora",
    "autocast",
    "default_device",
    "is_lowered",
    "is_spread",
    "load_model",
    "load_saved",
    "load_to_ask",
    "load_tokenizer",
    "load_trainable",
    "lower_frozen",
    "prune_layers",
    "save_activation_memory",
    "save_model",
    "save_untrained",
    "spread",
]

# The rest is for activations.
_SHARE_OF_WEIGHTS = 0.8
_PER_LAYER_SETTINGS = ("layer_types", "mlp_layer_types", "no_rope_layers")


def load_model(spec: ModelSpec, *, seed: int, device: torch.device | None = None) -> "PreTrainedModel":
    """The model of a specification: float32 weights, pruned to ``num_layers``, without adapters.

    Args:
        spec: Source and number of layers.
        seed: Decides the random weights of an embedded model; the global generator is left as it was.
        device: Where it is put; None = on the accelerator, if there is one.

    Raises:
        ModelError: if the source cannot be loaded or has fewer layers than wanted.
    """
    source = resolve_source(spec.source)
    if source.embedded_name is not None:
        model = _build_embedded(source, spec.max_seq_tokens, seed)
    else:
        model = _load_pretrained(source)
    if spec.num_layers is not None:
        prune_layers(model, spec.num_layers)
    if spec.attention is not None:
        _choose_attention(model, spec)
    return model.to(default_device() if device is None else device)


def load_trainable(spec: ModelSpec, *, seed: int, device: torch.device | None = None) -> "PreTrainedModel":
    """A model before its training: weights from its source, adapters if the specification wants them.

    Args:
        spec: Source, pruning and adapters.
        seed: Decides random weights and the adapters' start; models from pretrained weights without adapters differ
            between seeds by the order of their examples alone.
        device: As for ``load_model``.
    """
    model = load_model(spec, seed=seed, device=device)
    if spec.lora is None:
        return model
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return attach_lora(model, spec.lora)


def _choose_attention(model: "PreTrainedModel", spec: ModelSpec) -> None:
    try:
        model.set_attn_implementation(spec.attention)
    except (ImportError, ValueError) as error:
        raise ModelError(
            f"{spec.source} cannot run with attention={spec.attention}: {error}; install what it names, or leave "
            "attention out for transformers' own choice"
        ) from error


def load_saved(folder: Path) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Model (float32) and tokenizer from a folder that ``save_model`` wrote.

    Raises:
        ModelError: if the folder holds no model.
    """
    source = Source(str(folder))
    return _load_pretrained(source).to(default_device()), load_tokenizer_from(source)


def load_to_ask(folder: Path, *, precision: str = "float32") -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """The same for a model that is not trained any more, held as ``lower_frozen`` and ``spread`` say.

    Args:
        folder: The model's.
        precision: As in ``ModelSpec.precision``: bfloat16 = it is asked in that alone.

    Raises:
        ModelError: if the folder holds no model, or all accelerators together have no room for it.
    """
    source = Source(str(folder))
    model = _load_pretrained(source).requires_grad_(False)
    lower_frozen(model, precision)
    return spread(model), load_tokenizer_from(source)


def spread(model: "PreTrainedModel", room: Mapping[int | str, int] | None = None) -> "PreTrainedModel":
    """A model on the accelerator; where one has no room for it, its layers on one accelerator after another.

    Args:
        model: In the host's memory.
        room: Bytes of weights that fit, by accelerate's names of devices; None = a share of what is free on each
            accelerator.

    Raises:
        ModelError: if all of them together have no room.
    """
    from accelerate import dispatch_model, infer_auto_device_map
    from accelerate.utils import get_max_memory

    if room is None:
        if torch.accelerator.is_available():
            # What earlier models had counts as taken until it is given back; spread ones are freed by the collector.
            gc.collect()
            torch.accelerator.empty_cache()
        found = {name: size for name, size in get_max_memory().items() if name != "cpu"}
        room = {name: int(_SHARE_OF_WEIGHTS * size) for name, size in found.items()}
    num_bytes = sum(value.nbytes for value in model.parameters())
    if len(room) < 2 or num_bytes <= next(iter(room.values())):
        return model.to(default_device())
    places = infer_auto_device_map(model, max_memory=dict(room), no_split_module_classes=model._no_split_modules)
    if not set(places.values()) <= set(room):
        raise ModelError(
            f"expected {len(room)} accelerators to have room for {num_bytes / 1e9:.1f} GB of weights, but "
            f"{sum(room.values()) / 1e9:.1f} GB are free for them; take more, or precision bfloat16"
        )
    return dispatch_model(model, places)


def is_spread(model: "PreTrainedModel") -> bool:
    """Whether the layers are in several places (``spread``)."""
    return hasattr(model, "hf_device_map")


def save_model(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", folder: Path) -> None:
    """Write weights (safetensors), configuration, generation configuration and tokenizer.

    Args:
        model: A model; adapters are merged into it for good, so train a LoRA model no further afterwards.
        tokenizer: Its tokenizer, chat template included.
        folder: Where to; created.

    Raises:
        StorageError: if the weights cannot be written: the disk is full, say.
    """
    plain = model.merge_and_unload() if hasattr(model, "merge_and_unload") else model
    plain.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        max_new_tokens=256,
    )
    try:
        plain.save_pretrained(folder)
    except SafetensorError as error:
        raise StorageError(
            f"expected to write the model's weights to {folder}: {error}; free some space and run the same command "
            "again: it goes on from here"
        ) from error
    tokenizer.save_pretrained(folder)


def save_untrained(spec: ModelSpec, seeds: Iterable[int], *, folder: Path) -> list[Path]:
    """Save a model as it is before any training, once for each seed; returns the folders in the order of ``seeds``."""
    folders = []
    for seed in seeds:
        save_model(load_model(spec, seed=seed), load_tokenizer(spec), folder / f"seed-{seed}" / "model")
        folders.append(folder / f"seed-{seed}" / "model")
    return folders


def attach_lora(model: "PreTrainedModel", spec: LoraSpec) -> "PreTrainedModel":
    """``model`` with frozen weights and trainable low-rank adapters, drawn from torch's global generator.

    References: Hu et al., LoRA, arXiv:2106.09685.
    """
    from peft import LoraConfig, get_peft_model

    targets = spec.target_modules if isinstance(spec.target_modules, str) else list(spec.target_modules)
    config = LoraConfig(
        r=spec.rank,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.dropout,
        target_modules=targets,
        task_type="CAUSAL_LM",
    )
    try:
        with warnings.catch_warnings():
            # peft 0.21 still reads a name that transformers 5.23 has renamed.
            warnings.filterwarnings("ignore", message=".*gradient_checkpointing. is deprecated", category=FutureWarning)
            return get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"lora.target_modules={targets} does not fit the model: {error}") from error


def lower_frozen(model: "PreTrainedModel", precision: str) -> None:
    """Hold what is not trained of a model's linear layers in the type that their arithmetic has; changes ``model``.

    Under autocast a linear layer rounds its float32 weight to bfloat16 in every pass. Held in bfloat16 from the start,
    it takes half the memory, and every score stays the same, bit for bit. Norms, embeddings and the head, whose
    arithmetic is not bfloat16 everywhere, stay float32; so do experts that are no linear layers.

    Args:
        model: With its adapters, if any, and what is not trained frozen.
        precision: As in ``ModelSpec.precision``: nothing is done for float32.
    """
    if precision != "bfloat16":
        return
    for layer in decoder_layers(model):
        for module in layer.modules():
            if isinstance(module, torch.nn.Linear) and not module.weight.requires_grad:
                module.to(torch.bfloat16)


def is_lowered(model: "PreTrainedModel") -> bool:
    """Whether ``lower_frozen`` changed anything: then passes need autocast."""
    return any(value.dtype == torch.bfloat16 for value in model.parameters())


def save_activation_memory(model: "PreTrainedModel") -> None:
    """Keep the inputs of each layer alone and compute the rest again in the backward pass (gradient checkpointing).

    References: Chen et al., Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """
    plain_model(model).activation_checkpointing_enable({"use_reentrant": False})


def prune_layers(model: "PreTrainedModel", num_layers: int) -> None:
    """Keep ``num_layers`` evenly spaced decoder layers, first and last among them; changes model and configuration.

    Raises:
        ModelError: if the model has fewer layers.
    """
    decoder, config = model.get_decoder(), model.config
    total = len(decoder.layers)
    if num_layers > total:
        raise ModelError(f"num_layers={num_layers} wanted, but the model has {total}; lower num_layers")
    kept = [round(position) for position in torch.linspace(0, total - 1, num_layers).tolist()]
    decoder.layers = torch.nn.ModuleList(decoder.layers[idx] for idx in kept)
    for layer_idx, layer in enumerate(decoder.layers):
        for module in layer.modules():
            if hasattr(module, "layer_idx"):
                # The generation cache finds a layer's keys and values by this number.
                module.layer_idx = layer_idx
    for name in _PER_LAYER_SETTINGS:
        if getattr(config, name, None) is not None:
            setattr(config, name, [getattr(config, name)[idx] for idx in kept])
    config.num_hidden_layers = num_layers


def autocast(precision: str) -> AbstractContextManager[object]:
    """Arithmetic in bfloat16 where that is safe, or untouched for ``float32``."""
    if precision == "bfloat16":
        # Casts are not kept: of shards they would be a copy of all weights, and each is needed once a pass.
        return torch.autocast(default_device().type, dtype=torch.bfloat16, cache_enabled=False)
    return nullcontext()


def default_device() -> torch.device:
    """The accelerator if there is one, else the CPU."""
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def _build_embedded(source: Source, max_seq_tokens: int, seed: int) -> "PreTrainedModel":
    tokenizer = load_tokenizer_from(source)
    config = LlamaConfig(
        **EMBEDDED_SHAPES[str(source.embedded_name)],
        vocab_size=len(tokenizer),
        max_position_embeddings=max(512, max_seq_tokens),
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def _load_pretrained(source: Source) -> "PreTrainedModel":
    safe = {} if source.gguf_file else {"use_safetensors": True}
    try:
        model = AutoModelForCausalLM.from_pretrained(source.location, dtype=torch.float32, **safe, **source.arguments)
    except (OSError, ValueError, ImportError) as error:
        raise missing_model("model", source, error) from error
    return _without_quantization(model) if source.gguf_file else model


def _without_quantization(model: "PreTrainedModel") -> "PreTrainedModel":
    """The same weights in a model that does not remember GGUF: one that does refuses to be saved."""
    settings = model.config.to_dict()
    settings.pop("quantization_config", None)
    plain = AutoModelForCausalLM.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    plain.load_state_dict(model.state_dict())
    return plain

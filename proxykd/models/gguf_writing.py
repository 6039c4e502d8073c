"""A model folder -> one GGUF file, which llama.cpp and its relatives run, and transformers reads back.

    settings    sizes, rope, vocabulary, chat template, licence
    tensors     in the order of the safetensors files, one in memory at a time

GGUF files of the llama family hold the rows of the query and key projections in another order: llama.cpp turns pairs of
neighbours where transformers turns the halves of a head (``_interleave``).

References:
    GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import torch

from proxykd.exceptions import ModelError
from proxykd.models.gguf_metadata import GgufMetadata
from proxykd.models.gguf_vocabulary import Vocabulary
from proxykd.models.sources import Source
from proxykd.models.tokenizers import load_tokenizer_from

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType, GGUFWriter, TensorNameMap

Precision = Literal["f32", "f16", "bf16", "q8_0"]


@dataclass(frozen=True, slots=True)
class _Family:
    """How models of one ``model_type`` are written.

    Attributes:
        architecture: GGUF's name.
        interleaves: Whether the rows of query and key change places.
        biases: Settings of the configuration that must be off, because GGUF has no tensor for what they add.
    """

    architecture: str
    interleaves: bool
    biases: tuple[str, ...] = ("attention_bias", "mlp_bias")


FAMILIES = {
    "llama": _Family("llama", True),
    "mistral": _Family("llama", True),
    "qwen2": _Family("qwen2", False, ()),
    "qwen3": _Family("qwen3", False),
}
"""``model_type`` -> how it is written."""


def write_gguf(folder: Path, path: Path, *, precision: Precision = "f32", licence: str | None = None) -> GgufMetadata:
    """Write the model of a folder to a new GGUF file.

    Args:
        folder: Configuration, safetensors weights and tokenizer.
        path: Where to; an existing file is replaced.
        precision: Of the matrices; vectors stay f32. q8_0 = 8 bits in blocks of 32.
        licence: For the file's settings; None = it says nothing.

    Returns:
        What the file says about itself, read back.

    Raises:
        ModelError: if the architecture or the tokenizer cannot be written, a size does not fit the precision, or the
            gguf package is missing.
    """
    if find_spec("gguf") is None:
        raise ModelError("writing GGUF needs the gguf package: pip install 'proxykd[gguf]'")
    from gguf import GGMLQuantizationType, GGUFWriter, LlamaFileType

    config = _read_config(folder)
    family, name = _family_of(config), path.stem
    vocabulary = Vocabulary.of(load_tokenizer_from(Source(str(folder))), size=config["vocab_size"])
    tensors = list(_plan(folder, config, family, GGMLQuantizationType[precision.upper()]))
    kinds = {"f32": "ALL_F32", "f16": "MOSTLY_F16", "bf16": "MOSTLY_BF16", "q8_0": "MOSTLY_Q8_0"}
    writer = GGUFWriter(str(path), family.architecture)
    writer.add_name(name)
    writer.add_file_type(LlamaFileType[kinds[precision]])
    if licence is not None:
        writer.add_license(licence)
    _add_sizes(writer, config)
    vocabulary.write(writer)
    _write_tensors(writer, tensors, config)
    found = GgufMetadata.read(path)
    if found.tensor_names != {tensor.name for tensor in tensors}:
        raise ModelError(f"expected {len(tensors)} tensors in {path}, read back {len(found.tensor_names)}; report this")
    return found


class _Tensor(NamedTuple):
    """A tensor that will be written: where it stands, and as what."""

    file: Path
    source: str
    name: str
    shape: tuple[int, ...]
    kind: "GGMLQuantizationType"
    heads: int | None


def _read_config(folder: Path) -> dict[str, Any]:
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"expected a model folder with config.json at {folder}: {error}") from error
    heads = config["num_attention_heads"]
    config.setdefault("num_key_value_heads", heads)
    config["head_dim"] = config.get("head_dim") or config["hidden_size"] // heads
    return config


def _family_of(config: Mapping[str, Any]) -> _Family:
    family = FAMILIES.get(config.get("model_type", ""))
    if family is None:
        raise _refused(f"it is a {config.get('model_type')!r}; written are {', '.join(FAMILIES)}")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        raise _refused(f"its rope is scaled ({json.dumps(rope):.80})")
    if on := [name for name in family.biases if config.get(name)]:
        raise _refused(f"it sets {', '.join(on)}")
    if config.get("hidden_act", "silu") != "silu":
        raise _refused(f"its activation is {config['hidden_act']}")
    windows = {"full_attention"} != set(config.get("layer_types") or ["full_attention"])
    if windows or (config.get("sliding_window") and config.get("use_sliding_window", True)):
        raise _refused("its attention has a sliding window")
    return family


def _plan(
    folder: Path, config: Mapping[str, Any], family: _Family, wanted: "GGMLQuantizationType"
) -> Iterator[_Tensor]:
    from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGMLQuantizationType, get_tensor_name_map
    from safetensors import safe_open

    architecture = next(arch for arch in MODEL_ARCH if MODEL_ARCH_NAMES[arch] == family.architecture)
    names = get_tensor_name_map(architecture, config["num_hidden_layers"])
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            for source in sorted(opened.keys()):
                if source == "lm_head.weight" and config.get("tie_word_embeddings"):
                    continue
                shape = tuple(opened.get_slice(source).get_shape())
                part = source.split(".")[-2]
                yield _Tensor(
                    file,
                    source,
                    _name(names, source),
                    shape,
                    wanted if len(shape) > 1 else GGMLQuantizationType.F32,
                    heads.get(part) if family.interleaves else None,
                )


def _name(names: "TensorNameMap", source: str) -> str:
    name: str | None = names.get_name(source, try_suffixes=(".weight", ".bias"))
    if name is None:
        raise _refused(f"GGUF has no name for its tensor {source}")
    return name


def _add_sizes(writer: "GGUFWriter", config: Mapping[str, Any]) -> None:
    rope = config.get("rope_parameters") or {}
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0))
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])


def _write_tensors(writer: "GGUFWriter", tensors: list[_Tensor], config: Mapping[str, Any]) -> None:
    from gguf import quant_shape_to_byte_shape, quantize
    from safetensors import safe_open

    for tensor in tensors:
        try:
            shape = quant_shape_to_byte_shape(tensor.shape, tensor.kind)
        except ValueError as error:
            raise _refused(f"{tensor.source}: {error}; choose another precision") from error
        writer.add_tensor_info(tensor.name, shape, np.dtype(np.uint8), math.prod(shape), raw_dtype=tensor.kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    try:
        for tensor in tensors:
            with safe_open(tensor.file, framework="pt") as opened:
                weight = opened.get_tensor(tensor.source).to(torch.float32).numpy()
            if tensor.heads is not None:
                weight = _interleave(weight, tensor.heads)
            writer.write_tensor_data(quantize(weight, tensor.kind).view(np.uint8))
    finally:
        writer.close()


def _interleave(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (first half, second half) to pairs of one of each."""
    half = weight.shape[0] // heads // 2
    return weight.reshape(heads, 2, half, *weight.shape[1:]).swapaxes(1, 2).reshape(weight.shape)


def _refused(reason: str) -> ModelError:
    return ModelError(
        f"expected a model that GGUF can hold, but {reason}; export it as a Hugging Face folder instead (leave out "
        "--format gguf)"
    )

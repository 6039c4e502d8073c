"""How large an open model is, from its configuration alone: no weights are read, torch is not imported."""

from dataclasses import dataclass
from types import SimpleNamespace

from proxykd.config.models import ModelSpec
from proxykd.exceptions import ModelError
from proxykd.models.source_files import check_weights, read_config
from proxykd.models.sources import Source, missing_model, resolve_source

TRAINING_BYTES_PER_PARAMETER = 16
"""float32 weight, gradient and AdamW's two moments."""

_REQUIRED = {"hidden_size", "num_hidden_layers", "vocab_size", "num_attention_heads", "tie_word_embeddings"}
_OPTIONAL = ("head_dim", "num_key_value_heads", "intermediate_size")


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model needs.

    Attributes:
        num_parameters: All weights that are kept, embeddings included (an estimate within a few per cent).
        num_trainable: Weights that are trained: all of them, or the adapters.
        vocab_size: Rows of the head.
        activation_floats: Numbers that one layer after another keeps for the backward pass, for each token.
        checkpointed_floats: The same with gradient checkpointing: all layers' inputs, and what one layer keeps.
        num_projected: Weights of the layers' matrices, which frozen ones in bfloat16 have in that type.
    """

    num_parameters: int
    num_trainable: int
    vocab_size: int
    activation_floats: int
    checkpointed_floats: int
    num_projected: int

    @property
    def training_bytes(self) -> int:
        """Weights, gradients and optimiser state while it is trained; activations come on top."""
        frozen = self.num_parameters - min(self.num_trainable, self.num_parameters)
        return TRAINING_BYTES_PER_PARAMETER * self.num_trainable + 4 * frozen

    @property
    def aligning_bytes(self) -> int:
        """The same of a proxy under adapters in bfloat16 (``loading.lower_frozen``)."""
        return self.training_bytes - 2 * self.num_projected

    @property
    def saved_bytes(self) -> int:
        """The float32 weights on disk."""
        return 4 * self.num_parameters


def model_size(spec: ModelSpec) -> ModelSize:
    """Size of the model that ``spec`` names.

    Raises:
        ModelError: if its configuration or its weights cannot be found, or it has fewer layers than wanted.
    """
    source = resolve_source(spec.source)
    check_weights(source)
    return _size_of(_config(source), spec)


def _config(source: Source) -> SimpleNamespace:
    """The sizes as the model's files state them; where they leave one to the library's defaults, transformers' view."""
    values = read_config(source)
    if values.keys() >= _REQUIRED:
        return SimpleNamespace(**values)
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(source.location, **source.arguments)
    except (OSError, ValueError, ImportError) as error:
        raise missing_model("model", source, error) from error
    return SimpleNamespace(**{name: getattr(config, name, None) for name in (*_REQUIRED, *_OPTIONAL)})


def _size_of(config: SimpleNamespace, spec: ModelSpec) -> ModelSize:
    hidden, layers, vocab = config.hidden_size, config.num_hidden_layers, config.vocab_size
    if spec.num_layers is not None and spec.num_layers > layers:
        raise ModelError(f"num_layers={spec.num_layers} requested, but {spec.source} has {layers}; lower num_layers")
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    inner = getattr(config, "intermediate_size", None) or 4 * hidden
    projections = [(hidden, heads * head_dim)] * 2 + [(hidden, key_value_heads * head_dim)] * 2 + [(hidden, inner)] * 3
    kept = spec.num_layers or layers
    embeddings = vocab * hidden * (1 if config.tie_word_embeddings else 2)
    projected = kept * sum(rows * columns for rows, columns in projections)
    total = embeddings + projected
    rank = spec.lora.rank if spec.lora else 0
    trainable = kept * rank * sum(rows + columns for rows, columns in projections) if spec.lora else total
    a_layer = 8 * hidden + 4 * inner
    return ModelSize(total, trainable, vocab, kept * a_layer, kept * hidden + a_layer, projected)

"""A Llama of a few thousand weights, and texts for it."""

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from proxykd.data.tokenizing import Example

VOCAB, EOS, PAD = 23, 1, 0


def tiny_llama(num_layers: int = 2, seed: int = 0, scale: float = 0.5) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=scale,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=EOS,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def random_examples(lengths: list[tuple[int, int]], seed: int = 0) -> list[Example]:
    rng = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return rng.integers(2, VOCAB, length, dtype=np.int32)

    return [Example(f"{row:016x}", 0, ids(prompt), ids(completion)) for row, (prompt, completion) in enumerate(lengths)]


class TinyTokenizer:
    """The two ids that a sampler asks for."""

    eos_token_id, pad_token_id = EOS, PAD

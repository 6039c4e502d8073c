"""Tiny models of the families that GGUF is written for, with byte-level tokenizers as large models have them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedTokenizerFast

from proxykd.teacher.problems import generate_prompts

TEXTS = [prompt.messages[0].content for prompt in generate_prompts(100, 0)]
STRANGE = TEXTS[0] + " xé\n  odd   spacing 1234 don't!"
SPECIAL = ["<|pad|>", "<|eos|>", "<|user|>"]
SIZES: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 512,
    "max_position_embeddings": 256,
}
LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _cut(name: str) -> Any:
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence([digits, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    pattern = LLAMA_3 if name == "llama-bpe" else LLAMA_3.replace("{1,3}", "")
    split = pre_tokenizers.Split(Regex(pattern), "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level_tokenizer(
    name: str = "gpt-2", change: Callable[[Tokenizer], object] | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer trained on the embedded problems that cuts text into words as llama.cpp's ``name`` does."""
    found = Tokenizer(models.BPE())
    found.pre_tokenizer, found.decoder = _cut(name), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(TEXTS, trainer)
    if change is not None:
        change(found)
    return PreTrainedTokenizerFast(
        tokenizer_object=found,
        eos_token="<|eos|>",
        pad_token="<|pad|>",
        chat_template="<|user|>{{ messages[0]['content'] }}<|eos|>",
    )


def save_tiny(folder: Path, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast) -> Any:
    """A random model, saved with its tokenizer."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    # Norms away from 1 and biases away from 0: a tensor that went astray would show.
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.data.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(1))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model

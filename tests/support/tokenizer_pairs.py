"""Small tokenizers of every family, trained in the test, and tiny models that have them."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from proxykd.models.token_bytes import TokenBytes

EOS = "</s>"
TEXTS = (
    "The quick brown fox jumps over the lazy dog, and the dog does not mind at all.",
    "How much is 12 plus 30? It is 42; subtract 2 and it is 40.",
    "Thinking about naïve cafés: résumés, façades and 日本語 text with emoji 😀👍🏽 inside.",
    "def add(first, second):\n    return first + second\n\n\nprint(add(1, 2))\t# done",
    "  leading spaces, trailing spaces  ",
)


def byte_level(texts: Sequence[str] = TEXTS, *, vocab_size: int = 400) -> Tokenizer:
    """Byte-level BPE, as GPT-2, Llama 3 and SmolLM have it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def sentence_piece(texts: Sequence[str] = TEXTS, *, vocab_size: int = 420) -> Tokenizer:
    """BPE with a dummy prefix and byte fallback, as Llama 2 and Mistral have it; it knows ASCII characters only."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=["<unk>", EOS, *fallback], limit_alphabet=70, show_progress=False
    )
    tokenizer.train_from_iterator([text.encode("ascii", "ignore").decode() for text in texts], trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["id"] < 2]
    return Tokenizer.from_str(json.dumps(definition))


def lower_case(texts: Sequence[str] = TEXTS, *, vocab_size: int = 380) -> Tokenizer:
    """Byte-level BPE over NFKC and lower case: it rewrites the text."""
    tokenizer = byte_level([text.lower() for text in texts], vocab_size=vocab_size)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return tokenizer


def word_piece(texts: Sequence[str] = TEXTS, *, vocab_size: int = 300) -> Tokenizer:
    """WordPiece, as BERT has it: spaces are not tokens."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(vocab_size=vocab_size, special_tokens=["[UNK]", EOS], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def bytes_of(tokenizer: Tokenizer) -> TokenBytes:
    """Its vocabulary as bytes."""
    return TokenBytes.of_backend(tokenizer, eos_token=EOS)


def save_tiny_model(folder: Path, tokenizer: Tokenizer, *, seed: int = 0, hidden: int = 32) -> str:
    """A Llama of random weights with this tokenizer; returns the folder as a source."""
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=fast.eos_token_id,
        pad_token_id=fast.eos_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return str(folder)

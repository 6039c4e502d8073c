"""Builds the tokenizer of the tiny embedded models: ``python -m proxykd.teacher.build_tokenizer``.

Every word of the embedded teacher, with and without its leading space where both occur, and every number is one
token; all 256 bytes are tokens too, so any other text round-trips byte by byte. The result depends on nothing but the
grammar: building it twice gives the same files.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from proxykd.teacher.problems import generate_prompts, sample_completion
from proxykd.teacher.stories import ITEMS, NAMES

EMBEDDED_FOLDER = Path(__file__).parent.parent / "models" / "embedded"
SPECIAL_TOKENS = ("<|pad|>", "<|eos|>", "<|system|>", "<|user|>", "<|assistant|>")
LARGEST_NUMBER = 120
NUM_TEXTS = 4000
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|eos|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def build(folder: Path = EMBEDDED_FOLDER) -> None:
    """Write ``tokenizer.json`` and ``tokenizer_config.json`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    _tokenizer().save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<|pad|>",
        "eos_token": "<|eos|>",
        "padding_side": "right",
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1024,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _tokenizer() -> Tokenizer:
    splitter = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {piece for text in _texts() for piece, _ in splitter.pre_tokenize_str(text)}
    pieces = dict.fromkeys([*SPECIAL_TOKENS, *alphabet, *_numbers(), *sorted(words)])
    # No merges: a word that is in the vocabulary is one token (ignore_merges), any other is spelt in bytes.
    model = models.BPE(vocab={piece: idx for idx, piece in enumerate(pieces)}, merges=[], ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS])
    return tokenizer


def _numbers() -> Iterator[str]:
    # "Ġ" is how byte-level alphabets write a space.
    return (f"Ġ{number}" for number in range(LARGEST_NUMBER + 1))


def _texts() -> Iterator[str]:
    rng = random.Random(0)
    for name in NAMES:
        yield f"{name} {name}"
    for items in ITEMS:
        yield f" {items}"
    for prompt in generate_prompts(NUM_TEXTS, seed=0):
        question = prompt.messages[0].content
        yield question
        yield sample_completion(question, rng)


if __name__ == "__main__":
    build()

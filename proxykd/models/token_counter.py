"""Counts tokens for forecasts, quickly: with the tokenizer's own files, or by characters where they cannot be read."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from proxykd.config.models import ModelSpec
from proxykd.data.chat import render_prompt
from proxykd.models.sources import resolve_source
from proxykd.models.tokenizer_files import TokenizerFiles, read_tokenizer
from proxykd.models.tokenizers import load_tokenizer
from proxykd.records import Message

CHARACTERS_A_TOKEN = 4
"""Where there is no tokenizer that can be read quickly; English text has about so many."""


@dataclass(frozen=True, slots=True)
class TokenCounter:
    """Counts tokens with a model's tokenizer; without a backend, estimates them from characters.

    Attributes:
        files: The tokenizer, or its files.
        backend: What encodes; None = there is none that can be read quickly.
    """

    files: Any
    backend: Any

    @classmethod
    def of(cls, model: ModelSpec) -> "TokenCounter":
        """The counter of a model."""
        files: Any = read_tokenizer(resolve_source(model.source))
        if files is None or not files.special_tokens.get("eos_token"):
            tokenizer = load_tokenizer(model)
            return cls(tokenizer, getattr(tokenizer, "backend_tokenizer", None))
        assert isinstance(files, TokenizerFiles)
        return cls(files, files.build() if files.build else None)

    def count_prompt(self, messages: Sequence[Message]) -> int:
        """Tokens of a prompt as the model reads it."""
        return self.count(render_prompt(self.files, messages))

    def count(self, text: str) -> int:
        """Tokens of a text."""
        if self.backend is None:
            return -(-len(text) // CHARACTERS_A_TOKEN)
        return len(self.backend.encode(text, add_special_tokens=False))

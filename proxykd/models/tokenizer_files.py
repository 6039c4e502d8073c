"""A tokenizer as its files describe it: enough to compare two and to count tokens, without transformers' classes.

Reading takes a fraction of a second and no torch, which is what a plan can afford. Training never uses this.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.models.gguf_metadata import GgufMetadata
from proxykd.models.source_files import find_file, read_json_file
from proxykd.models.sources import Source

if TYPE_CHECKING:
    import tokenizers

_CONTROL_TOKEN = 3  # in tokenizer.ggml.token_type


@dataclass(frozen=True, slots=True)
class TokenizerFiles:
    """What the files say.

    Attributes:
        parts: What decides about token ids, by name, in the order in which differences are worth naming.
        chat_template: Jinja source; None = the model has none.
        special_tokens: ``eos_token`` and its like -> the text of the token.
        build: Makes the tokenizer itself; None = of a kind that is not rebuilt here.
    """

    parts: Mapping[str, Any]
    chat_template: str | None
    special_tokens: Mapping[str, str]
    build: "Callable[[], tokenizers.Tokenizer] | None"

    @property
    def bos_token(self) -> None:
        """None: counting may leave out the one token that some models put first."""
        return None

    def apply_chat_template(self, messages: Sequence[Mapping[str, str]], **_: Any) -> str:
        """The rendered messages with the generation prompt, as transformers' tokenizers render them."""
        from transformers.utils.chat_template_utils import render_jinja_template

        rendered = render_jinja_template(
            conversations=[[dict(message) for message in messages]],
            chat_template=self.chat_template,
            add_generation_prompt=True,
            **self.special_tokens,
        )
        return str(rendered[0][0])


def read_tokenizer(source: Source) -> TokenizerFiles | None:
    """The tokenizer of a source from ``tokenizer.json`` or the head of its GGUF file; None = it has neither.

    Raises:
        ModelError: if the source cannot be read.
    """
    if source.gguf_file is not None:
        return _of_gguf(GgufMetadata.read(Path(source.location) / source.gguf_file).settings)
    if (path := find_file(source, "tokenizer.json")) is None:
        return None
    from tokenizers import Tokenizer

    backend = Tokenizer.from_file(str(path))
    settings = read_json_file(source, "tokenizer_config.json") or {}
    special = {key: _content(value) for key, value in settings.items() if key.endswith("_token") and _content(value)}
    parts = comparable_parts(
        backend.get_vocab(with_added_tokens=True), special.get("eos_token"), json.loads(backend.to_str())
    )
    return TokenizerFiles(parts, _chat_template(source, settings), special, lambda: backend)


def comparable_parts(vocab: Mapping[str, int], eos: str | None, definition: Mapping[str, Any]) -> dict[str, Any]:
    """What decides about token ids.

    Args:
        vocab: Token -> id.
        eos: End-of-sequence token; None = there is none.
        definition: Content of ``tokenizer.json``.
    """
    added = definition.get("added_tokens", [])
    return {
        "vocabulary": dict(sorted(vocab.items(), key=lambda item: item[1])),
        "end-of-sequence token": eos,
        "special tokens": sorted(token["content"] for token in added if token["special"]),
        "merges": definition.get("model", {}).get("merges", []),
        "normalizer": definition.get("normalizer"),
        "pre-tokenizer": definition.get("pre_tokenizer"),
    }


def _of_gguf(settings: Mapping[str, Any]) -> TokenizerFiles:
    tokens, merges = settings.get("tokenizer.ggml.tokens", []), settings.get("tokenizer.ggml.merges", [])
    kinds, kind = settings.get("tokenizer.ggml.token_type", []), settings.get("tokenizer.ggml.model")
    control = [token for token, of_kind in zip(tokens, kinds, strict=False) if of_kind == _CONTROL_TOKEN]
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: settings.get(f"tokenizer.ggml.{key}_token_id") for name, key in names.items()}
    special = {name: tokens[idx] for name, idx in ids.items() if idx is not None and idx < len(tokens)}
    parts = {
        "vocabulary": {token: idx for idx, token in enumerate(tokens)},
        "end-of-sequence token": special.get("eos_token"),
        "special tokens": sorted(control),
        "merges": merges,
        "normalizer": kind,
        "pre-tokenizer": settings.get("tokenizer.ggml.pre"),
    }
    build = (lambda: _byte_level(parts["vocabulary"], merges, control)) if kind == "gpt2" else None
    return TokenizerFiles(parts, settings.get("tokenizer.chat_template"), special, build)


def _byte_level(vocab: dict[str, int], merges: list[str], control: list[str]) -> "tokenizers.Tokenizer":
    """Byte-level BPE with the commonest way to split words: near enough for counting."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers

    pairs = [(left, right) for left, right in (merge.split(" ", 1) for merge in merges)]
    backend = Tokenizer(models.BPE(vocab, pairs))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.add_special_tokens([AddedToken(token, normalized=False) for token in control])
    return backend


def _chat_template(source: Source, settings: Mapping[str, Any]) -> str | None:
    template = settings.get("chat_template")
    if isinstance(template, list):
        template = {item["name"]: item["template"] for item in template}.get("default")
    if template is None and (path := find_file(source, "chat_template.jinja")) is not None:
        template = path.read_text(encoding="utf-8")
    return template


def _content(token: Any) -> str:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else ""

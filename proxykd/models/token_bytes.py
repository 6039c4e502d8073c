"""The bytes that each token of a vocabulary stands for, so that tokens of different tokenizers can be compared.

Three families write bytes as printable text in their vocabularies:

    byte-level BPE          each byte is one of 256 printable characters (GPT-2's table)
    SentencePiece           U+2581 is a space, ``<0x0A>`` the byte 10 where there is byte fallback
    WordPiece               ``##`` continues a word, anything else begins one, which counts as a leading space

A token may hold part of a character, so that its bytes alone need not be UTF-8. Control tokens stand for no bytes. A
tokenizer that puts a space before every text (SentencePiece's dummy prefix) is recognised by what it makes of "a".
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from proxykd.exceptions import ModelError

if TYPE_CHECKING:
    import tokenizers

_SPACE = "\u2581"
_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


@dataclass(frozen=True, slots=True)
class TokenBytes:
    """The vocabulary of one tokenizer as bytes.

    Attributes:
        values: Bytes of each token id; None = a control token, or an id that no token has.
        spelled: The same with no bytes for None.
        lengths: Their lengths, int32 [vocab]; 0 for None.
        eos_id: The end-of-sequence token.
        has_dummy_prefix: Whether a space is put before every text.
        backend: The tokenizer; special tokens spelled out in a text stay spelled out.
    """

    values: tuple[bytes | None, ...]
    spelled: tuple[bytes, ...]
    lengths: NDArray[np.int32]
    eos_id: int
    has_dummy_prefix: bool
    backend: "tokenizers.Tokenizer"

    @classmethod
    def of_backend(cls, backend: "tokenizers.Tokenizer", *, eos_token: str) -> "TokenBytes":
        """The bytes of a tokenizer's vocabulary.

        Args:
            backend: The tokenizer; not changed.
            eos_token: Text of its end-of-sequence token.

        Raises:
            ModelError: if it does not have that token.
        """
        from tokenizers import Tokenizer

        if (eos_id := backend.token_to_id(eos_token)) is None:
            raise ModelError(f"expected the end-of-sequence token {eos_token!r} in the vocabulary, found no such token")
        definition = json.loads(backend.to_str())
        own = Tokenizer.from_str(backend.to_str())
        own.no_truncation()
        own.no_padding()
        own.encode_special_tokens = True
        values = _vocabulary_bytes(backend.get_vocab(with_added_tokens=True), definition)
        spelled = tuple(value or b"" for value in values)
        probe = b"".join(spelled[idx] for idx in own.encode("a", add_special_tokens=False).ids)
        return cls(values, spelled, np.array(list(map(len, spelled)), np.int32), eos_id, probe == b" a", own)

    def join(self, ids: Sequence[int]) -> bytes:
        """The bytes of consecutive tokens; control tokens give none."""
        return b"".join(map(self.spelled.__getitem__, ids))


def token_bytes_of(tokenizer: Any) -> TokenBytes:
    """The bytes of a transformers tokenizer's vocabulary.

    Raises:
        ModelError: if it has no fast backend, or no end-of-sequence token.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or tokenizer.eos_token is None:
        raise ModelError(
            "expected a fast tokenizer (tokenizer.json) with an end-of-sequence token, because another tokenizer's "
            f"targets are aligned by bytes, got {type(tokenizer).__name__}; choose models of one family"
        )
    return TokenBytes.of_backend(backend, eos_token=str(tokenizer.eos_token))


def _vocabulary_bytes(vocab: Mapping[str, int], definition: Mapping[str, Any]) -> tuple[bytes | None, ...]:
    added = {token["id"]: token for token in definition.get("added_tokens", [])}
    spell = _speller(definition)
    values: list[bytes | None] = [None] * (max(vocab.values(), default=-1) + 1)
    for token, idx in vocab.items():
        if idx not in added:
            values[idx] = spell(token)
        elif not added[idx]["special"]:
            values[idx] = token.encode()
    return tuple(values)


def _speller(definition: Mapping[str, Any]) -> Any:
    """The function from a token's text to its bytes that fits a tokenizer's definition."""
    model = definition.get("model", {})
    steps = [step for name in ("normalizer", "pre_tokenizer", "decoder") for step in _steps(definition.get(name))]
    kinds = {step["type"] for step in steps}
    if "ByteLevel" in kinds:
        return _byte_level
    if model.get("type") == "WordPiece":
        prefix = model.get("continuing_subword_prefix") or "##"
        return lambda token: _word_piece(token, prefix)
    if "Metaspace" in kinds or any(_writes_spaces(step) for step in steps):
        has_fallback = bool(model.get("byte_fallback")) or "ByteFallback" in kinds
        return lambda token: _sentence_piece(token, has_fallback)
    return _plain(model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or "")


def _steps(step: Mapping[str, Any] | None) -> Iterator[Mapping[str, Any]]:
    """A step of a tokenizer, and all those inside it."""
    if step is not None:
        yield step
        for name in ("normalizers", "pretokenizers", "decoders"):
            for inner in step.get(name, ()):
                yield from _steps(inner)


def _writes_spaces(step: Mapping[str, Any]) -> bool:
    return step["type"] == "Replace" and _SPACE in (step.get("content"), step.get("pattern", {}).get("String"))


def _byte_level(token: str) -> bytes:
    table = _byte_of_character()
    return bytes(table[character] for character in token) if all(map(table.__contains__, token)) else token.encode()


def _word_piece(token: str, prefix: str) -> bytes:
    return token.removeprefix(prefix).encode() if token.startswith(prefix) else b" " + token.encode()


def _sentence_piece(token: str, has_fallback: bool) -> bytes:
    if has_fallback and (found := _BYTE.fullmatch(token)):
        return bytes([int(found[1], 16)])
    return token.replace(_SPACE, " ").encode()


def _plain(prefix: str, suffix: str) -> Any:
    return lambda token: token.removeprefix(prefix).removesuffix(suffix).encode()


@cache
def _byte_of_character() -> dict[str, int]:
    """Byte-level BPE's table: printable bytes stand for themselves, the others for characters from 256 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}

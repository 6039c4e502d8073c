"""What a GGUF file says about itself, read in milliseconds: settings, vocabulary and tensor names, never a weight.

Layout (all little-endian): magic, version, number of tensors, number of settings; then the settings, each a name, a
type and a value; then the tensors, each a name, its dimensions, a type and an offset.

References:
    GGUF specification, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proxykd.exceptions import ModelError

_MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufMetadata:
    """The head of a GGUF file.

    Attributes:
        settings: Name -> number, text, truth value or list of them.
        tensor_names: Names of the tensors.
    """

    settings: dict[str, Any]
    tensor_names: frozenset[str]

    @classmethod
    def read(cls, path: Path) -> "GgufMetadata":
        """Read the head of ``path``.

        Raises:
            ModelError: if it is no GGUF file or was cut short.
        """
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Head(content).read()
        except (struct.error, ValueError, KeyError, UnicodeDecodeError) as error:
            raise ModelError(
                f"expected a GGUF file of version 2 or 3 at {path}, could not read it ({error}); download it again"
            ) from None

    def config(self) -> dict[str, Any]:
        """The sizes under the names that ``config.json`` has for them; sizes that the file leaves out are missing."""
        family = self.settings.get("general.architecture", "")
        names = {
            "hidden_size": "embedding_length",
            "num_hidden_layers": "block_count",
            "intermediate_size": "feed_forward_length",
            "num_attention_heads": "attention.head_count",
            "num_key_value_heads": "attention.head_count_kv",
            "head_dim": "attention.key_length",
            "vocab_size": "vocab_size",
        }
        found = {name: self.settings.get(f"{family}.{key}") for name, key in names.items()}
        if found["vocab_size"] is None and "tokenizer.ggml.tokens" in self.settings:
            found["vocab_size"] = len(self.settings["tokenizer.ggml.tokens"])
        sizes = {name: value for name, value in found.items() if value is not None}
        return {**sizes, "tie_word_embeddings": "output.weight" not in self.tensor_names}


class _Head:
    def __init__(self, content: mmap.mmap) -> None:
        self._content, self._at = content, 4

    def read(self) -> GgufMetadata:
        if self._content[:4] != _MAGIC or self._number("<I") not in _VERSIONS:
            raise ValueError(f"it begins with {self._content[:8]!r}")
        num_tensors, num_settings = self._number("<Q"), self._number("<Q")
        settings = {self._text(): self._value(self._number("<I")) for _ in range(num_settings)}
        return GgufMetadata(settings, frozenset(self._tensor_name() for _ in range(num_tensors)))

    def _number(self, layout: str) -> Any:
        (value,) = struct.unpack_from(layout, self._content, self._at)
        self._at += struct.calcsize(layout)
        return value

    def _text(self) -> str:
        length = self._number("<Q")
        self._at += length
        if self._at > len(self._content):
            raise ValueError("it ends in the middle of a text")
        return self._content[self._at - length : self._at].decode("utf-8")

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._text()
        if kind != _ARRAY:
            return self._number(_FORMATS[kind])
        item_kind, count = self._number("<I"), self._number("<Q")
        if item_kind in _FORMATS:
            layout = f"<{count}{_FORMATS[item_kind][1]}"
            values = struct.unpack_from(layout, self._content, self._at)
            self._at += struct.calcsize(layout)
            return list(values)
        return [self._value(item_kind) for _ in range(count)]

    def _tensor_name(self) -> str:
        name = self._text()
        num_dimensions = self._number("<I")
        self._at += 8 * num_dimensions + 4 + 8
        return name

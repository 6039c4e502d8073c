"""How many tokens texts have, word by word: most words of a corpus were counted before.

A text is cut before every single space that stands between two characters other than white space. Where it is sure
that no token of a tokenizer reaches across such a cut, and that what stands on one side changes nothing on the other,
the tokens of the pieces add up to those of the text. That is so for byte-level BPE with the usual patterns:

- a pattern lets a space stand at the start of a match only, and looks ahead after white space alone, but a piece ends
  on another character;
- NFC composes nothing with a space, and the other steps work on single characters;
- no added token holds white space, or takes some away at its right.

``is_additive`` checks a tokenizer's definition for exactly this; all others are asked for whole texts.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import tokenizers

_SEAM = re.compile(r"(?<=\S) (?=\S)")
_MAX_CACHED_CHARS = 2**25  # some 30 MiB, and what one batch adds
_CHARS_PER_ENTRY = 128  # what a dict's entry takes beside its characters
_IS_INVERTED = {"Isolated": False, "Removed": True}  # so that every match stands alone

_LETTERS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_PATTERNS = {rf"{_LETTERS}|{numbers}|{_REST}" for numbers in (r"\p{N}", r"\p{N}{1,3}")}
"""Qwen's; Llama 3's and GPT-4's. That of GPT-2 is part of ``ByteLevel``."""


def is_additive(definition: Mapping[str, Any]) -> bool:
    """Whether the tokens of a text's pieces add up to those of the text.

    Args:
        definition: Content of ``tokenizer.json``.
    """
    model, normalizer = definition["model"], definition.get("normalizer")
    return (
        model.get("type") == "BPE"
        and not model.get("dropout")
        and (normalizer is None or normalizer["type"] == "NFC")
        and _cuts_at_spaces(definition.get("pre_tokenizer"))
        and not any(token["rstrip"] or re.search(r"\s", token["content"]) for token in definition["added_tokens"])
    )


class WordwiseCounter:
    """Counts the tokens of texts with a tokenizer that ``is_additive``, asking it about new pieces alone.

    Args:
        backend: Without truncation and padding.
    """

    def __init__(self, backend: "tokenizers.Tokenizer") -> None:
        self._first, self._later = _PieceCounts(backend, ""), _PieceCounts(backend, " ")

    def __call__(self, texts: Sequence[str]) -> list[int]:
        """Tokens in each text, without special tokens."""
        pieces = [_cut(text) for text in texts]
        first = self._first.of({found[0] for found in pieces})
        later = self._later.of(set(chain.from_iterable(found[1:] for found in pieces)))
        return [first[found[0]] + sum(map(later.__getitem__, found[1:])) for found in pieces]


class _PieceCounts:
    """Piece -> its tokens where ``before`` stands before it."""

    def __init__(self, backend: "tokenizers.Tokenizer", before: str) -> None:
        self._backend, self._before = backend, before
        self._counts, self._num_chars = dict[str, int](), 0

    def of(self, pieces: set[str]) -> Mapping[str, int]:
        """At least these pieces; good until the next call."""
        if self._num_chars > _MAX_CACHED_CHARS:
            self._counts, self._num_chars = {}, 0
        if new := list(pieces.difference(self._counts)):
            encoded = self._backend.encode_batch_fast([self._before + piece for piece in new], add_special_tokens=False)
            self._counts.update(zip(new, map(len, encoded), strict=True))
            self._num_chars += sum(map(len, new)) + _CHARS_PER_ENTRY * len(new)
        return self._counts


def _cut(text: str) -> list[str]:
    """The pieces of a text, at least one; the spaces between them are left out."""
    words = text.split(" ")
    return words if words == text.split() else _SEAM.split(text)


def _cuts_at_spaces(step: Mapping[str, Any] | None) -> bool:
    """Whether a step before BPE cuts before every space that stands between other characters."""
    if step is None:
        return False
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"])
    if step["type"] != "Sequence":
        return False
    *others, last = step["pretokenizers"]
    if last["type"] != "ByteLevel" or not all(other["type"] == "Digits" or _is_known_split(other) for other in others):
        return False
    return bool(last["use_regex"]) or any(map(_is_known_split, others))


def _is_known_split(step: Mapping[str, Any]) -> bool:
    return (
        step["type"] == "Split"
        and step["pattern"].get("Regex") in _PATTERNS
        and _IS_INVERTED.get(step["behavior"]) == step["invert"]
    )

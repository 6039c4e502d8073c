"""A tokenizer as GGUF describes it, where GGUF can: byte-level BPE, cut into words in a way that llama.cpp knows.

GGUF names the rule that cuts text into words (``tokenizer.ggml.pre``) and lists tokens and merges; llama.cpp has no
other form of a byte-level tokenizer. One whose rule has no name there, or that leaves its merges unused, would turn the
same text into other tokens, and a student that reads other tokens than it was taught is another student: such a
tokenizer is refused.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from proxykd.exceptions import ModelError

if TYPE_CHECKING:
    from gguf import GGUFWriter
    from transformers import PreTrainedTokenizerBase

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN_2 = _LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
_KEPT_BYTES = {"type": "ByteLevel", "add_prefix_space": False}


def _split(pattern: str) -> list[dict[str, Any]]:
    split = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    return [split, {**_KEPT_BYTES, "use_regex": False}]


_WORD_RULES: tuple[tuple[str, list[dict[str, Any]]], ...] = (
    ("gpt-2", [{**_KEPT_BYTES, "use_regex": True}]),
    ("smollm", [{"type": "Digits", "individual_digits": True}, {**_KEPT_BYTES, "use_regex": True}]),
    ("llama-bpe", _split(_LLAMA_3)),
    ("qwen2", _split(_QWEN_2)),
)
"""llama.cpp's names -> the same rule as ``tokenizer.json`` writes it."""


@dataclass(frozen=True, slots=True)
class Vocabulary:
    """What GGUF says of a tokenizer.

    Attributes:
        pre: llama.cpp's name of the rule that cuts text into words.
        tokens: In the order of their ids.
        kinds: GGUF's type of each token.
        merges: Pairs, joined by a space, the first one first.
        special: Role (bos, eos, pad) -> id; roles without a token are missing.
        adds_bos: Whether every text begins with bos.
        chat_template: Jinja; None = there is none.
    """

    pre: str
    tokens: list[str]
    kinds: list[int]
    merges: list[str]
    special: dict[str, int]
    adds_bos: bool
    chat_template: str | None

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerBase", *, size: int) -> "Vocabulary":
        """The vocabulary of a tokenizer, padded with unused tokens to ``size``.

        Raises:
            ModelError: if GGUF cannot describe it so that the same text becomes the same tokens.
        """
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise _refused("it has no tokenizer.json")
        definition = json.loads(backend.to_str())
        pre, model = _name_of(definition), definition["model"]
        _check_merges(pre, model, backend)
        texts = {idx: token for token, idx in model["vocab"].items()}
        kinds = dict.fromkeys(texts, _NORMAL)
        for added in definition.get("added_tokens", []):
            texts[added["id"]] = added["content"]
            kinds[added["id"]] = _CONTROL if added["special"] else _USER_DEFINED
        if texts and max(texts) >= size:
            raise _refused(f"token {max(texts)} is beyond the model's vocabulary of {size}")
        roles = {role: getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
        template = tokenizer.chat_template
        return cls(
            pre=pre,
            tokens=[texts.get(idx, f"[PAD{idx}]") for idx in range(size)],
            kinds=[kinds.get(idx, _UNUSED) for idx in range(size)],
            merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]],
            special={role: idx for role, idx in roles.items() if idx is not None},
            adds_bos=_adds_bos(tokenizer),
            chat_template=template if isinstance(template, str) else None,
        )

    def write(self, writer: "GGUFWriter") -> None:
        """Add the settings of the tokenizer to a GGUF file."""
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.kinds)
        writer.add_token_merges(self.merges)
        writer.add_add_bos_token(self.adds_bos)
        for role, idx in self.special.items():
            getattr(writer, f"add_{role}_token_id")(idx)
        if self.chat_template is not None:
            writer.add_chat_template(self.chat_template)


def _name_of(definition: Mapping[str, Any]) -> str:
    model = definition["model"]
    if model.get("type") != "BPE" or model.get("byte_fallback") or definition.get("pre_tokenizer") is None:
        raise _refused(
            f"it is of type {model.get('type')} without byte-level words; only byte-level BPE can be written"
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise _refused("its tokens have prefixes or suffixes inside words")
    if (found := definition.get("normalizer")) not in (None, {"type": "NFC"}):
        raise _refused(f"it normalises text ({json.dumps(found):.80})")
    rule = definition["pre_tokenizer"]
    parts = rule["pretokenizers"] if rule["type"] == "Sequence" else [rule]
    plain = [{name: value for name, value in part.items() if name != "trim_offsets"} for part in parts]
    name = next((name for name, wanted in _WORD_RULES if wanted == plain), None)
    if name is None:
        known = ", ".join(name for name, _ in _WORD_RULES)
        raise _refused(f"llama.cpp has no name for the way it cuts text into words (known: {known})")
    return name


def _check_merges(pre: str, model: Mapping[str, Any], backend: Any) -> None:
    """Where tokens that are whole words are taken as they are, llama.cpp must do so too, or come to them by merges."""
    if not model.get("ignore_merges") or pre == "llama-bpe":
        return
    made = {"".join(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]}
    special = {added.content for added in backend.get_added_tokens_decoder().values()}
    lone = [token for token in model["vocab"] if len(token) > 1 and token not in made and token not in special]
    if lone:
        raise _refused(
            f"{len(lone):,} of its tokens ({', '.join(map(repr, lone[:3]))}, ...) come from no merge; llama.cpp would "
            "spell them out"
        )


def _adds_bos(tokenizer: "PreTrainedTokenizerBase") -> bool:
    plain, whole = (tokenizer.encode("a", add_special_tokens=flag) for flag in (False, True))
    if whole not in (plain, [tokenizer.bos_token_id, *plain]):
        raise _refused("it puts other tokens around a text than one bos in front")
    return bool(whole != plain)


def _refused(reason: str) -> ModelError:
    return ModelError(
        f"expected a tokenizer that GGUF can describe, but {reason}; export it as a Hugging Face folder instead (leave "
        "out --format gguf), or choose a student with another tokenizer"
    )

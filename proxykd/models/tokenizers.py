"""The tokenizers of open models, and whether two of them agree.

Nothing heavy is imported before a tokenizer is loaded, and two that have a ``tokenizer.json``, or are both GGUF files,
are compared without that.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from proxykd.config.models import ModelSpec
from proxykd.exceptions import ModelError
from proxykd.models.sources import Source, missing_model, resolve_source
from proxykd.models.token_counts import WordwiseCounter, is_additive
from proxykd.models.tokenizer_files import comparable_parts, read_tokenizer
from proxykd.records import hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(spec: ModelSpec) -> "PreTrainedTokenizerBase":
    """The tokenizer of a model, with a pad token set and padding on the right.

    Raises:
        ModelError: if it cannot be found, or has no end-of-sequence token.
    """
    return load_tokenizer_from(resolve_source(spec.source))


def load_tokenizer_from(source: Source) -> "PreTrainedTokenizerBase":
    """The tokenizer of a resolved source, with a pad token set and padding on the right.

    Raises:
        ModelError: if it cannot be found, or has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments)
    except (OSError, ValueError, ImportError) as error:
        raise missing_model("tokenizer", source, error) from error
    if tokenizer.eos_token_id is None:
        raise ModelError(
            f"expected an end-of-sequence token in the tokenizer of {source.location}, found none; "
            "set eos_token in its tokenizer_config.json"
        )
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "right"
    return tokenizer


def load_counter(source: str) -> Callable[[Sequence[str]], list[int]]:
    """A function from texts to the number of tokens in each, without special tokens.

    The tokenizer is built from its files where that is possible, which takes no transformers.

    Args:
        source: As ``ModelSpec.source``.

    Raises:
        ModelError: if the tokenizer cannot be found.
    """
    resolved = resolve_source(source)
    files = read_tokenizer(resolved)
    backend = files.build() if files is not None and files.build is not None else None
    if backend is None:
        tokenizer = load_tokenizer_from(resolved)
        return lambda texts: [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    backend.no_truncation()
    backend.no_padding()
    if is_additive(json.loads(backend.to_str())):
        return WordwiseCounter(backend)
    return lambda texts: [len(found) for found in backend.encode_batch_fast(texts, add_special_tokens=False)]


def tokenizer_fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """64 hex digits that are equal exactly when two tokenizers turn every text into the same token ids."""
    return hash_json(_parts(tokenizer))


def check_same_tokenizer(proxy: ModelSpec, student: ModelSpec, *, is_living: bool = False) -> None:
    """Check that the student can learn from distributions over the proxy's vocabulary as they are.

    Args:
        proxy: The proxy's model.
        student: The student's.
        is_living: Whether the proxy teaches in person, which no alignment can make up for.

    Raises:
        ModelError: naming the first difference between the two tokenizers.
    """
    if (difference := first_difference(proxy, student)) is not None:
        raise ModelError(
            f"proxy and student must share a tokenizer, but {proxy.source} and {student.source} differ in "
            f"{difference}; choose two models of one family, or "
            f"{'leave student.living_teacher out and ' if is_living else ''}set student.cross_tokenizer: {{}} to have "
            "the proxy's targets aligned by the bytes of the text"
        )


def first_difference(proxy: ModelSpec, student: ModelSpec) -> str | None:
    """What tells the tokenizers of two models apart, in words; None = they are one.

    Sources that are one are not read at all.

    Raises:
        ModelError: if a tokenizer cannot be found.
    """
    sources = resolve_source(proxy.source), resolve_source(student.source)
    if len({(source.location, source.gguf_file) for source in sources}) == 1:
        return None
    first, second = _comparable(*sources)
    found = (name for name in first if first[name] != second[name])
    return next((_describe(name, first[name], second[name]) for name in found), None)


def _comparable(*sources: Source) -> list[Mapping[str, Any]]:
    """The parts of each from its files; from the loaded tokenizers where the files are of different kinds."""
    if len({source.gguf_file is None for source in sources}) == 1:
        files = [read_tokenizer(source) for source in sources]
        if all(file is not None for file in files):
            return [file.parts for file in files if file is not None]
    return [_parts(load_tokenizer_from(source)) for source in sources]


def _parts(tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    definition = {} if backend is None else json.loads(backend.to_str())
    return comparable_parts(tokenizer.get_vocab(), tokenizer.eos_token, definition)


def _describe(name: str, first: Any, second: Any) -> str:
    if name == "vocabulary":
        if len(first) != len(second):
            return f"the size of the vocabulary ({len(first)} against {len(second)} tokens)"
        token = next(token for token, idx in first.items() if second.get(token) != idx)
        return f"the vocabulary (token {token!r} has id {first[token]} against {second.get(token)})"
    return f"the {name}" if isinstance(first, (list, dict)) else f"the {name} ({first!r} against {second!r})"

"""What a pair of tokenizers needs, so that the student can learn from the proxy's targets.

    same         one tokenizer: the targets are used as they are
    renumbered   the same tokens under other ids, and the same splits: every target is translated exactly
    aligned      other tokens or other splits: positions are aligned by the bytes of the text, tokens by their own

Measured on texts, from the tokenizers' files alone where they can be read without transformers.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from proxykd.config.models import ModelSpec
from proxykd.models.sources import Source, resolve_source
from proxykd.models.token_alignment import align, find_boundaries, find_groups, measure_coverage
from proxykd.models.token_bytes import TokenBytes, token_bytes_of
from proxykd.models.tokenizer_files import read_tokenizer
from proxykd.models.tokenizers import first_difference, load_tokenizer_from


class TokenizerPair(NamedTuple):
    """How two tokenizers lie on each other.

    Attributes:
        method: What the pair needs.
        one_to_one: Share of the characters whose token is one of both.
        grouped: Share in larger groups of tokens that begin and end together.
        unaligned: Share in none.
        positions: Share of the student's positions that have a target.
        shared_vocabulary: Share of the proxy's tokens that the student has too.
    """

    method: Literal["same", "renumbered", "aligned"]
    one_to_one: float
    grouped: float
    unaligned: float
    positions: float
    shared_vocabulary: float


_SAME = TokenizerPair("same", 1.0, 0.0, 0.0, 1.0, 1.0)
_MAY_BE_ONE = 0.95


def measure_pair(proxy: ModelSpec, student: ModelSpec, texts: Sequence[str]) -> TokenizerPair:
    """Compare two tokenizers on some texts.

    Args:
        proxy: The model whose targets are learnt from.
        student: The model that learns.
        texts: Completions, or texts like them.

    Raises:
        ModelError: if a tokenizer cannot be found, or differs and cannot tell the bytes of its tokens.
    """
    sources = resolve_source(proxy.source), resolve_source(student.source)
    is_of_one_kind = (sources[0].gguf_file is None) == (sources[1].gguf_file is None)
    if is_of_one_kind and first_difference(proxy, student) is None:
        return _SAME
    vocabularies = _vocabulary_of(sources[0]), _vocabulary_of(sources[1])
    own, other = (set(one.values) - {None} for one in vocabularies)
    shared = len(own & other) / max(len(own), 1)
    # A GGUF file and a folder are compared through transformers, which takes seconds: only where they may be one.
    if not is_of_one_kind and shared > _MAY_BE_ONE and first_difference(proxy, student) is None:
        return _SAME
    raw = [text.encode() for text in texts]
    found = [find_boundaries(one, _encode(one, texts), raw) for one in vocabularies]
    alignment = align(found[0], found[1], raw)
    groups = find_groups(found[0], found[1], alignment)
    shares = measure_coverage(found[0], found[1], groups, raw).shares
    positions = float((alignment.source >= 0).mean())
    is_exact = shared == positions == 1.0 and len(groups.proxy) == len(found[0].starts)
    return TokenizerPair("renumbered" if is_exact else "aligned", *shares, positions, shared)


def describe_pair(pair: TokenizerPair) -> str:
    """One line for the plan."""
    if pair.method == "same":
        return "one for proxy and student: the targets are used as they are"
    if pair.method == "renumbered":
        return "the same tokens under other ids: every target is translated exactly"
    return (
        f"different, aligned by bytes: {pair.one_to_one:.1%} of the characters one to one, {pair.grouped:.1%} in "
        f"groups, {pair.unaligned:.1%} not; {pair.positions:.1%} of the student's positions get a target; the student "
        f"has {pair.shared_vocabulary:.1%} of the proxy's tokens"
    )


def _vocabulary_of(source: Source) -> TokenBytes:
    files = read_tokenizer(source)
    if files is not None and files.build is not None and (eos := files.special_tokens.get("eos_token")):
        return TokenBytes.of_backend(files.build(), eos_token=eos)
    return token_bytes_of(load_tokenizer_from(source))


def _encode(vocabulary: TokenBytes, texts: Sequence[str]) -> list[np.ndarray[tuple[int], np.dtype[np.int32]]]:
    encoded = vocabulary.backend.encode_batch_fast(list(texts), add_special_tokens=False)
    return [np.array([*one.ids, vocabulary.eos_id], np.int32) for one in encoded]

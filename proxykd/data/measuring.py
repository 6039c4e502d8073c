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
from proxykd.data.batches import Ragged, runs_of_all, signatures_of_all, words_of_all
from proxykd.data.damage import find_cut, find_damage
from proxykd.data.filters import HashFilter
from proxykd.data.language import find_language
from proxykd.data.private import find_personal_data, find_secret
from proxykd.data.quality import Verdict, choose_rows_per_band, hash_bands, shingles_of
from proxykd.data.refusals import ModelRefusals, RefusalClassifier, find_by_pattern

CountTokens = Callable[[Sequence[str]], list[int]]
"""Texts -> tokens in each."""

BATCH_TEXTS = 512
"""Texts that travel to another process together."""
MIN_TEXTS_FOR_PROCESSES = 20_000
"""Fewer texts are measured here: other processes take seconds to start."""
MAX_PROCESSES = 8
_TEXTS_AT_ONCE = 64  # their arrays stay in the processor's cache


class Runs(NamedTuple):
    """The word runs of a text.

    Attributes:
        num_runs: How many it has.
        suspects: uint64, hashes of those that may be in an evaluation text, in order.
    """

    num_runs: int
    suspects: NDArray[np.uint64]


class PromptHashes(NamedTuple):
    """A prompt among others.

    Attributes:
        signature: uint32 [NUM_HASHES], the MinHash of its shingles; empty where equal sets are looked for.
        bands: uint64 [bands], hashes of the signature's bands.
        shingles_key: Equal for prompts with the same set of shingles; 0 where near duplicates are looked for.
        runs: Its word runs.
    """

    signature: NDArray[np.uint32]
    bands: NDArray[np.uint64]
    shingles_key: int
    runs: Runs


class TextMeasures(NamedTuple):
    """A completion by itself.

    Attributes:
        broken: Rule -> what was found, for those rules about the text alone that it breaks.
        is_language_known: Whether its language was looked for and could be told.
        num_tokens: Its tokens; None = not counted.
        pair_key: Equal for rows whose prompt and completion are the same but for white space.
        runs: Its word runs.
    """

    broken: dict[Verdict, str]
    is_language_known: bool
    num_tokens: int | None
    pair_key: int
    runs: Runs


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
        evaluation: Hashes of the word runs of the evaluation texts.
        classifiers: A text is a refusal if one of them says so.
        count_tokens: Needed where the specification bounds lengths in tokens.
    """

    spec: ValidationSpec
    evaluation: HashFilter
    classifiers: tuple[RefusalClassifier, ...]
    count_tokens: CountTokens | None = None

    @classmethod
    def build(
        cls, spec: ValidationSpec, evaluation: HashFilter, load_counter: Callable[[], CountTokens] | None
    ) -> "Measurer":
        """A measurer with its models loaded.

        Args:
            spec: The rules.
            evaluation: Hashes of the word runs of the evaluation texts.
            load_counter: Loads the token counter; called only if the specification needs it.
        """
        classifiers: tuple[RefusalClassifier, ...] = (find_by_pattern,)
        if spec.refusal_model is not None:
            classifiers += (ModelRefusals(spec.refusal_model, label=spec.refusal_label),)
        counter = load_counter() if load_counter and spec.counts_tokens else None
        return cls(spec, evaluation, classifiers, counter)

    def measure(self, batch: Sequence[Texts]) -> list[Measures]:
        """What is said of each prompt of a batch and of its completions."""
        texts = [text for item in batch for text in item.completions]
        answers = [classifier(texts) for classifier in self.classifiers]
        refusals = iter([next(filter(None, found), "") for found in zip(*answers, strict=True)])
        counts = iter(self.count_tokens(texts) if self.count_tokens is not None else [None] * len(texts))
        runs = iter([found for some in batched(texts, _TEXTS_AT_ONCE) for found in self.find_runs(some)])
        questions = batched((item.question for item in batch), _TEXTS_AT_ONCE)
        prompts = [prompt for some in questions for prompt in self._hash_prompts(some)]
        return [
            Measures(
                prompt,
                [
                    self._measure_text(item.question, text, next(refusals), next(counts), next(runs))
                    for text in item.completions
                ],
            )
            for item, prompt in zip(batch, prompts, strict=True)
        ]

    def find_runs(self, texts: Sequence[str]) -> list[Runs]:
        """The word runs of any texts."""
        return self._runs_from(words_of_all(texts))

    def _runs_from(self, words: Ragged) -> list[Runs]:
        runs = runs_of_all(words, self.spec.overlap_ngram)
        suspects = runs.select(self.evaluation.may_hold(runs.values))
        return [Runs(*item) for item in zip(runs.counts.tolist(), suspects, strict=True)]

    def _hash_prompts(self, questions: Sequence[str]) -> list[PromptHashes]:
        words = words_of_all(questions)
        if self.spec.near_duplicate_threshold >= 1.0:  # equal sets, not merely equal signatures
            signatures = np.zeros((len(questions), 0), np.uint32)
            bands = np.zeros((len(questions), 0), np.uint64)
            keys = [_key(b"shingles", shingles_of(question).tobytes()) for question in questions]
        else:
            signatures, keys = signatures_of_all(words, questions), [0] * len(questions)
            bands = hash_bands(signatures, choose_rows_per_band(self.spec.near_duplicate_threshold))
        return [PromptHashes(*item) for item in zip(signatures, bands, keys, self._runs_from(words), strict=True)]

    def _measure_text(self, question: str, text: str, refusal: str, num_tokens: int | None, runs: Runs) -> TextMeasures:
        spec, key = self.spec, pair_key(question, text)
        if not text.strip():
            return TextMeasures({Verdict.EMPTY: "no text"}, False, num_tokens, key, runs)
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
        return TextMeasures(broken, language is not None, num_tokens, key, runs)


def pair_key(question: str, text: str) -> int:
    """A 64-bit signed integer, equal for pairs that are the same but for white space."""
    return _key(" ".join(question.split()).encode(errors="replace"), " ".join(text.split()).encode(errors="replace"))


def measure_all(
    items: Iterable[Texts],
    spec: ValidationSpec,
    evaluation: HashFilter,
    *,
    load_counter: Callable[[], CountTokens] | None = None,
    num_processes: int = 1,
) -> Iterator[Measures]:
    """The measures of every item, in order.

    Args:
        items: Any number of them.
        spec: The rules.
        evaluation: Hashes of the word runs of the evaluation texts, all added.
        load_counter: Loads the token counter; must be picklable where there are more processes.
        num_processes: 1 = in this one; else so many others.
    """
    batches = batched(items, BATCH_TEXTS)
    if num_processes <= 1:
        measurer = Measurer.build(spec, evaluation, load_counter)
        for batch in batches:
            yield from measurer.measure(batch)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(num_processes, context, _start, (spec, evaluation, load_counter)) as pool:
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


def _start(spec: ValidationSpec, evaluation: HashFilter, load_counter: Callable[[], CountTokens] | None) -> None:
    global _measurer
    _measurer = Measurer.build(spec, evaluation, load_counter)


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

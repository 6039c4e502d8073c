"""Words of a text: runs and shingles, MinHash against the exact Jaccard similarity."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.data.quality import (
    NUM_HASHES,
    choose_rows_per_band,
    hash_bands,
    hash_word_runs,
    jaccard,
    minhash,
    shingles_of,
    similarity,
    words_of,
)


def test_words_are_lower_case_runs_and_single_characters_where_scripts_have_no_spaces() -> None:
    assert words_of("Hello, WORLD_2! \u00c4pfel") == ["hello", "world_2", "\u00e4pfel"]
    assert words_of("\u6771\u4eac2020") == ["\u6771", "\u4eac", "2020"]
    assert words_of("?! ...") == []


sentences = st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f"]), max_size=30)


@given(words=sentences, num_words=st.integers(1, 8))
def test_equal_runs_have_equal_hashes_and_others_do_not(words: list[str], num_words: int) -> None:
    runs = [tuple(words[i : i + num_words]) for i in range(len(words) - num_words + 1)]
    hashes = hash_word_runs(" ".join(words), num_words).tolist()
    assert len(hashes) == len(runs)
    assert len(set(hashes)) == len(set(runs)) == len(set(zip(hashes, runs, strict=True)))


def test_short_and_wordless_texts_are_one_shingle() -> None:
    assert len(shingles_of("two words")) == len(shingles_of("?!")) == 1
    assert shingles_of("Two words!") == shingles_of("two  words")
    assert shingles_of("?!") != shingles_of("!?")


@given(sentences, sentences)
def test_jaccard_equals_that_of_python_sets(one: list[str], other: list[str]) -> None:
    a, b = shingles_of(" ".join(one), 2), shingles_of(" ".join(other), 2)
    expected = len({*a.tolist()} & {*b.tolist()}) / len({*a.tolist()} | {*b.tolist()})
    assert jaccard(a, b) == jaccard(b, a) == expected
    assert jaccard(a, a) == 1.0


@pytest.mark.parametrize("shared", [0, 100, 200, 400, 580])
def test_minhash_estimates_the_exact_similarity(shared: int) -> None:
    # Sets of 300 with a given overlap; the estimate's standard error is sqrt(J (1 - J) / NUM_HASHES).
    rng = np.random.default_rng(shared)
    errors = []
    for _ in range(40):
        pool = np.unique(rng.integers(0, 2**63, 1200, dtype=np.uint64))
        one, other = np.sort(pool[:600]), np.sort(pool[600 - shared : 1200 - shared])
        exact = jaccard(one, other)
        estimate = similarity(minhash(one), minhash(other)[None])[0]
        errors.append(estimate - exact)
    bound = math.sqrt(exact * (1 - exact) / NUM_HASHES)
    assert abs(np.mean(errors)) <= 4 * bound / math.sqrt(len(errors))
    assert np.max(np.abs(errors)) <= 5 * bound


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=50, unique=True))
def test_signature_of_a_union_is_the_minimum_of_the_signatures(values: list[int]) -> None:
    whole = np.array(values, np.uint64)
    first, second = whole[: len(whole) // 2 + 1], whole[len(whole) // 2 :]
    assert np.array_equal(minhash(whole), np.minimum(minhash(first), minhash(second)))
    assert np.array_equal(minhash(whole[::-1]), minhash(whole))


def test_signatures_of_long_texts_are_computed_in_chunks() -> None:
    values = np.arange(10_000, dtype=np.uint64)
    parts = [minhash(part) for part in np.array_split(values, 7)]
    assert np.array_equal(minhash(values), np.min(parts, axis=0))


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.8, 0.9, 0.95])
def test_bands_find_pairs_at_the_threshold(threshold: float) -> None:
    rows = choose_rows_per_band(threshold)
    num_bands = NUM_HASHES // rows
    assert (1 - threshold**rows) ** num_bands <= 0.01
    # Signatures that agree in each position with probability `threshold`.
    rng = np.random.default_rng(0)
    one = rng.integers(0, 2**32, (400, NUM_HASHES), dtype=np.uint32)
    other = np.where(rng.random(one.shape) < threshold, one, one + np.uint32(1))
    found = [np.any(hash_bands(a, rows) == hash_bands(b, rows)) for a, b in zip(one, other, strict=True)]
    assert np.mean(found) >= 0.97


def test_bands_are_equal_exactly_where_their_values_are() -> None:
    one = np.arange(NUM_HASHES, dtype=np.uint32)
    other = one.copy()
    other[10] = 999  # of the second band of 8
    assert (hash_bands(one, 8) == hash_bands(other, 8)).tolist() == [True, False, *[True] * 14]
    assert choose_rows_per_band(0.0) == 1

"""A batch of texts has the hashes that each text has by itself."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from proxykd.data.batches import runs_of_all, signatures_of_all, words_of_all
from proxykd.data.quality import hash_word_runs, hash_words, minhash, shingles_of, words_of

WORDS = st.sampled_from(["the", "Cat", "it's", "42", "?!", "\u00c4pfel", "\u6771\u4eac", "a_b", "\x1c", "\u0130"])
TEXTS = st.lists(st.lists(WORDS, max_size=30).map(" ".join) | st.text(max_size=40), max_size=6)


@given(TEXTS)
def test_words_are_those_of_each_text(texts: list[str]) -> None:
    words = words_of_all(texts)
    assert words.counts.tolist() == [len(words_of(text)) for text in texts]
    assert words.values.tolist() == [value for text in texts for value in hash_words(text).tolist()]


@given(TEXTS, st.integers(1, 15), st.integers(0, 5))
def test_runs_are_those_of_each_text(texts: list[str], num_words: int, divisor: int) -> None:
    runs = runs_of_all(words_of_all(texts), num_words)
    alone = [hash_word_runs(text, num_words) for text in texts]
    assert runs.counts.tolist() == list(map(len, alone))
    chosen = runs.select(runs.values % np.uint64(divisor + 1) == 0)
    expected = [found[found % np.uint64(divisor + 1) == 0] for found in alone]
    assert [found.tolist() for found in chosen] == [found.tolist() for found in expected]


@given(TEXTS)
def test_signatures_are_those_of_each_text(texts: list[str]) -> None:
    signatures = signatures_of_all(words_of_all(texts), texts)
    assert signatures.tolist() == [minhash(shingles_of(text)).tolist() for text in texts]

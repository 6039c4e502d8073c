"""The alignment against a slow oracle, on every pair of tokenizer families; then texts that do not fit."""

from collections.abc import Sequence
from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.exceptions import ShapeError
from proxykd.models.token_alignment import (
    Alignment,
    Boundaries,
    Groups,
    align,
    find_boundaries,
    find_groups,
    measure_coverage,
)
from proxykd.models.token_bytes import TokenBytes
from tests.support.tokenizer_pairs import TEXTS, byte_level, bytes_of, lower_case, sentence_piece, word_piece

LOSSLESS = {
    "byte-level": bytes_of(byte_level()),
    "other merges": bytes_of(byte_level(TEXTS[:2], vocab_size=300)),
    "sentence-piece": bytes_of(sentence_piece()),
}
REWRITING = {"lower case": bytes_of(lower_case()), "word-piece": bytes_of(word_piece())}
FAMILIES = {**LOSSLESS, **REWRITING}
PAIRS = list(product(LOSSLESS, LOSSLESS))


def tokens(vocabulary: TokenBytes, text: str, *, length: int | None = None) -> np.ndarray:
    """Tokens with the end token, or cut to a length."""
    ids = [*vocabulary.backend.encode(text, add_special_tokens=False).ids, vocabulary.eos_id]
    return np.array(ids[:length], np.int32)


def boundaries(vocabulary: TokenBytes, texts: Sequence[str], *, length: int | None = None) -> Boundaries:
    ids = [tokens(vocabulary, text, length=length) for text in texts]
    return find_boundaries(vocabulary, ids, [text.encode() for text in texts])


def aligned(proxy: str, student: str, texts: Sequence[str]) -> tuple[Boundaries, Boundaries, Alignment, Groups]:
    found = boundaries(FAMILIES[proxy], texts), boundaries(FAMILIES[student], texts)
    alignment = align(*found, [text.encode() for text in texts])
    return *found, alignment, find_groups(*found, alignment)


def slow_groups(proxy: list[tuple[int, int]], student: list[tuple[int, int]]) -> list[tuple[int, int, int, int]]:
    """Groups of one text, by looking for every pair of equal starts and then for the next one."""
    common = [
        (i, j)
        for i, (start, _) in enumerate(proxy)
        for j, (other, _) in enumerate(student)
        if start == other
        and all(proxy[before][0] != start for before in range(i))
        and all(student[before][0] != other for before in range(j))
    ]
    if proxy and student and proxy[-1][1] == student[-1][1]:
        common.append((len(proxy), len(student)))
    return [(i, after_i, j, after_j) for (i, j), (after_i, after_j) in pairwise(common)]


def spans(found: Boundaries, row: int) -> list[tuple[int, int]]:
    part = slice(found.counts[:row].sum(), found.counts[: row + 1].sum())
    return list(zip(found.starts[part].tolist(), found.ends[part].tolist(), strict=True))


@pytest.mark.parametrize(("proxy", "student"), PAIRS)
@given(texts=st.lists(st.text(max_size=30) | st.sampled_from(TEXTS), min_size=1, max_size=4))
@settings(max_examples=25)
def test_groups_are_those_of_the_slow_oracle(proxy: str, student: str, texts: list[str]) -> None:
    texts = [text.replace("\u2581", " ") for text in texts]
    found_proxy, found_student, alignment, groups = aligned(proxy, student, texts)
    expected, base = [], np.zeros(2, int)
    for row in range(len(texts)):
        one = slow_groups(spans(found_proxy, row), spans(found_student, row))
        expected += [(i + base[0], k + base[0], j + base[1], m + base[1]) for i, k, j, m in one]
        base += found_proxy.counts[row], found_student.counts[row]
    assert np.hstack([groups.proxy, groups.student]).tolist() == [list(map(int, group)) for group in expected]
    assert found_proxy.num_rewritten == found_student.num_rewritten == 0
    covered = measure_coverage(found_proxy, found_student, groups, [text.encode() for text in texts])
    assert (covered.one_to_one + covered.grouped, covered.unaligned) == (sum(map(len, texts)), 0)
    is_known = alignment.source >= 0
    ends = found_proxy.ends[alignment.stop[is_known]]
    assert (ends >= found_student.ends[is_known]).all()


@pytest.mark.parametrize(("proxy", "student"), PAIRS)
def test_the_two_sides_of_a_group_have_the_same_text(proxy: str, student: str) -> None:
    for text in TEXTS:
        found_proxy, found_student, _, groups = aligned(proxy, student, [text])
        for mine, other in zip(groups.proxy, groups.student, strict=True):
            assert found_proxy.starts[mine[0]] == found_student.starts[other[0]]
            assert found_proxy.ends[mine[1] - 1] == found_student.ends[other[1] - 1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_tokenizer_is_aligned_with_itself_token_by_token(name: str) -> None:
    texts = TEXTS if name != "lower case" else TEXTS[:2]
    found, _, alignment, groups = aligned(name, name, texts)
    has_place = found.starts >= 0
    assert (alignment.source[has_place] == np.flatnonzero(has_place)).mean() > 0.95
    assert groups.proxy.tolist() == groups.student.tolist()


def test_an_emoji_in_parts_is_aligned_inside_the_character() -> None:
    # Of an emoji that neither has read, one tokenizer knows the first two bytes together, the other each alone.
    text = "a\U0001f9e9b"
    found_proxy, _, _, groups = aligned("byte-level", "sentence-piece", [text])
    pieces = [
        text.encode()[found_proxy.starts[first] : found_proxy.ends[last - 1]] for first, last in groups.proxy.tolist()
    ]
    assert pieces == [b"a", b"\xf0\x9f", b"\xa7", b"\xa9", b"b", b""]


def test_end_tokens_are_aligned_with_each_other() -> None:
    for proxy, student in product(FAMILIES, FAMILIES):
        _, _, alignment, groups = aligned(proxy, student, ["Some text. ", "more"])
        assert alignment.source[-1] >= 0
        assert np.diff(groups.proxy[-1]) == np.diff(groups.student[-1]) == [1]


def test_a_cut_text_is_aligned_up_to_the_cut() -> None:
    text = [TEXTS[0]]
    whole, cut = boundaries(LOSSLESS["byte-level"], text), boundaries(LOSSLESS["other merges"], text, length=9)
    raw = [TEXTS[0].encode()]
    alignment = align(cut, whole, raw)
    assert (alignment.source[whole.starts >= cut.ends[-1]] == -1).all()
    assert alignment.source[0] == 0
    assert (alignment.stop[whole.ends > cut.ends[-1]] == -1).all()
    groups = find_groups(cut, whole, alignment)
    covered = measure_coverage(cut, whole, groups, raw)
    assert 0 < covered.unaligned < len(TEXTS[0])
    assert covered.one_to_one + covered.grouped + covered.unaligned == len(TEXTS[0])


def test_texts_without_tokens_do_not_disturb_their_neighbours() -> None:
    vocabulary, texts = LOSSLESS["byte-level"], ["", "one two", ""]
    ids = [tokens(vocabulary, text) for text in texts]
    raw = [text.encode() for text in texts]
    empty = find_boundaries(vocabulary, [ids[0], ids[1][:0], ids[2]], raw)
    alignment = align(empty, find_boundaries(vocabulary, ids, raw), raw)
    assert alignment.source.tolist() == [0, *[-1] * len(ids[1]), 1]


@pytest.mark.parametrize("name", REWRITING)
def test_a_rewriting_tokenizer_is_aligned_by_its_offsets_and_counted(name: str) -> None:
    texts = ["The Quick brown fox, and The dog.", "The ﬁsh costs ½ a Café"]
    found_proxy, found_student, alignment, groups = aligned(name, "byte-level", texts)
    assert found_proxy.num_rewritten == 2
    for row, text in enumerate(texts):
        for start, end in spans(found_proxy, row):
            assert start <= end
            assert start == -1 or text.encode()[:start].decode() is not None  # a boundary between characters
    covered = measure_coverage(found_proxy, found_student, groups, [text.encode() for text in texts])
    assert covered.num_rewritten == 2
    assert covered.one_to_one > 0
    assert (alignment.source >= 0).mean() > 0.3


def test_the_parts_of_a_rewritten_character_begin_nowhere() -> None:
    # NFKC makes three characters of one half; inside it there is no byte of the text to stand at.
    found = boundaries(REWRITING["lower case"], ["½"])
    assert found.starts.tolist()[0] == 0
    assert set(found.starts.tolist()[1:-1]) == {-1}
    assert found.starts[-1] == len("½".encode())


def test_tokens_of_another_text_are_not_aligned_at_all() -> None:
    vocabulary = LOSSLESS["byte-level"]
    found = find_boundaries(vocabulary, [tokens(vocabulary, "something else")], [b"The quick brown fox"])
    assert found.num_rewritten == 1
    assert set(found.starts.tolist()[1:-1]) == {-1}


def test_lists_of_different_lengths_are_refused() -> None:
    vocabulary = LOSSLESS["byte-level"]
    found = boundaries(vocabulary, ["one"])
    with pytest.raises(ShapeError, match="as many texts"):
        find_boundaries(vocabulary, [], [b"one"])
    with pytest.raises(ShapeError, match="boundaries of 2 texts"):
        align(found, found, [b"one", b"two"])


def test_a_hand_drawn_alignment() -> None:
    # proxy The| qu|ick| fox and student The| quick| fo|x with their ends
    def hand(ends: list[int]) -> Boundaries:
        starts = [0, *ends[:-1]]
        return Boundaries(np.array(starts), np.array(ends), np.array([len(ends)]), 0)

    proxy, student, texts = hand([3, 6, 9, 13, 14]), hand([3, 9, 12, 13, 14]), [b"The quick fox"]
    alignment = align(proxy, student, texts)
    assert alignment.source.tolist() == [0, 1, 3, -1, 4]
    assert alignment.stop.tolist() == [0, 2, 3, -1, 4]
    groups = find_groups(proxy, student, alignment)
    assert groups.proxy.tolist() == [[0, 1], [1, 3], [3, 4], [4, 5]]
    assert groups.student.tolist() == [[0, 1], [1, 2], [2, 4], [4, 5]]
    assert measure_coverage(proxy, student, groups, texts).shares == (3 / 13, 10 / 13, 0.0)

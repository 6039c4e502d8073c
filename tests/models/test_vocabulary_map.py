"""The vocabulary map: equal bytes exactly, the others by the student's own spelling."""

import numpy as np
import pytest

from proxykd.models.vocabulary_map import VocabularyMap, shared_mass
from tests.support.tokenizer_pairs import TEXTS, byte_level, bytes_of, sentence_piece

LARGE, SMALL = bytes_of(byte_level(vocab_size=420)), bytes_of(byte_level(TEXTS[:2], vocab_size=290))
SENTENCE_PIECE = bytes_of(sentence_piece())


def test_a_vocabulary_maps_to_itself() -> None:
    found = VocabularyMap.build(LARGE, LARGE)
    is_text = np.array([value is not None for value in LARGE.values])
    np.testing.assert_array_equal(found.shared[:-1][is_text], np.flatnonzero(is_text))
    assert found.facts(LARGE) == {"shared": 1.0, "first_token": 0.0}
    assert not len(found.student_unshared)


@pytest.mark.parametrize(("proxy", "student"), [(LARGE, SMALL), (SMALL, LARGE), (LARGE, SENTENCE_PIECE)])
def test_shared_tokens_have_the_same_bytes_and_the_others_begin_alike(proxy, student) -> None:
    found = VocabularyMap.build(proxy, student)
    twins = set()
    for idx, value in enumerate(proxy.values):
        twin, first = found.shared[idx], found.first[idx]
        if idx == proxy.eos_id:
            assert twin == first == student.eos_id
        elif value is None:
            assert twin == first == -1
        elif twin >= 0:
            assert student.values[twin] == value
            assert first == twin
        else:
            assert value not in student.values
            assert first < 0 or value.startswith(student.spelled[first])
        twins.add(int(twin))
    assert set(found.student_unshared.tolist()) == set(range(len(student.values))) - twins
    assert found.shared[-1] == found.first[-1] == -1


def test_every_token_begins_with_some_token_of_a_student_that_knows_all_bytes() -> None:
    for student in (SMALL, SENTENCE_PIECE):
        found = VocabularyMap.build(LARGE, student)
        facts = found.facts(LARGE)
        assert facts["shared"] + facts["first_token"] == pytest.approx(1.0)
        assert 0.0 < facts["shared"] < 1.0


def test_the_first_token_is_that_of_the_students_spelling() -> None:
    found = VocabularyMap.build(LARGE, SMALL)
    missing = np.flatnonzero((found.shared[:-1] < 0) & (found.first[:-1] >= 0))
    texts = {idx: LARGE.values[idx].decode() for idx in missing if LARGE.values[idx].isascii()}  # type: ignore[union-attr]
    assert texts
    for idx, text in texts.items():
        assert found.first[idx] == SMALL.backend.encode(text, add_special_tokens=False).ids[0]


def test_a_dummy_prefix_is_left_out_of_the_comparison_at_the_start_of_a_text() -> None:
    found = VocabularyMap.build(LARGE, SENTENCE_PIECE)
    the, space_the = LARGE.values.index(b"T"), SENTENCE_PIECE.values.index(b" T")
    assert found.shared_at_start[the] == space_the
    assert found.shared[the] != space_the
    back = VocabularyMap.build(SENTENCE_PIECE, LARGE)
    assert back.shared_at_start[space_the] == the
    assert VocabularyMap.build(LARGE, SMALL).shared_at_start is not None


def test_the_shared_mass_counts_listed_tokens_only() -> None:
    mapping = np.array([5, -1, 7, -1], np.int32)
    ids, probs = np.array([[0, 1], [2, -1]], np.int32), np.array([[0.5, 0.25], [0.75, 0.0]])
    with np.errstate(divide="ignore"):
        shared, listed = shared_mass(ids, np.log(probs).astype(np.float32), mapping)
    assert (shared, listed) == (pytest.approx(1.25), pytest.approx(1.5))

"""Translated targets: no mass is lost, tokens keep their names, labels get what the proxy gave to the whole of them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.config.cross_tokenizer import CrossTokenizerSpec
from proxykd.models.token_alignment import align, find_boundaries
from proxykd.models.vocabulary_map import VocabularyMap
from proxykd.student.translation import SampleAlignment, translate
from proxykd.targets.reader import SparseTarget
from tests.support.tokenizer_pairs import TEXTS, byte_level, bytes_of, sentence_piece

FIRST, TRANSPORT = CrossTokenizerSpec(), CrossTokenizerSpec(unshared="transport")
LARGE, SMALL = bytes_of(byte_level(vocab_size=420)), bytes_of(byte_level(TEXTS[:2], vocab_size=290))
SENTENCE_PIECE = bytes_of(sentence_piece())
PAIRS = {
    "to smaller": (LARGE, SMALL),
    "to larger": (SMALL, LARGE),
    "to a prefix": (LARGE, SENTENCE_PIECE),
    "from a prefix": (SENTENCE_PIECE, LARGE),
    "same": (LARGE, LARGE),
}
MAPS = {name: VocabularyMap.build(*pair) for name, pair in PAIRS.items()}


def sample_of(name: str, text: str) -> SampleAlignment:
    ids = [
        np.array([*one.backend.encode(text, add_special_tokens=False).ids, one.eos_id], np.int32) for one in PAIRS[name]
    ]
    found = [find_boundaries(one, [own], [text.encode()]) for one, own in zip(PAIRS[name], ids, strict=True)]
    alignment = align(*found, [text.encode()])
    return SampleAlignment(*ids, alignment.source.astype(np.int32), alignment.stop.astype(np.int32))


def random_target(alignment: SampleAlignment, vocab: int, *, top_k: int, seed: int, has_labels: bool) -> SparseTarget:
    rng, length = np.random.default_rng(seed), len(alignment.proxy_ids)
    ids = np.stack([rng.choice(vocab, top_k, replace=False) for _ in range(length)]).astype(np.int32)
    if has_labels:
        is_there = (ids == alignment.proxy_ids[:, None]).any(1)
        ids[~is_there, 0] = alignment.proxy_ids[~is_there]
    probs = rng.dirichlet(np.full(top_k + 1, 0.3), size=length)
    with np.errstate(divide="ignore"):
        logprobs = np.log(probs).astype(np.float32)
    return SparseTarget(ids, logprobs[:, :-1], logprobs[:, -1], 0.5)


def mass(target: SparseTarget) -> np.ndarray:
    return np.exp(target.logprobs.astype(np.float64)).sum(1) + np.exp(target.tail_logprob.astype(np.float64))


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("spec", [FIRST, TRANSPORT])
@given(seed=st.integers(0, 10**6), has_labels=st.booleans(), text=st.sampled_from(TEXTS) | st.text(max_size=20))
@settings(max_examples=15)
def test_no_mass_is_lost_and_rows_are_well_formed(
    name: str, spec: CrossTokenizerSpec, seed: int, has_labels: bool, text: str
) -> None:
    alignment = sample_of(name, text.replace("\u2581", " "))
    stored = random_target(alignment, len(PAIRS[name][0].values), top_k=6, seed=seed, has_labels=has_labels)
    found = translate(stored, alignment, MAPS[name], spec)
    np.testing.assert_allclose(mass(found), 1.0, atol=1e-5)
    assert found.position_weights is not None
    np.testing.assert_array_equal(found.position_weights, alignment.source >= 0)
    is_used = found.token_ids >= 0
    assert (found.token_ids < len(PAIRS[name][1].values)).all()
    assert (np.isneginf(found.logprobs) | is_used).all()
    assert (is_used[:, :-1] >= is_used[:, 1:]).all()  # unused slots are last
    for row in found.token_ids:
        named = row[row >= 0]
        assert len(set(named.tolist())) == len(named)
    assert found.weight == 0.5
    assert found.cut(1).position_weights is not None


def test_the_same_tokenizer_gives_the_same_distributions() -> None:
    alignment = sample_of("same", TEXTS[0])
    # Control tokens have no twin, so none is listed here.
    stored = random_target(alignment, len(LARGE.values), top_k=5, seed=0, has_labels=True)
    found = translate(stored, alignment, MAPS["same"], FIRST)
    for row in range(len(alignment.student_ids)):
        before = dict(zip(stored.token_ids[row].tolist(), stored.logprobs[row].tolist(), strict=True))
        after = dict(zip(found.token_ids[row].tolist(), found.logprobs[row].tolist(), strict=True))
        assert after == pytest.approx(before, rel=1e-5)
    np.testing.assert_allclose(found.tail_logprob, stored.tail_logprob, rtol=1e-5)


def hand_map(pairs: dict[int, int], first: dict[int, int], size: int = 20) -> VocabularyMap:
    shared = np.full(size + 1, -1, np.int32)
    shared[list(pairs)] = list(pairs.values())
    both = shared.copy()
    both[list(first)] = list(first.values())
    return VocabularyMap(shared, both, shared, both, np.zeros(0, np.int32))


def hand_target(rows: list[dict[int, float]], width: int = 3) -> SparseTarget:
    ids, probs = np.full((len(rows), width), -1, np.int32), np.zeros((len(rows), width))
    for position, row in enumerate(rows):
        ids[position, : len(row)], probs[position, : len(row)] = list(row), list(row.values())
    with np.errstate(divide="ignore"):
        return SparseTarget(ids, np.log(probs).astype(np.float32), np.log(1 - probs.sum(1)).astype(np.float32), 1.0)


def probs_of(target: SparseTarget, row: int) -> dict[int, float]:
    found = {
        int(idx): float(np.exp(value))
        for idx, value in zip(target.token_ids[row], target.logprobs[row], strict=True)
        if idx >= 0
    }
    return {**found, -1: float(np.exp(target.tail_logprob[row]))}


# The proxy spells "world!" as 1 ("wor") 2 ("ld") 3 ("!"); the student as 11 ("world") 13 ("!").
MERGED = SampleAlignment(*(np.array(part, np.int32) for part in ([1, 2, 3], [11, 13], [0, 2], [1, 2])))
SPELLING = hand_map({1: 14, 3: 13, 4: 15}, {5: 15, 6: 16})


def test_a_longer_token_of_the_students_gets_the_product_and_the_remainder_joins_the_tail() -> None:
    stored = hand_target([{1: 0.5, 4: 0.2, 5: 0.1}, {2: 0.8}, {3: 0.9}])
    found = translate(stored, MERGED, SPELLING, FIRST)
    # 11: .5 * .8; 15: .2 (its twin 4) + .1 (5 begins with it); tail: .2 + .5 * .2
    assert probs_of(found, 0) == pytest.approx({11: 0.4, 15: 0.3, -1: 0.3}, rel=1e-5)
    assert probs_of(found, 1) == pytest.approx({13: 0.9, -1: 0.1}, rel=1e-5)


def test_a_later_piece_that_was_not_kept_sends_the_label_to_the_tail() -> None:
    stored = hand_target([{1: 0.5, 4: 0.2}, {7: 0.8}, {3: 0.9}])
    found = translate(stored, MERGED, SPELLING, FIRST)
    assert probs_of(found, 0) == pytest.approx({15: 0.2, -1: 0.8}, rel=1e-5)


def test_a_label_that_was_not_kept_is_not_named_with_the_mass_of_others() -> None:
    # 5 begins with 15, which is also what the text goes on with; its own proxy token 4 was not kept.
    alignment = SampleAlignment(*(np.array(part, np.int32) for part in ([4], [15], [0], [0])))
    found = translate(hand_target([{5: 0.3, 1: 0.4}]), alignment, SPELLING, FIRST)
    assert probs_of(found, 0) == pytest.approx({14: 0.4, -1: 0.6}, rel=1e-5)


def test_a_longer_token_of_the_proxys_names_the_students_first_piece() -> None:
    # The proxy spells "world" as 6, the student as 16 ("wor") 17 ("ld"): nothing is known inside 6.
    alignment = SampleAlignment(*(np.array(part, np.int32) for part in ([6], [16, 17], [0, -1], [0, -1])))
    for spec in (FIRST, TRANSPORT):
        found = translate(hand_target([{6: 0.7, 1: 0.2}]), alignment, SPELLING, spec)
        assert probs_of(found, 0) == pytest.approx({16: 0.7, 14: 0.2, -1: 0.1}, rel=1e-5)
        assert probs_of(found, 1) == {-1: 1.0}
        assert found.position_weights is not None
        assert found.position_weights.tolist() == [1.0, 0.0]


def test_transport_keeps_the_probabilities_of_tokens_without_a_twin_apart() -> None:
    stored = hand_target([{1: 0.5, 4: 0.2, 5: 0.1}, {2: 0.8}, {3: 0.9}])
    found = translate(stored, MERGED, SPELLING, TRANSPORT)
    assert probs_of(found, 0) == pytest.approx({11: 0.4, 15: 0.2, -1: 0.4}, rel=1e-5)
    assert found.unshared_probs is not None
    np.testing.assert_allclose(found.unshared_probs, [[0, 0, 0.1], [0, 0, 0]], rtol=1e-6)
    assert translate(stored, MERGED, SPELLING, FIRST).unshared_probs is None

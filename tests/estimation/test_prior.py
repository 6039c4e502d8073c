"""The n-gram prior against a slow dictionary that spells the equations out, its limits, and faults."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.config.prior import PriorSpec
from proxykd.data.tokenizing import Example
from proxykd.estimation.ngrams import NgramCounts
from proxykd.estimation.prior import SparseRows, prior_rows
from proxykd.exceptions import InputError

pytestmark = pytest.mark.integration  # what is tested is compiled first

Counts = dict[tuple[int, ...], Counter[int]]


def example(prompt: Sequence[int], completion: Sequence[int], number: int = 0) -> Example:
    return Example(f"{number:016x}", 0, np.array(prompt, np.int32), np.array(completion, np.int32))


def corpus(*texts: tuple[Sequence[int], Sequence[int]]) -> list[Example]:
    return [example(prompt, completion, number) for number, (prompt, completion) in enumerate(texts)]


def slow_counts(examples: Sequence[Example], order: int) -> Counts:
    counts: Counts = {}
    for prompt, completion in ((e.prompt_ids.tolist(), e.completion_ids.tolist()) for e in examples):
        text = prompt + completion
        for at in range(len(prompt), len(text)):
            for distance in range(min(order, at) + 1):
                counts.setdefault(tuple(text[at - distance : at]), Counter())[text[at]] += 1
    return counts


def slow_prior(
    examples: Sequence[Example], asked: Example, order: int, spec: PriorSpec
) -> list[tuple[dict[int, float], int]]:
    """For each position the whole distribution, and the order of the context that was believed."""
    everything, own = slow_counts(examples, order), slow_counts([asked], order)
    is_left_out = spec.counts == "leave_out" and any(e.prompt_id == asked.prompt_id for e in examples)
    text, start = [*asked.prompt_ids.tolist(), *asked.completion_ids.tolist()], len(asked.prompt_ids)
    rows = []
    for at in range(start, len(text)):
        estimate: dict[int, float] = {}
        top = -1
        for distance in range(min(spec.order, at) + 1):
            context = tuple(text[at - distance : at])
            if distance > 1 and everything.get(context[1:], Counter()).total() < 2:
                break
            counts = Counter(everything.get(context, Counter()))
            if is_left_out:
                counts -= own[context]
            if counts.total() < (spec.min_count if distance else 1):
                break
            num, seen = counts.total(), len(counts) if spec.back_off == "interpolated" and distance else 0
            estimate = {
                token: (counts[token] + seen * estimate.get(token, 0.0)) / (num + seen)
                for token in {*counts, *(estimate if seen else ())}
            }
            top = distance
        share = 1 / spec.gamma if estimate else 0.0
        row = {token: share * prob for token, prob in estimate.items()}
        row[text[at]] = row.get(text[at], 0.0) + (1 - share)
        rows.append(({token: prob for token, prob in row.items() if prob > 0}, top))
    return rows


def check(rows: SparseRows, expected: Sequence[tuple[dict[int, float], int]], *, exact: bool) -> None:
    assert len(rows.token_ids) == len(expected)
    for ids, probs, tail, order, (truth, top) in zip(*rows[:4], expected, strict=True):
        used = int(np.count_nonzero(ids >= 0))
        assert order == top
        assert used == min(len(ids), len(truth))
        assert (ids[used:] == -1).all()
        assert (probs[used:] == 0).all()
        assert len(set(ids[:used].tolist())) == used
        np.testing.assert_allclose(probs[:used], [truth[token] for token in ids[:used].tolist()], rtol=1e-5)
        ranked = sorted(truth.items(), key=lambda item: (-item[1], item[0]))
        np.testing.assert_allclose(probs[:used], [prob for _, prob in ranked[:used]], rtol=1e-5)
        if exact:
            assert ids[:used].tolist() == [token for token, _ in ranked[:used]]
        np.testing.assert_allclose(tail, sum(prob for _, prob in ranked[used:]), atol=1e-6)
        assert (tail == 0) == (used == len(truth))
        assert math.isclose(probs.sum(dtype=np.float64) + tail, 1.0, abs_tol=1e-6)


tokens = st.integers(0, 4) | st.sampled_from([6, 300])
texts = st.tuples(st.lists(tokens, max_size=5), st.lists(tokens, max_size=14))
corpora = st.lists(texts, min_size=1, max_size=6).filter(lambda all_: any(completion for _, completion in all_))
specs = st.builds(
    PriorSpec,
    order=st.integers(0, 5),
    gamma=st.sampled_from([1.0, 1.25, 2.0, 10.0, math.inf]),
    counts=st.sampled_from(["leave_out", "keep"]),
    min_count=st.integers(1, 3),
    back_off=st.sampled_from(["longest", "interpolated"]),
    max_tokens=st.sampled_from([1, 2, 3, 10]),
)


TIED = PriorSpec(order=0, gamma=1.0, counts="leave_out", min_count=1, back_off="longest", max_tokens=2)


@settings(max_examples=150, deadline=None)
@hypothesis.example(  # the label, 3 of 17, is not listed and ties with the last that is
    texts=[([], [0] * 6), ([], [6]), ([], [0] * 5 + [1] * 3 + [6] * 3)], other=([], []), spec=TIED, extra=0, chunk=1
)
@given(texts=corpora, other=texts, spec=specs, extra=st.integers(0, 2), chunk=st.sampled_from([1, 7, 1000]))
def test_rows_are_those_of_a_slow_dictionary(
    texts: list[Any], other: Any, spec: PriorSpec, extra: int, chunk: int
) -> None:
    examples = corpus(*texts)
    with TemporaryDirectory() as folder:
        counts = NgramCounts.build(examples, spec.order + extra, Path(folder) / "counts", chunk_positions=chunk)
        for asked in [*examples, example(*other, number=99)]:
            expected = slow_prior(examples, asked, counts.order, spec)
            check(prior_rows(counts, asked, spec), expected, exact=spec.back_off == "longest" and spec.gamma == 1)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), spec=specs)
def test_long_lists_are_cut_and_searched_exactly(seed: int, spec: PriorSpec) -> None:
    rng = np.random.default_rng(seed)
    examples = corpus(*((rng.integers(0, 2, 1), (rng.zipf(1.3, 120) - 1).clip(max=500)) for _ in range(8)))
    with TemporaryDirectory() as folder:
        counts = NgramCounts.build(examples, spec.order, Path(folder) / "counts")
        for asked in examples[:3]:
            expected = slow_prior(examples, asked, counts.order, spec)
            check(prior_rows(counts, asked, spec), expected, exact=spec.back_off == "longest" and spec.gamma == 1)


def rows_of(tmp_path: Path, examples: Sequence[Example], asked: Example, **fields: Any) -> SparseRows:
    spec = PriorSpec(**{"order": 2, "gamma": 1.0, **fields})
    return prior_rows(NgramCounts.build(examples, 2, tmp_path / "counts"), asked, spec)


def test_a_hand_computed_row(tmp_path: Path) -> None:
    examples = corpus(([1], [2, 3]), ([1], [2, 4]), ([1], [2, 4]), ([1], [2, 5]))
    rows = rows_of(tmp_path, examples, examples[0], gamma=4.0)
    # After (1, 2) the other three wrote 4, 4, 5: 1/4 of 2/3 and 1/3, and 3/4 on the written 3.
    assert rows.token_ids[1, :4].tolist() == [3, 4, 5, -1]
    np.testing.assert_allclose(rows.probs[1, :3], [3 / 4, 1 / 6, 1 / 12])
    assert (rows.orders[1], rows.observed[1], rows.tail[1]) == (2, 3, 0)


def test_infinite_gamma_is_the_written_token(tmp_path: Path) -> None:
    examples = corpus(([1], [2, 3, 2]), ([1], [2, 4, 2]))
    rows = rows_of(tmp_path, examples, examples[0], gamma=math.inf)
    assert rows.token_ids[:, 0].tolist() == [2, 3, 2]
    assert (rows.probs[:, 0] == 1).all()
    assert (rows.token_ids[:, 1:] == -1).all()
    assert (rows.positions().tail_logprob == -np.inf).all()


def test_a_lone_text_has_no_evidence_and_says_so(tmp_path: Path) -> None:
    lone = example([1], [2, 2, 3])
    rows = rows_of(tmp_path, [lone], lone)
    assert rows.num_no_evidence == 3
    assert rows.token_ids[:, 0].tolist() == [2, 2, 3]
    assert (rows.probs[:, 0] == 1).all()
    assert rows_of(tmp_path, [lone], lone, counts="keep").num_no_evidence == 0


def test_a_copy_of_a_text_remains_when_one_is_left_out(tmp_path: Path) -> None:
    texts = corpus(([1], [2, 3, 4]), ([1], [2, 3, 4]))
    assert rows_of(tmp_path, texts, texts[0]).token_ids[:, 0].tolist() == [2, 3, 4]


def test_a_text_that_repeats_itself_does_not_confirm_itself(tmp_path: Path) -> None:
    texts = corpus(([1], [2, 3, 2, 3, 2, 3]), ([1], [2, 9]))
    rows = rows_of(tmp_path, texts, texts[0])
    assert 3 not in rows.token_ids
    assert rows.token_ids[1, 0] == 9


def test_log_probabilities_follow_the_convention_of_targets(tmp_path: Path) -> None:
    texts = corpus(([1], [2, 3, 4]), ([1], [2, 4, 4]))
    rows = rows_of(tmp_path, texts, texts[0], max_tokens=1, counts="keep", order=0)
    positions = rows.positions()
    np.testing.assert_allclose(np.exp(positions.logprobs[:, 0]) + np.exp(positions.tail_logprob), 1, rtol=1e-6)
    assert positions.logprobs.dtype == positions.tail_logprob.dtype == np.float32


def test_an_empty_completion_has_no_rows(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, corpus(([1], [2])), example([1], [], number=9))
    assert rows.token_ids.shape == (0, PriorSpec().max_tokens)


def test_what_was_not_counted_is_refused(tmp_path: Path) -> None:
    counts = NgramCounts.build(corpus(([1], [2])), 1, tmp_path / "counts")
    with pytest.raises(InputError, match="order <= 1"):
        prior_rows(counts, example([1], [2]), PriorSpec(order=2))
    with pytest.raises(InputError, match="negative"):
        prior_rows(counts, example([1], [-2], number=9), PriorSpec(order=1))

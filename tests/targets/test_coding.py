"""The coded format: any rows come back, to the bound, for any tables; counts come back exactly."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.exceptions import ArtifactError, ShapeError
from proxykd.targets.codec import Positions
from proxykd.targets.coding import Coder, Levels, Quantiser, without_impossible
from proxykd.targets.fitting import fit_tables
from proxykd.targets.quantising import step_sizes
from proxykd.targets.tables import Tables

pytestmark = pytest.mark.integration  # what is tested is compiled first


def rows(length: int, k: int, vocab_size: int, rng: np.random.Generator) -> Positions:
    """Zipfian ids, peaked and flat rows, with and without tails, ragged."""
    ids = np.full((length, k), -1, np.int32)
    probs = np.zeros((length, k + 1))
    for row in range(length):
        m = int(rng.integers(1, min(k, vocab_size) + 1))
        weights = 1.0 / (1.0 + np.arange(vocab_size))
        ids[row, :m] = rng.choice(vocab_size, m, replace=False, p=weights / weights.sum())
        probs[row, :m] = rng.dirichlet(np.full(m, 10.0 ** rng.uniform(-2, 1)))
        probs[row, :m] = np.maximum(probs[row, :m], 1e-30)
        probs[row, k] = rng.random() * (rng.random() < 0.5)
    probs /= probs.sum(1, keepdims=True)
    with np.errstate(divide="ignore"):
        logs = np.log(probs).astype(np.float32)
    return Positions(ids, logs[:, :k], logs[:, k])


def coder_for(samples: list[Levels], k: int, vocab_size: int, quantiser: Quantiser) -> Coder:
    tables = fit_tables(samples, vocab_size=vocab_size, masses=quantiser.masses, power=quantiser.power)
    return Coder(tables, k, quantiser)


def kl_rows(given: Positions, kept: Positions) -> np.ndarray:  # type: ignore[type-arg]
    order, other = np.argsort(given.token_ids, 1), np.argsort(kept.token_ids, 1)
    np.testing.assert_array_equal(
        np.take_along_axis(given.token_ids, order, 1), np.take_along_axis(kept.token_ids, other, 1)
    )
    p = np.column_stack([np.take_along_axis(given.logprobs, order, 1), given.tail_logprob]).astype(np.float64)
    q = np.column_stack([np.take_along_axis(kept.logprobs, other, 1), kept.tail_logprob]).astype(np.float64)
    possible = np.exp(p) > 0
    return (np.exp(p) * (np.where(possible, p, 0.0) - np.where(possible, q, 0.0))).sum(1)


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.sampled_from([1, 5, 40]),
    vocab_size=st.sampled_from([1, 40, 70_000]),
    max_kl=st.sampled_from([1e-2, 1e-4, 1e-6]),
    has_text=st.booleans(),
)
def test_any_rows_come_back_within_the_bound(seed: int, k: int, vocab_size: int, max_kl: float, has_text: bool) -> None:
    rng = np.random.default_rng(seed)
    quantiser = Quantiser(k, max_kl=max_kl, num_draws=None)
    given_rows = [rows(int(rng.integers(1, 30)), k, vocab_size, rng) for _ in range(4)]
    texts = [rng.integers(0, vocab_size, len(part.tail_logprob)).astype(np.int32) for part in given_rows]
    levels = [
        quantiser.quantise(part, text if has_text else None) for part, text in zip(given_rows, texts, strict=True)
    ]
    coder = coder_for(levels[:2], k, vocab_size, quantiser)
    for part, text, sample in zip(given_rows, texts, levels, strict=True):
        kept, kept_text = coder.decode(coder.encode(sample), len(text))
        assert (kl_rows(part, kept) <= max_kl + 1e-5).all()
        assert (sample.kls <= max_kl).all()
        if has_text:
            np.testing.assert_array_equal(kept_text, text)


def counts(length: int, k: int, draws: int, rng: np.random.Generator) -> Positions:
    ids, logs = np.full((length, k), -1, np.int32), np.full((length, k), -np.inf, np.float32)
    for row in range(length):
        found, n = np.unique(rng.geometric(0.1, draws) - 1, return_counts=True)
        ids[row, : len(found)], logs[row, : len(found)] = found, np.log(n / draws)
    return Positions(ids, logs, np.full(length, -np.inf, np.float32))


def test_counts_come_back_exactly() -> None:
    rng = np.random.default_rng(0)
    quantiser = Quantiser(50, max_kl=1e-4, num_draws=50)
    given_rows = counts(200, 50, 50, rng)
    levels = quantiser.quantise(given_rows, None)
    kept, _ = coder_for([levels], 50, 500, quantiser).decode(
        coder_for([levels], 50, 500, quantiser).encode(levels), 200
    )
    for row in range(200):
        given_row = dict(zip(given_rows.token_ids[row].tolist(), given_rows.logprobs[row].tolist(), strict=True))
        kept_row = dict(zip(kept.token_ids[row].tolist(), kept.logprobs[row].tolist(), strict=True))
        assert given_row == kept_row
    with pytest.raises(ShapeError, match="counts"):
        Quantiser(50, max_kl=1e-4, num_draws=49).quantise(given_rows, None)


def test_lists_of_the_text_make_rows_shorter() -> None:
    """After token t the row holds t's own 8 followers: what is left to say is t, log2(20) bits = 0.54 bytes."""
    rng = np.random.default_rng(1)
    followers = np.stack([rng.permutation(2000)[:8] for _ in range(20)]).astype(np.int32)
    quantiser = Quantiser(8, max_kl=1e-4, num_draws=None)
    lengths = {}
    for known in (True, False):
        samples = []
        for _ in range(100):
            text = rng.integers(0, 20, 50).astype(np.int32)
            ids = followers[np.concatenate([[0], text[:-1]])]
            flat = Positions(ids, np.full((50, 8), -np.log(8), np.float32), np.full(50, -np.inf, np.float32))
            samples.append(quantiser.quantise(flat, text if known else None))
        coder = coder_for(samples, 8, 2000, quantiser)
        lengths[known] = len(coder.encode(samples[-1])) / 50
    assert 0.54 < lengths[True] < 0.6 * lengths[False]


def test_damaged_words_are_noticed_or_at_least_survived() -> None:
    """The checksum keeps damage out; even without it the decoder stays inside its arrays."""
    rng = np.random.default_rng(2)
    quantiser = Quantiser(5, max_kl=1e-4, num_draws=None)
    levels = quantiser.quantise(rows(40, 5, 300, rng), None)
    coder = coder_for([levels], 5, 300, quantiser)
    data = coder.encode(levels)
    caught = 0
    for _ in range(300):
        damaged = bytearray(data)
        damaged[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        try:
            coder.decode(bytes(damaged), 40)
        except ArtifactError:
            caught += 1
    assert caught > 250
    for length in (0, 7, 8, len(data) // 2):
        with pytest.raises(ArtifactError):
            coder.decode(data[:length], 40)


def test_impossible_tokens_become_unused_slots() -> None:
    given_rows = Positions(
        np.array([[3, 1, 2]], np.int32),
        np.array([[-np.inf, 0.0, -np.inf]], np.float32),
        np.array([-np.inf], np.float32),
    )
    assert without_impossible(given_rows).token_ids.tolist() == [[1, -1, -1]]


def test_the_expected_step_spends_about_the_bound() -> None:
    """(k + 1) s^2 / 6 = max_kl at the step 3 octaves after the first: k = 5, 1e-4 nats -> s = 0.01."""
    assert step_sizes(5, 1e-4)[12] == pytest.approx(0.01)


def test_tables_come_back_from_their_bytes() -> None:
    rng = np.random.default_rng(3)
    quantiser = Quantiser(5, max_kl=1e-4, num_draws=None)
    levels = quantiser.quantise(rows(40, 5, 300, rng), None)
    tables = fit_tables([levels], vocab_size=300, masses=quantiser.masses, power=quantiser.power)
    assert (tables.widths.sum(1) == 1024).all()
    again = Tables.from_bytes(tables.to_bytes(), path=Path("x"))
    for name in Tables.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(again, name), getattr(tables, name))
    data = bytearray(tables.to_bytes())
    data[8] = 9
    with pytest.raises(ArtifactError, match="version 2"):
        Tables.from_bytes(bytes(data), path=Path("x"))

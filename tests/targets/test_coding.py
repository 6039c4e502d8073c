"""The coded format: any rows come back, to the bound, for any tables; counts come back exactly."""

import os
import subprocess
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from proxykd.exceptions import ArtifactError, ShapeError
from proxykd.targets.codec import Positions
from proxykd.targets.coding import Coder, Levels, Quantiser, without_impossible
from proxykd.targets.fitting import fit_tables
from proxykd.targets.kernels import GAP_TABLES, GAPS, NUM_CONTEXTS, NUM_SYMBOLS, forget_older_code
from proxykd.targets.quantising import step_masses, step_sizes
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


def survive_damage() -> int:
    """Decode 2,000 damaged samples; returns how many were noticed."""
    rng = np.random.default_rng(2)
    caught = 0
    for k, vocab_size in ((5, 300), (40, 3000)):
        quantiser = Quantiser(k, max_kl=1e-4, num_draws=None)
        levels = [quantiser.quantise(rows(60, k, vocab_size, rng), None) for _ in range(40)]
        coder = coder_for(levels, k, vocab_size, quantiser)
        data = coder.encode(levels[0])
        for attempt in range(1000):
            damaged = bytearray(data)
            for _ in range(1 + attempt % 3):
                damaged[rng.integers(len(data))] ^= int(rng.integers(1, 256))
            if attempt % 4 == 3:
                damaged = bytearray(rng.bytes(4 * int(rng.integers(4, 100))))
            try:
                coder.decode(bytes(damaged), 60)
            except ArtifactError:
                caught += 1
        for length in (0, 15, 16, len(data) // 8 * 4):
            with pytest.raises(ArtifactError):
                coder.decode(data[:length], 60)
    return caught


def test_damaged_words_are_noticed_and_lead_nowhere(tmp_path: Path) -> None:
    """The checksum keeps damage out; even without it every index stays inside its array, which numba checks here."""
    environment = os.environ | {"NUMBA_BOUNDSCHECK": "1", "NUMBA_CACHE_DIR": str(tmp_path)}
    code = f"import runpy; print(runpy.run_path({__file__!r})['survive_damage']())"
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 1950


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


@pytest.mark.parametrize(
    "change",
    [
        {"list_ids": np.array([300], np.int32)},
        {"list_ids": np.array([-1], np.int32)},
        {"token_of": np.zeros(300, np.int32)},
        {"list_starts": np.full(302, 7, np.int64)},
        {"table_of": np.full(NUM_CONTEXTS, 255, np.uint8)},
        {"widths": np.zeros((GAPS + GAP_TABLES, NUM_SYMBOLS), np.int32)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_tables_that_would_lead_outside_are_refused(change: dict[str, np.ndarray]) -> None:  # type: ignore[type-arg]
    quantiser = Quantiser(5, max_kl=1e-4, num_draws=None)
    levels = quantiser.quantise(rows(40, 5, 300, np.random.default_rng(4)), None)
    tables = fit_tables([levels], vocab_size=300, masses=quantiser.masses, power=quantiser.power)
    one = replace(
        tables,
        list_ids=np.array([299], np.int32),
        list_zones=np.zeros(1, np.uint8),
        list_starts=np.minimum(np.arange(302), 1).astype(np.int64),
    )
    assert Tables.from_bytes(one.to_bytes(), path=Path("x")).list_ids.tolist() == [299]
    with pytest.raises(ArtifactError, match="contradict"):
        Tables.from_bytes(replace(one, **change).to_bytes(), path=Path("x"))


def test_numbers_that_no_symbol_was_fitted_for_are_escaped() -> None:
    """Tables of rows {0, 1}, flat, code rows of far tokens, peaked, to the bound: 31 bits a number at most."""
    quantiser = Quantiser(2, max_kl=1e-4, num_draws=None)
    near = Positions(
        np.array([[0, 1]] * 9, np.int32), np.full((9, 2), np.log(0.5), np.float32), np.full(9, -np.inf, "f4")
    )
    probs = np.array([0.001, 0.9, 0.099])
    far = Positions(
        np.array([[262_143, 200_000]], np.int32), np.log(probs[None, :2]).astype("f4"), np.log(probs[2:]).astype("f4")
    )
    coder = coder_for([quantiser.quantise(near, None)], 2, 262_144, quantiser)
    data = coder.encode(quantiser.quantise(far, np.array([131_071], np.int32)))
    kept, text = coder.decode(data, 1)
    assert (kl_rows(far, kept) <= 1e-4 + 1e-5).all()
    assert text.tolist() == [131_071]
    assert len(data) <= 16 + 4 * 10


def test_what_the_symbols_cannot_say_is_refused() -> None:
    with pytest.raises(ShapeError, match="max_kl"):
        Quantiser(1, max_kl=1e-16, num_draws=None).quantise(
            Positions(np.zeros((1, 1), np.int32), np.full((1, 1), np.log(0.7), "f4"), np.full(1, np.log(0.3), "f4")),
            None,
        )
    quantiser = Quantiser(1, max_kl=1e-4, num_draws=None)
    with pytest.raises(ShapeError, match="vocabulary"):
        fit_tables([], vocab_size=2**21, masses=quantiser.masses, power=quantiser.power)


@pytest.mark.parametrize("k", [1, 10, 20, 50, 128, 500])
@pytest.mark.parametrize("max_kl", [1e-6, 1e-4, 3e-3])
def test_what_steers_the_decoder_is_rounded_exactly(k: int, max_kl: float) -> None:
    found, exact = step_masses(k, max_kl), (Fraction(k + 1) / (6 * Fraction(max_kl))) ** 2
    for step, mass in enumerate(found.tolist()):
        square = exact * Fraction(2) ** (step - 12)  # mass - 1/2 <= sqrt(square) < mass + 1/2
        assert (Fraction(2 * mass - 1, 2)) ** 2 <= square < (Fraction(2 * mass + 1, 2)) ** 2
    assert np.allclose(found, step_sizes(k, max_kl) ** -2.0, atol=0.51)


def test_code_that_was_compiled_before_its_constants_changed_is_forgotten(tmp_path: Path) -> None:
    source, folder = tmp_path / "kernels.py", tmp_path / "__pycache__"
    folder.mkdir()
    source.write_text("", encoding="utf-8")
    for name, seconds in (("old.nbi", 1), ("old.1.nbc", 1), ("old.pyc", 1), ("new.nbi", 2**31)):
        (folder / name).write_bytes(b"")
        os.utime(folder / name, (seconds, seconds))
    forget_older_code(source)
    assert {file.name for file in folder.iterdir()} == {"old.pyc", "new.nbi"}

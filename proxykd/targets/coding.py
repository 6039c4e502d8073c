"""Positions <-> bytes, given the tables: the coded format of one sample.

A sample is coded by itself, so that it can be read without its neighbours; the rows within it lean on each other.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.exceptions import ArtifactError, ShapeError
from proxykd.targets.codec import Positions
from proxykd.targets.kernels import LARGEST, NOTHING
from proxykd.targets.quantising import STEPS, quantise, step_masses, step_sizes
from proxykd.targets.read_kernels import guard_words, read_rows
from proxykd.targets.tables import Tables
from proxykd.targets.write_kernels import pack, write_rows

_LOG_LEVELS = 1 << 12
_DAMAGED = "expected a whole block of coded targets, found damage; copy the store again"


class Levels(NamedTuple):
    """A sample as whole numbers.

    Attributes:
        ids: int32 [length, k], -1 = no token, last in the row.
        levels: int32 [length, k].
        steps: int32 [length].
        tails: int32 [length]: the tail's level + 1, 0 = none.
        text: int32 [length]: the text's tokens; -1 = not known.
        kls: float64 [length], what the levels lose, nats.
    """

    ids: NDArray[np.int32]
    levels: NDArray[np.int32]
    steps: NDArray[np.int32]
    tails: NDArray[np.int32]
    text: NDArray[np.int32]
    kls: NDArray[np.float64]

    def next_tokens(self) -> NDArray[np.int64]:
        """The text's token at each position, the row's likeliest where the text is not known."""
        best = np.take_along_axis(self.ids, self.levels.argmax(1)[:, None], 1)[:, 0].astype(np.int64)
        return np.where(self.text >= 0, self.text, best)


class Scratch:
    """Arrays that the compiled loops work in, made once."""

    def __init__(self, k: int, vocab_size: int) -> None:
        reciprocals = 65536 // np.maximum(np.arange(k + 1), 1)
        self.reading = np.zeros(k), reciprocals
        self.writing = (
            np.zeros(k, np.int64),
            np.zeros(k, np.int32),
            np.zeros(k, np.int32),
            reciprocals,
            np.zeros(vocab_size, np.int64),
        )


def symbolise(
    sample: Levels, tables: Tables, masses: NDArray[np.int64], power: int, scratch: Scratch
) -> NDArray[np.int32]:
    """int32 [symbols, 4]: context, symbol, number of plain bits, plain bits."""
    length, k = sample.ids.shape
    out = np.empty((length * (2 * k + 8), 4), np.int32)
    n = write_rows(*sample[:5], masses, power, tables.model, scratch.writing, out)
    return out[:n]


class Coder:
    """Codes samples with some tables.

    Args:
        tables: Fitted.
        k: Tokens a row, at most.
        quantiser: How probabilities become levels.
    """

    def __init__(self, tables: Tables, k: int, quantiser: "Quantiser") -> None:
        self._tables, self._k, self._quantiser = tables, k, quantiser
        self._scratch = Scratch(k, tables.vocab_size)
        self._guard = guard_words(k)

    def encode(self, sample: Levels) -> bytes:
        """The sample's bytes."""
        tables, quantiser = self._tables, self._quantiser
        symbols = symbolise(sample, tables, quantiser.masses, quantiser.power, self._scratch)
        words = np.empty((2, len(symbols) + 4), np.uint32)
        count = pack(symbols, len(symbols), *tables.coder, words)
        return words[0, :count].tobytes()

    def decode(self, data: bytes, length: int) -> tuple[Positions, NDArray[np.int32]]:
        """The positions and the text's tokens.

        Raises:
            ArtifactError: if the bytes are not what ``encode`` makes.
        """
        if len(data) < 16 or len(data) % 4:
            raise ArtifactError(_DAMAGED)
        guard, quantiser = bytes(4 * self._guard), self._quantiser
        words = np.frombuffer(guard + data + guard, np.uint32)
        ids, logprobs = np.empty((length, self._k), np.int32), np.empty((length, self._k), np.float32)
        tail, text = np.empty(length, np.float32), np.empty(length, np.int32)
        whole = read_rows(
            words, self._guard, quantiser.masses, quantiser.power, self._tables.reader, self._scratch.reading,
            quantiser.log_weights, ids, logprobs, tail, text,
        )  # fmt: skip
        if not whole:
            raise ArtifactError(_DAMAGED)
        return Positions(ids, logprobs, tail), text


def without_impossible(positions: Positions) -> Positions:
    """The same distributions without listed tokens of probability 0: their slots become unused ones."""
    ids, logprobs, tail = positions
    impossible = (ids >= 0) & np.isneginf(logprobs)
    if not impossible.any():
        return positions
    order = np.argsort(np.isneginf(logprobs), axis=1, kind="stable")
    moved = np.take_along_axis(np.where(impossible, -1, ids), order, 1).astype(np.int32)
    return Positions(np.ascontiguousarray(moved), np.ascontiguousarray(np.take_along_axis(logprobs, order, 1)), tail)


class Quantiser:
    """How probabilities become levels: by a bound on the KL, or as counts.

    Args:
        k: Tokens a row, at most.
        max_kl: Bound on every row's KL(given || kept), nats; not used for counts.
        num_draws: Rows are counts c_i / num_draws, kept exactly; None = they are probabilities.
    """

    def __init__(self, k: int, *, max_kl: float, num_draws: int | None) -> None:
        self._max_kl, self._num_draws = max_kl, num_draws
        self._sizes = step_sizes(k, max_kl)
        numbers = np.arange(_LOG_LEVELS, dtype=np.float64)
        if num_draws is None:
            self.power, self.masses = 2, step_masses(k, max_kl)
        else:
            self.power, self.masses = 1, np.full(STEPS, num_draws, np.int64)
        numbers[0] = math.sqrt(NOTHING) if num_draws is None else NOTHING
        self.log_weights = self.power * np.log(numbers)

    def quantise(self, positions: Positions, text: NDArray[np.int32] | None) -> Levels:
        """The sample as whole numbers.

        Raises:
            ShapeError: if a row cannot be kept: not counts, or the bound is too tight for it.
        """
        positions = without_impossible(positions)
        length, k = positions.token_ids.shape
        known = np.full(length, -1, np.int32) if text is None else np.asarray(text, np.int32)
        levels, steps = np.zeros((length, k), np.int32), np.zeros(length, np.int32)
        tails, kls = np.zeros(length, np.int32), np.zeros(length)
        if self._num_draws is not None:
            levels = self._counts(positions)
        else:
            row = quantise(
                positions.logprobs, positions.tail_logprob, self._sizes, self._max_kl, levels, steps, tails, kls
            )
            if row >= 0:
                raise ShapeError(
                    f"row {row} cannot be kept within max_kl={self._max_kl} nats; raise targets.store.max_kl"
                )
        if max(levels.max(initial=0), tails.max(initial=0)) > LARGEST:
            raise ShapeError(
                f"expected levels up to {LARGEST}, max_kl={self._max_kl} nats takes larger ones; raise it "
                "(targets.store.max_kl)"
            )
        return Levels(positions.token_ids, levels, steps, tails, known, kls)

    def _counts(self, positions: Positions) -> NDArray[np.int32]:
        draws = float(self._num_draws or 0)
        exact = np.exp(positions.logprobs.astype(np.float64)) * draws
        counts = np.round(exact)
        if (
            np.isfinite(positions.tail_logprob).any()
            or (np.abs(exact - counts) > 1e-3).any()
            or (counts.sum(1) != draws).any()
        ):
            raise ShapeError(
                f"expected rows of counts c / {self._num_draws} that add up to 1 and have no tail, found others; leave "
                "num_draws out for probabilities"
            )
        return counts.astype(np.int32)

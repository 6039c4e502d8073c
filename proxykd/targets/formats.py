"""The two formats behind one interface: samples in, payloads out, and back.

``plain-2`` writes every sample as it comes. ``coded-2`` holds the first samples back until there are enough to fit its
tables on. Importing this module compiles nothing; the coded format does when it is first used.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from proxykd.config.targets_store import TargetStoreSpec
from proxykd.exceptions import ArtifactError, ShapeError
from proxykd.targets.codec import CODED, PLAIN, Positions, decode_plain, encode_plain

if TYPE_CHECKING:
    from proxykd.targets.coding import Coder, Levels


class Sample(NamedTuple):
    """A sample's key, its log-likelihood in nats and its number of positions."""

    prompt_id: str
    sample_idx: int
    sequence_logprob: float
    length: int


class Encoder(Protocol):
    """Turns samples into payloads, perhaps some samples later."""

    def add(
        self, sample: Sample, positions: Positions, text_ids: NDArray[np.int32] | None
    ) -> Iterator[tuple[Sample, bytes]]:
        """The samples that are ready now."""

    def flush(self) -> Iterator[tuple[Sample, bytes]]:
        """All that are left."""

    def header(self) -> dict[str, Any]:
        """What a reader has to know; complete once the first sample is ready."""

    def facts(self) -> dict[str, Any]:
        """What was lost, for the description."""


class PlainEncoder:
    """``plain-2``: nothing is rounded."""

    def __init__(self, *, top_k: int, vocab_size: int) -> None:
        self._top_k, self._vocab_size = top_k, vocab_size

    def add(
        self, sample: Sample, positions: Positions, text_ids: NDArray[np.int32] | None
    ) -> Iterator[tuple[Sample, bytes]]:
        """The sample itself; the text is not kept."""
        yield sample, encode_plain(positions, vocab_size=self._vocab_size)

    def flush(self) -> Iterator[tuple[Sample, bytes]]:
        """Nothing."""
        return iter(())

    def header(self) -> dict[str, Any]:
        """Format and shape."""
        return {"format": PLAIN, "top_k": self._top_k, "vocab_size": self._vocab_size}

    def facts(self) -> dict[str, Any]:
        """Nothing was lost."""
        return {}


class CodedEncoder:
    """``coded-2``: entropy-coded with tables fitted on the first samples, or with those of another worker.

    Args:
        folder: Where the tables go.
        top_k: Tokens a row, at most.
        vocab_size: Upper bound on token ids.
        spec: Bound on the KL, and how many positions to fit on.
        num_draws: Rows are counts c / num_draws; None = probabilities.
        tables: File with tables to use; None = fit.
    """

    def __init__(
        self,
        folder: Path,
        *,
        top_k: int,
        vocab_size: int,
        spec: TargetStoreSpec,
        num_draws: int | None,
        tables: Path | None,
    ) -> None:
        from proxykd.targets.coding import Quantiser

        self._folder, self._top_k, self._vocab_size, self._spec = folder, top_k, vocab_size, spec
        self._num_draws = num_draws
        self._quantiser: Quantiser = Quantiser(top_k, max_kl=spec.max_kl, num_draws=num_draws)
        self._waiting: list[tuple[Sample, Levels]] = []
        self._num_waiting = 0
        self._kl_sum = self._kl_max = 0.0
        self._num_positions, self._has_text = 0, False
        self._coder: Coder | None = None
        self._tables_file = ""
        if tables is not None:
            self._use(tables.read_bytes(), tables)

    def add(
        self, sample: Sample, positions: Positions, text_ids: NDArray[np.int32] | None
    ) -> Iterator[tuple[Sample, bytes]]:
        """The sample, or all that waited once there are enough, or nothing."""
        levels = self._quantiser.quantise(positions, self._check_text(text_ids, sample))
        self._kl_sum += float(levels.kls.sum())
        self._kl_max = max(self._kl_max, float(levels.kls.max(initial=0.0)))
        self._num_positions += sample.length
        if self._coder is not None:
            yield sample, self._coder.encode(levels)
            return
        self._waiting.append((sample, levels))
        self._num_waiting += sample.length
        if self._num_waiting >= self._spec.fit_positions:
            yield from self.flush()

    def flush(self) -> Iterator[tuple[Sample, bytes]]:
        """Fit on what waits, and give it out."""
        if not self._waiting:
            return
        if self._coder is None:
            self._fit()
        waiting, self._waiting = self._waiting, []
        for sample, levels in waiting:
            yield sample, self._coder.encode(levels)  # type: ignore[union-attr]

    def header(self) -> dict[str, Any]:
        """Format, shape, bound and tables."""
        return {
            "format": CODED,
            "top_k": self._top_k,
            "vocab_size": self._vocab_size,
            "max_kl": self._spec.max_kl,
            "num_draws": self._num_draws,
            "has_text": self._has_text,
            "tables": self._tables_file,
        }

    def facts(self) -> dict[str, Any]:
        """KL(given || kept) in nats: its sum and its maximum over the positions that were added."""
        return {"kl_sum": self._kl_sum, "kl_max": self._kl_max, "kl_positions": self._num_positions}

    def _check_text(self, text_ids: NDArray[np.int32] | None, sample: Sample) -> NDArray[np.int32] | None:
        if self._num_positions == 0:
            self._has_text = text_ids is not None
        if self._has_text != (text_ids is not None):
            raise ShapeError(
                "expected the text's tokens with every sample of a store or with none; pass text_ids always"
            )
        if text_ids is None:
            return None
        text = np.asarray(text_ids, np.int32)
        if text.shape != (sample.length,) or (text.size and not 0 <= text.min() <= text.max() < self._vocab_size):
            raise ShapeError(
                f"expected {sample.length} text token ids in 0 .. {self._vocab_size - 1}, got shape {text.shape}; pass "
                "the completion's own tokens, one a position"
            )
        return text

    def _fit(self) -> None:
        from proxykd.targets.fitting import fit_tables
        from proxykd.targets.tables import table_file

        samples = [levels for _, levels in self._waiting]
        quantiser = self._quantiser
        tables = fit_tables(samples, vocab_size=self._vocab_size, masses=quantiser.masses, power=quantiser.power)
        data = tables.to_bytes()
        path = self._folder / table_file(data)
        path.write_bytes(data)
        self._use(data, path)

    def _use(self, data: bytes, path: Path) -> None:
        from proxykd.targets.coding import Coder
        from proxykd.targets.tables import Tables, table_file

        tables = Tables.from_bytes(data, path=path)
        if tables.vocab_size != self._vocab_size:
            raise ArtifactError(
                f"expected tables for a vocabulary of {self._vocab_size} tokens in {path}, found {tables.vocab_size}"
            )
        self._tables_file = table_file(data)
        if not (own := self._folder / self._tables_file).exists():
            own.write_bytes(data)
        self._coder = Coder(tables, self._top_k, self._quantiser)


class Decoder:
    """Turns payloads into positions again.

    Args:
        folder: The store, where the tables lie.
        header: The shard's header.

    Raises:
        ArtifactError: if the format is not known or the tables are missing or damaged.
    """

    def __init__(self, folder: Path, header: dict[str, Any]) -> None:
        self._top_k, self._vocab_size = header["top_k"], header["vocab_size"]
        self._coder = self._build_coder(folder, header) if header["format"] == CODED else None

    def _build_coder(self, folder: Path, header: dict[str, Any]) -> "Coder":
        from proxykd.targets.coding import Coder, Quantiser
        from proxykd.targets.tables import Tables, table_file

        path = folder / header["tables"]
        try:
            data = path.read_bytes()
        except OSError as error:
            raise ArtifactError(
                f"expected the tables of the targets in {path}: {error}; copy the store again"
            ) from error
        tables = Tables.from_bytes(data, path=path)
        if table_file(data) != path.name or tables.vocab_size != self._vocab_size:
            raise ArtifactError(f"{path} does not hold the tables that the shards were written with; copy it again")
        quantiser = Quantiser(self._top_k, max_kl=header["max_kl"], num_draws=header["num_draws"])
        return Coder(tables, self._top_k, quantiser)

    def decode(self, payload: bytes, length: int) -> tuple[Positions, NDArray[np.int32] | None]:
        """The positions, and the text's tokens where they were kept (-1 where not).

        Raises:
            ArtifactError: if the payload is not what the format writes.
        """
        if self._coder is None:
            return decode_plain(payload, length, top_k=self._top_k, vocab_size=self._vocab_size), None
        return self._coder.decode(payload, length)

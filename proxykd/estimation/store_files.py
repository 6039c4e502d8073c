"""Estimates that stream by -> the files of a target store, or of a portion of one, and what they add up to.

    estimates -> StoreWriter -> files of a worker, and sums (JSON)
    files of all workers, their sums -> finish_store -> weights, index, targets.json

The sums are exact in JSON, so that portions that were estimated apart are joined without reading a position again, and
a store that one process wrote is finished by the same lines.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from proxykd.config import TargetsSpec
from proxykd.config.estimation import LogprobsEstimatorSpec, PosteriorEstimatorSpec, SampledSpec
from proxykd.data.tokenizing import Example
from proxykd.estimation.counted_prior import prior_facts
from proxykd.estimation.estimates import Estimate
from proxykd.estimation.estimators import Estimates, TextBatch
from proxykd.estimation.evidence import evidence_facts
from proxykd.estimation.posterior import credible_interval
from proxykd.estimation.sparse_targets import Reduction, SparseRows, build_reduction
from proxykd.estimation.weights import SampleWeights
from proxykd.exceptions import ModelError
from proxykd.targets.codec import Positions
from proxykd.targets.summary import PRIOR_FOLDER
from proxykd.targets.writer import TargetWriter, merge

Sums = Mapping[str, Any]
"""What a portion adds up to: ``settings`` (the same for all), ``counts`` (added up), ``sources`` (name -> its sums),
``statistics``, ``likelihoods`` and ``empty`` (headers of a store without a sample)."""

_FACTS: dict[str, Callable[[Sequence[Mapping[str, Any]]], Mapping[str, Any]]] = {
    "prior": prior_facts,
    "evidence": evidence_facts,
    "fitted": lambda parts: parts[0],
}
# Rounding of a sum of a thousand float32 probabilities stays far below.
_MASS_TOLERANCE = 1e-3
# Beta quantiles take microseconds each.
_MAX_INTERVALS = 4096


@dataclass
class _Statistics:
    """What is added up while the positions stream by."""

    level: float | None
    tail_sum: float = 0.0
    num_positions: int = 0
    num_tokens: int = 0
    widths: list[NDArray[np.float64]] = field(default_factory=list)
    num_intervals: int = 0

    def observe(self, rows: SparseRows) -> None:
        self.tail_sum += float(rows.tail_logprob.double().exp().sum())
        self.num_positions += len(rows.tail_logprob)
        self.num_tokens += int((rows.token_ids >= 0).sum())

    def observe_intervals(self, estimate: Estimate) -> None:
        """Widths of the credible intervals of the likeliest token, at the first positions."""
        if self.level is None or estimate.concentration is None or self.num_intervals >= _MAX_INTERVALS:
            return
        scores = estimate.scores[: _MAX_INTERVALS - self.num_intervals]
        concentration = estimate.concentration[: len(scores)].cpu().numpy()
        means = scores.float().log_softmax(dim=-1).amax(dim=-1).exp().cpu().numpy()
        low, high = credible_interval(means, concentration, level=self.level)
        self.widths.append(high - low)
        self.num_intervals += len(means)

    def sums(self) -> dict[str, Any]:
        return {
            "tail_sum": self.tail_sum,
            "num_positions": self.num_positions,
            "num_tokens": self.num_tokens,
            "num_intervals": self.num_intervals,
            "width_sum": float(np.concatenate(self.widths).sum()) if self.widths else 0.0,
        }


def _facts_of(statistics: Sequence[Mapping[str, Any]], level: float | None) -> dict[str, Any]:
    sums = {name: sum(one[name] for one in statistics) for name in statistics[0]}
    total = max(sums["num_positions"], 1)
    found: dict[str, Any] = {
        "tail_prob_mean": sums["tail_sum"] / total,
        "tokens_mean": sums["num_tokens"] / total,
    }
    if count := sums["num_intervals"]:
        width = sums["width_sum"] / count
        found["credible"] = {"level": level, "num_positions": count, "top1_width_mean": width}
    return found


def _posterior(spec: TargetsSpec) -> PosteriorEstimatorSpec | LogprobsEstimatorSpec | None:
    estimator = spec.estimator
    return estimator if isinstance(estimator, PosteriorEstimatorSpec | LogprobsEstimatorSpec) else None


def finish_store(folder: Path, portions: Sequence[Sums], spec: TargetsSpec, *, scratch: Path) -> None:
    """Write the weights and the description of a store, or of two of them.

    Args:
        folder: Holds the files of all workers.
        portions: The sums of each worker, at least one.
        spec: Estimator, reduction, temperature, weighting.
        scratch: Folder for the indexes while they are made.

    Raises:
        ArtifactError: if the files of one worker do not fit those of another.
    """
    weights, posterior = SampleWeights(spec.weighting), _posterior(spec)
    for one in portions:
        weights.add(one["likelihoods"])
    estimator, reduction = (one.model_dump(mode="json") for one in (spec.estimator, spec.reduction))
    first = portions[0]
    described = {
        **first["settings"],
        **{name: sum(one["counts"][name] for one in portions) for name in first["counts"]},
        **{name: _FACTS[name]([one["sources"][name] for one in portions]) for name in first["sources"]},
        "estimator": estimator,
        "reduction": reduction,
        "temperature": spec.temperature,
    }
    facts = _facts_of([one["statistics"] for one in portions], None if posterior is None else posterior.credible_level)
    merge(
        folder,
        scratch=scratch / "main",
        weigh=weights.weigh,
        facts=lambda: {**described, **facts, "statistics": weights.facts()},
        empty=first["empty"]["main"],
    )
    if posterior is not None and posterior.keep_prior:
        merge(
            folder / PRIOR_FOLDER,
            scratch=scratch / PRIOR_FOLDER,
            weigh=lambda logprobs, lengths: np.ones(len(lengths)),
            facts=lambda: described,
            empty=first["empty"]["prior"],
        )


class StoreWriter:
    """Estimates -> the files of one worker of a store, or of two stores.

    Args:
        spec: Reduction, weighting, format.
        seed: Of drawn targets.
        vocab_size: Upper bound on token ids.
        output: Folder of the store.
        scratch: Folder for temporary files.
        worker: Number of the worker, 0 where there is one.
    """

    def __init__(
        self, spec: TargetsSpec, seed: int, *, vocab_size: int, output: Path, scratch: Path, worker: int = 0
    ) -> None:
        self._spec = spec
        self._weights = SampleWeights(spec.weighting)
        self._reduction = build_reduction(spec.reduction, vocab_size=vocab_size, seed=seed)
        shape: dict[str, Any] = {
            "top_k": min(spec.reduction.max_tokens, vocab_size),
            "vocab_size": vocab_size,
            "store": spec.store,
            "num_draws": spec.reduction.draws if isinstance(spec.reduction, SampledSpec) else None,
            "worker": worker,
        }
        posterior = _posterior(spec)
        self._main, self._prior = TargetWriter(output, scratch=scratch / "main", **shape), None
        if posterior is not None and posterior.keep_prior:
            self._prior = TargetWriter(output / PRIOR_FOLDER, scratch=scratch / PRIOR_FOLDER, **shape)
        self._statistics = _Statistics(None if posterior is None else posterior.credible_level)

    def add(self, batch: TextBatch, estimates: Estimates) -> None:
        """Write the targets of a batch."""
        likelihoods = self._likelihoods(batch)
        rows = _reduced(self._reduction, self._tempered(estimates.main), batch)
        self._statistics.observe(rows)
        self._statistics.observe_intervals(estimates.main)
        _write(self._main, batch, rows, likelihoods)
        if self._prior is not None and estimates.prior is not None:
            prior = _reduced(self._reduction, self._tempered(estimates.prior), batch)
            _write(self._prior, batch, prior, likelihoods)

    def close(self) -> dict[str, Any]:
        """Write what is left; returns its part of the sums."""
        self._main.close()
        empty = {"main": self._main.header()}
        if self._prior is not None:
            self._prior.close()
            empty["prior"] = self._prior.header()
        return {"statistics": self._statistics.sums(), "likelihoods": self._weights.sums(), "empty": empty}

    def _tempered(self, estimate: Estimate) -> Estimate:
        temperature = self._spec.temperature
        return estimate if temperature == 1.0 else estimate._replace(scores=estimate.scores / temperature)

    def _likelihoods(self, batch: TextBatch) -> NDArray[np.float64]:
        """The proxy's log-likelihood of each text; 0 where no weight needs it and no estimator asked the proxy."""
        if self._spec.weighting == "none" and not batch.was_asked:
            return np.zeros(len(batch.examples))
        parts = torch.split(batch.label_logprobs.double().cpu(), batch.lengths)
        found = np.array([float(part.sum()) for part in parts])
        self._weights.observe(found, np.array(batch.lengths))
        return found


def _reduced(reduction: Reduction, estimate: Estimate, batch: TextBatch) -> SparseRows:
    rows = reduction(estimate, batch.examples)
    mass = rows.logprobs.double().exp().sum(dim=-1) + rows.tail_logprob.double().exp()
    is_bad = ~((mass - 1.0).abs() <= _MASS_TOLERANCE)  # NaN is bad too
    if is_bad.any():
        position = int(is_bad.int().argmax())
        example = _example_at(batch, position)
        raise ModelError(
            f"expected targets whose probabilities add up to 1, got {float(mass[position]):.6g} for prompt "
            f"{example.prompt_id}; this is a fault of targets.estimator or targets.reduction: report it"
        )
    return rows


def _example_at(batch: TextBatch, position: int) -> Example:
    return batch.examples[int(np.searchsorted(np.cumsum(batch.lengths), position, side="right"))]


def _write(writer: TargetWriter, batch: TextBatch, rows: SparseRows, likelihoods: NDArray[np.float64]) -> None:
    parts = zip(*(torch.split(part.cpu(), batch.lengths) for part in rows), strict=True)
    for example, likelihood, (ids, logprobs, tail) in zip(batch.examples, likelihoods, parts, strict=True):
        positions = Positions(ids.int().numpy(), logprobs.numpy(), tail.float().numpy())
        writer.add(
            example.prompt_id,
            example.sample_idx,
            positions,
            sequence_logprob=float(likelihood),
            text_ids=example.completion_ids,
        )

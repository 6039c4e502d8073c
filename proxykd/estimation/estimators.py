"""The estimators behind one interface: a batch of the teacher's texts and the proxy in, distributions out.

    proxy       pi_P, the proxy's own                                           (Proxy-KD, Eq. 8)
    prior       p0, n-gram counts of the teacher's corpus                       (arXiv:2401.07013v1)
    posterior   p0 updated by draws from pi_P                                   (``posterior``)
    logprobs    the same, updated by what the teacher's API told                (``evidence``)

The proxy is asked when an estimator first needs it, and not at all by one that does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch import Tensor

from proxykd.config.estimation import (
    EstimatorSpec,
    LogprobsEstimatorSpec,
    PosteriorEstimatorSpec,
    PriorEstimatorSpec,
)
from proxykd.data.tokenizing import Example
from proxykd.estimation.estimates import Estimate, PriorRows, SparseProbs, Uniforms, draw_columns
from proxykd.estimation.posterior import Evidence, expected_posterior, sampled_posterior, with_evidence
from proxykd.exceptions import ConfigError, ModelError
from proxykd.logprobs import token_logprobs
from proxykd.models.forward import collate, completion_labels, completion_logits
from proxykd.models.loading import autocast

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, slots=True)
class Proxy:
    """The aligned proxy, ready to be asked.

    Attributes:
        model: In evaluation mode.
        vocab_size: Scores beyond it belong to no token (padding of the head) and are left out.
        pad_id: Any token id.
        precision: Arithmetic, as in ``ModelSpec.precision``.
    """

    model: "PreTrainedModel"
    vocab_size: int
    pad_id: int
    precision: str


class TextBatch:
    """Some of the teacher's texts, and what the proxy says about them when it is asked.

    Args:
        indices: Their places in the corpus.
        examples: The texts.
        proxy: Asked at most once.

    Attributes:
        indices: Their places in the corpus.
        examples: The texts.
    """

    def __init__(self, indices: Sequence[int], examples: Sequence[Example], proxy: Proxy) -> None:
        self.indices, self.examples, self._proxy = indices, examples, proxy

    @property
    def device(self) -> torch.device:
        """Where the estimates are computed."""
        return torch.device(self._proxy.model.device)

    @property
    def lengths(self) -> list[int]:
        """Completion tokens of each text."""
        return [len(example.completion_ids) for example in self.examples]

    @property
    def was_asked(self) -> bool:
        """Whether the proxy has read the texts already."""
        return "logits" in self.__dict__

    @property
    def vocab_size(self) -> int:
        """Tokens of the proxy."""
        return self._proxy.vocab_size

    @cached_property
    def label_logprobs(self) -> Tensor:
        """The proxy's log-probability of each completion token, float32 [n], nats."""
        return token_logprobs(self.logits, torch.cat(self._labels()))

    @cached_property
    def logits(self) -> Tensor:
        """The proxy's scores at each completion token, float32 [n, vocab]; an estimator may change a copy only.

        Raises:
            ModelError: naming the first prompt whose scores are not finite.
        """
        batch = collate(self.examples, pad_id=self._proxy.pad_id).to(self.device)
        with torch.no_grad(), autocast(self._proxy.precision):
            logits = completion_logits(self._proxy.model, batch)[:, : self.vocab_size].float()
        self._check(logits, completion_labels(batch))
        return logits

    def _labels(self) -> list[Tensor]:
        return [torch.from_numpy(one.completion_ids.copy()).long().to(self.device) for one in self.examples]

    def _check(self, logits: Tensor, labels: Tensor) -> None:
        # One NaN or +inf makes the normaliser NaN or inf; a label at -inf cannot have been written.
        found = token_logprobs(logits, labels)
        if (is_bad := ~found.isfinite()).any():
            row = int(is_bad.int().argmax())
            ends = torch.tensor(self.lengths).cumsum(0)
            example = self.examples[int(torch.searchsorted(ends, row, right=True))]
            raise ModelError(
                f"expected finite scores from the proxy, got the log-likelihood {float(found[row])} for a token of "
                f"prompt {example.prompt_id}; its training diverged: lower proxy.*.optimizer.learning_rate"
            )


class Estimates(NamedTuple):
    """What an estimator makes of a batch.

    Attributes:
        main: The targets' distributions, one row for each completion token.
        prior: Those of the second term, if it is to be kept.
    """

    main: Estimate
    prior: Estimate | None = None


class Estimator(Protocol):
    """The teacher's texts and the proxy in, distributions out."""

    def __call__(self, batch: TextBatch) -> Estimates:
        """The distributions at every completion token of a batch."""


class PriorLookup(Protocol):
    """Knows what followed the same tokens elsewhere."""

    def rows_of(self, examples: Sequence[Example]) -> PriorRows:
        """The prior at every completion token of the examples."""


class EvidenceLookup(Protocol):
    """Knows what the teacher's API told."""

    def of(self, indices: Sequence[int], lengths: Sequence[int], *, device: torch.device) -> Evidence:
        """The evidence at the completion tokens of some examples of the corpus, one after the other."""


def build_estimator(
    spec: EstimatorSpec, *, seed: int, prior: PriorLookup | None = None, evidence: EvidenceLookup | None = None
) -> Estimator:
    """The estimator that a specification names.

    Args:
        spec: Which, and its settings.
        seed: Of the run; what is drawn depends on it and on the text alone.
        prior: Needed where ``spec.prior`` is not None.
        evidence: Needed by ``logprobs``.

    Raises:
        ConfigError: if what it needs is missing.
    """
    if spec.kind == "proxy":
        return estimate_by_proxy
    if prior is None:
        raise ConfigError(f"the estimator {spec.kind} needs the counts of the teacher's corpus, got none")
    if isinstance(spec, PriorEstimatorSpec):
        return PriorEstimator(prior)
    posterior = PosteriorEstimator(spec, prior, Uniforms(seed, "draws"))
    if isinstance(spec, PosteriorEstimatorSpec):
        return posterior
    if evidence is None:
        raise ConfigError("the estimator logprobs needs what the teacher's API told, got nothing")
    return LogprobsEstimator(spec, posterior, evidence)


def estimate_by_proxy(batch: TextBatch) -> Estimates:
    """The proxy's own distributions."""
    return Estimates(Estimate(batch.logits, None))


@dataclass(frozen=True, slots=True)
class PriorEstimator:
    """The counts of the corpus."""

    prior: PriorLookup

    def __call__(self, batch: TextBatch) -> Estimates:
        """The distributions at every completion token of a batch."""
        return Estimates(estimate_of(_on(batch.device, self.prior.rows_of(batch.examples).probs)))


@dataclass(frozen=True, slots=True)
class PosteriorEstimator:
    """The prior updated by the proxy."""

    spec: PosteriorEstimatorSpec | LogprobsEstimatorSpec
    prior: PriorLookup
    uniforms: Uniforms

    def __call__(self, batch: TextBatch) -> Estimates:
        """The distributions at every completion token of a batch."""
        spec = self.spec
        rows = self.prior.rows_of(batch.examples)
        prior, kappa = _on(batch.device, rows.probs), self._kappa(rows.observed).to(batch.device)
        if spec.draws and spec.hits == "expected":
            found = expected_posterior(prior, batch.logits.clone(), kappa=kappa, draws=spec.draws)
        else:
            found = sampled_posterior(prior, self._draw(batch), kappa=kappa)
        return Estimates(found, estimate_of(prior) if spec.keep_prior else None)

    def _kappa(self, observed: Tensor) -> Tensor:
        """Draws that the prior is worth at each position, float64 [n]."""
        if self.spec.trust == "fixed":
            return torch.full(observed.shape, self.spec.kappa, dtype=torch.float64)
        return observed.double().clamp_min(1.0).clamp_max(self.spec.kappa)

    def _draw(self, batch: TextBatch) -> Tensor:
        if not self.spec.draws:
            return torch.empty(sum(batch.lengths), 0, dtype=torch.long, device=batch.device)
        return draw_columns(batch.logits, self.uniforms.of(batch.examples, self.spec.draws, device=batch.device))


@dataclass(frozen=True, slots=True)
class LogprobsEstimator:
    """The posterior updated by what the teacher's API told."""

    spec: LogprobsEstimatorSpec
    posterior: PosteriorEstimator
    evidence: EvidenceLookup

    def __call__(self, batch: TextBatch) -> Estimates:
        """The distributions at every completion token of a batch."""
        found = self.posterior(batch)
        told = self.evidence.of(batch.indices, batch.lengths, device=batch.device)
        main = with_evidence(found.main, told, weight=self.spec.evidence, vocab_size=batch.vocab_size)
        return found._replace(main=main)


def estimate_of(probs: SparseProbs) -> Estimate:
    """Probabilities taken as they are."""
    return Estimate(probs.probs.log(), probs.token_ids)


def _on(device: torch.device, probs: SparseProbs) -> SparseProbs:
    return SparseProbs(probs.token_ids.to(device), probs.probs.to(device))

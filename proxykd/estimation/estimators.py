"""The estimators behind one interface: a batch of the teacher's texts and the proxy in, distributions out.

    proxy       pi_P, the proxy's own                                           (Proxy-KD, Eq. 8)
    prior       p0, n-gram counts of the teacher's corpus                       (arXiv:2401.07013v1)
    posterior   p0 updated by draws from pi_P                                   (``posterior``, ``fitting``)
    logprobs    the same, updated by what the teacher's API told                (``evidence``)

The proxy is asked when an estimator first needs it, and not at all by one that does not.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxykd.config.estimation import (
    EstimatorSpec,
    LogprobsEstimatorSpec,
    PosteriorEstimatorSpec,
    PriorEstimatorSpec,
)
from proxykd.data.tokenizing import Example, TokenizedCorpus
from proxykd.estimation.estimates import Estimate, PriorRows, SparseProbs, Uniforms, draw_columns, merge_tokens
from proxykd.estimation.fitting import Fitted
from proxykd.estimation.posterior import Evidence, expected_posterior, sampled_posterior, with_evidence
from proxykd.exceptions import ConfigError, ModelError
from proxykd.logprobs import token_logprobs
from proxykd.models.forward import collate, completion_labels, completion_logits, length_batches
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
    def labels(self) -> Tensor:
        """Every completion token, long [n]."""
        return torch.from_numpy(np.concatenate([one.completion_ids for one in self.examples])).long().to(self.device)

    @cached_property
    def label_logprobs(self) -> Tensor:
        """The proxy's log-probability of each completion token, float32 [n], nats."""
        return token_logprobs(self.logits, self.labels)

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


# Scores of one batch: 256 MiB in float32, whatever the vocabulary.
_BATCH_SCORES = 2**26
_MAX_BATCH_TOKENS = 8192


def batches_of(corpus: TokenizedCorpus, proxy: Proxy, *, limit: int | None = None) -> Iterator[TextBatch]:
    """Every example once, in batches of similar length.

    Args:
        corpus: The texts.
        proxy: Asked about them.
        limit: The first so many alone; None = all.
    """
    max_tokens = min(_MAX_BATCH_TOKENS, _BATCH_SCORES // proxy.vocab_size)
    for indices in length_batches(corpus.lengths[:limit].tolist(), max_tokens=max_tokens):
        yield TextBatch(indices, [corpus[index] for index in indices], proxy)


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
    spec: EstimatorSpec,
    *,
    seed: int,
    prior: PriorLookup | None = None,
    evidence: EvidenceLookup | None = None,
    fitted: Fitted | None = None,
) -> Estimator:
    """The estimator that a specification names.

    Args:
        spec: Which, and its settings.
        seed: Of the run; what is drawn depends on it and on the text alone.
        prior: Needed where ``spec.prior`` is not None; the counts alone (gamma = 1) where something is fitted.
        evidence: Needed by ``logprobs``.
        fitted: Needed where ``spec.is_fitted``.

    Raises:
        ConfigError: if what it needs is missing.
    """
    if spec.kind == "proxy":
        return estimate_by_proxy
    if prior is None:
        raise ConfigError(f"the estimator {spec.kind} needs the counts of the teacher's corpus, got none")
    if spec.is_fitted and fitted is None:
        raise ConfigError(f"the estimator {spec.kind} needs what was fitted to unseen text, got nothing")
    if isinstance(spec, PriorEstimatorSpec):
        return PriorEstimator(prior, fitted)
    posterior = PosteriorEstimator(spec, prior, Uniforms(seed, "draws"), fitted)
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
    fitted: Fitted | None = None

    def __call__(self, batch: TextBatch) -> Estimates:
        """The distributions at every completion token of a batch."""
        probs = _on(batch.device, self.prior.rows_of(batch.examples).probs)
        return Estimates(estimate_of(probs if self.fitted is None else _with_fitted_gamma(probs, batch, self.fitted)))


@dataclass(frozen=True, slots=True)
class PosteriorEstimator:
    """The prior updated by the proxy."""

    spec: PosteriorEstimatorSpec | LogprobsEstimatorSpec
    prior: PriorLookup
    uniforms: Uniforms
    fitted: Fitted | None = None

    def __call__(self, batch: TextBatch) -> Estimates:
        """The distributions at every completion token of a batch."""
        spec, rows = self.spec, self.prior.rows_of(batch.examples)
        believed = self._fitted(rows, batch) if spec.mixes else self._given(rows, batch)
        if spec.draws and spec.hits == "expected":
            found = expected_posterior(believed.prior, batch.logits.clone(), kappa=believed.kappa, draws=believed.draws)
        else:
            found = sampled_posterior(believed.prior, self._draw(batch), kappa=believed.kappa, worth=believed.draws)
        return Estimates(found, estimate_of(believed.second) if spec.keep_prior else None)

    def _given(self, rows: PriorRows, batch: TextBatch) -> "_Believed":
        """The prior with its written token, against draws that are worth their number."""
        prior = _on(batch.device, rows.probs)
        if self.fitted is not None:
            prior = _with_fitted_gamma(prior, batch, self.fitted)
        # Nothing was fitted, or gamma alone, beside a given kappa; without draws any kappa is the same.
        kappa = 1.0 if self.spec.kappa == "fitted" else self.spec.kappa
        worth = torch.full(rows.observed.shape, kappa, dtype=torch.float64)
        if self.spec.trust == "observed":
            worth = rows.observed.double().clamp_min(1.0).clamp_max(kappa)
        worth = worth.to(batch.device)
        return _Believed(prior, worth, torch.full_like(worth, self.spec.draws), prior)

    def _fitted(self, rows: PriorRows, batch: TextBatch) -> "_Believed":
        """Counts worth w s draws and the written token 1, against a proxy that is worth (1 - w) s of them."""
        assert self.fitted is not None
        shares = torch.from_numpy(self.fitted.share_of(rows.orders.numpy(), rows.observed.numpy())).to(batch.device)
        worths = _worths_of(self.fitted, certainty_of(batch)).to(batch.device)
        counted = _on(batch.device, rows.probs)
        prior = with_written(counted, batch.labels, worth=shares * worths)
        second = with_written(counted, batch.labels, worth=worths) if self.spec.keep_prior else prior
        return _Believed(prior, shares * worths + 1.0, (1.0 - shares) * worths, second)

    def _draw(self, batch: TextBatch) -> Tensor:
        if not self.spec.draws:
            return torch.empty(sum(batch.lengths), 0, dtype=torch.long, device=batch.device)
        return draw_columns(batch.logits, self.uniforms.of(batch.examples, self.spec.draws, device=batch.device))


class _Believed(NamedTuple):
    """A prior, what it and the proxy's draws are worth at each position (float64 [n]), and the second term."""

    prior: SparseProbs
    kappa: Tensor
    draws: Tensor
    second: SparseProbs


def certainty_of(batch: TextBatch) -> NDArray[np.float64]:
    """The proxy's probability of its likeliest token at each position, float64 [n]."""
    scores = batch.logits
    return (scores.amax(dim=-1) - scores.logsumexp(dim=-1)).double().exp().cpu().numpy()


def with_written(counted: SparseProbs, labels: Tensor, *, worth: Tensor) -> SparseProbs:
    """Counts worth some draws, updated by the one token that the teacher wrote: ``(s P + 1[y]) / (s + 1)``.

    Args:
        counted: P at each position.
        labels: y, long [n].
        worth: s, float64 [n], >= 0.
    """
    ids = torch.cat([counted.token_ids, labels[:, None]], dim=1)
    share = (1.0 / (worth + 1.0))[:, None]
    merged = merge_tokens(ids, torch.cat([counted.probs.double() * (1.0 - share), share], dim=1))
    return SparseProbs(merged.token_ids, merged.probs.float())


def _with_fitted_gamma(counted: SparseProbs, batch: TextBatch, fitted: Fitted) -> SparseProbs:
    certainty = counted.probs.amax(dim=-1).double().cpu().numpy()
    return with_written(counted, batch.labels, worth=_worths_of(fitted, certainty).to(batch.device))


def _worths_of(fitted: Fitted, certainty: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(fitted.worth_of(certainty))


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

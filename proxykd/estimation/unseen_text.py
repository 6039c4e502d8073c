"""What counts and proxy say of the development side's text, and what is fitted to it (``fitting``).

The development side is counted in no n-gram, trains no proxy and decides no evaluation. A text of a training side would
not do: the proxy has learnt it by heart, more or less, and would be trusted too far.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

from proxykd.config.estimation import LogprobsEstimatorSpec, PosteriorEstimatorSpec, PriorEstimatorSpec
from proxykd.data.tokenizing import Example, TokenizedCorpus
from proxykd.estimation.counted_prior import CountedPrior
from proxykd.estimation.estimators import PriorLookup, Proxy, TextBatch, batches_of, certainty_of
from proxykd.estimation.fitting import Fitted, Unseen, fit
from proxykd.exceptions import GateError
from proxykd.progress import report

if TYPE_CHECKING:
    from proxykd.estimation.ngrams import NgramCounts

FEW_REPEATED = 50
"""Prefixes with several continuations below which a fitted gamma is said to rest on little."""
MAX_FITTED_TEXTS = 1024
"""Texts that are read for the fit, the first ones of the side: fifty prompts with two completions each are plenty."""


def fit_to_unseen(
    spec: PriorEstimatorSpec | PosteriorEstimatorSpec | LogprobsEstimatorSpec,
    counts: "NgramCounts",
    corpus: TokenizedCorpus,
    proxy: Proxy,
) -> Fitted:
    """Fit what a specification leaves to be fitted.

    Args:
        spec: ``is_fitted``.
        counts: Of the training sides.
        corpus: The development side.
        proxy: Asked about it, unless gamma alone is to be fitted.

    Raises:
        GateError: if kappa is to be fitted and there is no text.
    """
    gamma = spec.prior.gamma
    if spec.mixes and not len(corpus):
        raise GateError(
            "expected rows on the development side to fit targets.estimator.kappa to, found none; raise "
            "split.development or give kappa a number"
        )
    counted = CountedPrior(counts, spec.prior.model_copy(update={"gamma": "fitted"}))
    unseen = observe(batches_of(corpus, proxy, limit=MAX_FITTED_TEXTS), counted, asks_proxy=spec.mixes)
    found = fit(unseen, mixes=spec.mixes, worth=None if gamma == "fitted" else _worth_of(gamma))
    if gamma == "fitted" and not found.num_repeated:
        report(
            "no prompt of the development side has several completions, so gamma cannot be fitted and is 2; ask for "
            "some (teacher.sampling.num_samples) or set it"
        )
    elif gamma == "fitted" and found.num_repeated < FEW_REPEATED:
        report(
            f"gamma was fitted to {found.num_repeated} prefixes with several continuations, which is few: it is drawn "
            "towards 2; more prompts on the development side, or more completions of each, make it surer"
        )
    return found


def _worth_of(gamma: float) -> float:
    """What the estimate is worth if its share is 1/gamma and the written token's the rest; inf where gamma is 1."""
    return 1.0 / (gamma - 1.0) if gamma > 1.0 else np.inf


def observe(batches: Iterable[TextBatch], prior: PriorLookup, *, asks_proxy: bool) -> Unseen:
    """What counts and proxy say at every position of some texts.

    Args:
        batches: The texts, in any order; those of one prompt have different sample numbers.
        prior: The counts alone.
        asks_proxy: False = the proxy is not asked, and stands for the counts.
    """
    parts, contexts = [], _Prefixes()
    for batch in batches:
        rows = prior.rows_of(batch.examples)
        labels = batch.labels.cpu()
        counted = (rows.probs.probs * (rows.probs.token_ids == labels[:, None])).sum(dim=1).double().numpy()
        certainty = certainty_of(batch) if asks_proxy else rows.probs.probs.amax(dim=1).double().numpy()
        said = batch.label_logprobs.double().exp().cpu().numpy() if asks_proxy else counted
        numbers = np.concatenate([contexts.numbers_of(example) for example in batch.examples])
        parts.append(
            Unseen(counted, said, rows.orders.numpy(), rows.observed.numpy(), certainty, numbers, labels.numpy())
        )
    if not parts:
        nothing, none = np.zeros(0), np.zeros(0, np.int64)
        return Unseen(nothing, nothing, none, none, nothing, none, none)
    return Unseen(*(np.concatenate(column) for column in zip(*parts, strict=True)))


class _Prefixes:
    """A number for every prompt and what stands before a position of its completion."""

    def __init__(self) -> None:
        self._numbers: dict[tuple[int, int] | str, int] = {}

    def numbers_of(self, example: Example) -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
        """Of each position of the completion, int64 [length]."""
        number, found = self._number(example.prompt_id), []
        for token in example.completion_ids.tolist():
            found.append(number)
            number = self._number((number, token))
        return np.array(found, np.int64)

    def _number(self, key: tuple[int, int] | str) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

"""The step between the aligned proxy and the student: teacher's texts + proxy -> a store of sparse targets.

At every position t of the teacher's text y an estimator (``estimators``) says what the teacher's distribution given
x and y_<t probably was, a reduction (``sparse_targets``) keeps a few tokens of it, and the writer stores them. The
proxy's log-likelihood of y becomes the sample's weight (``weights``). Texts that cannot teach are counted in
``targets.json``; a distribution that is none stops the run.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from proxykd.artifacts import CompletionSet, ProxyModel, SplitSet, Targets, ValidatedSet, seal
from proxykd.config import RunSpec, TargetsSpec
from proxykd.config.estimation import LogprobsEstimatorSpec, PosteriorEstimatorSpec, ProxyEstimatorSpec, SampledSpec
from proxykd.data.splits import corpus_identity, select_rows, sides_for
from proxykd.data.tokenizing import Example, TokenizedCorpus
from proxykd.estimation.counted_prior import CountedPrior
from proxykd.estimation.estimates import Estimate
from proxykd.estimation.estimators import Estimates, Estimator, Proxy, TextBatch, batches_of, build_estimator
from proxykd.estimation.evidence import ApiEvidence
from proxykd.estimation.posterior import credible_interval
from proxykd.estimation.sparse_targets import Reduction, SparseRows, build_reduction
from proxykd.estimation.unseen_text import fit_to_unseen
from proxykd.estimation.weights import SampleWeights
from proxykd.exceptions import GateError, ModelError
from proxykd.models.loading import load_saved
from proxykd.models.tokenizers import tokenizer_fingerprint
from proxykd.progress import stage
from proxykd.records import Side, hash_json
from proxykd.targets.codec import Positions
from proxykd.targets.summary import PRIOR_FOLDER
from proxykd.targets.writer import TargetWriter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


# Rounding of a sum of a thousand float32 probabilities stays far below.
_MASS_TOLERANCE = 1e-3
# Beta quantiles take microseconds each.
_MAX_INTERVALS = 4096


def estimate_distributions(
    completions: CompletionSet | None,
    validated: ValidatedSet,
    splits: SplitSet,
    proxy: ProxyModel,
    run: RunSpec,
    *,
    output: Path,
    scratch: Path,
) -> Targets:
    """Write the targets of every row on the distillation side.

    Args:
        completions: The teacher's answers with the probabilities that its API told; the estimator ``logprobs`` alone
            reads them.
        validated: Rows with verdicts.
        splits: Side of each prompt.
        proxy: The aligned proxy.
        run: Its sections ``seed``, ``proxy``, ``split`` and ``targets`` are read.
        output: Folder of the new artifact.
        scratch: Folder for temporary files.

    Raises:
        GateError: if no row may teach.
        ModelError: if the proxy's scores are not finite, or an estimate is no distribution.
        ArtifactError: if the completions are not those of the rows.
    """
    model, tokenizer = load_saved(proxy.path / "model")
    model.eval()
    rows = select_rows(validated, splits, sides_for("distillation", run.split))
    limit = run.proxy.model.max_seq_tokens
    corpus = TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=limit, path=scratch / "distillation.arrow")
    if not len(corpus):
        raise GateError(
            f"expected rows on the distillation side, found none, {corpus.num_empty} with an empty completion, and "
            f"{corpus.num_skipped - corpus.num_empty} whose prompt leaves no room within proxy.model.max_seq_tokens="
            f"{limit}; raise it or split.distillation, or add prompts"
        )
    vocab_size = min(len(tokenizer), model.get_output_embeddings().weight.shape[0])
    asked = Proxy(model, vocab_size, tokenizer.pad_token_id, run.proxy.model.precision)
    sources = _Sources(run, validated, splits, completions, tokenizer, corpus, asked, scratch)
    estimator = sources.build()
    settings = {
        "proxy": proxy.hash,
        "corpus": corpus_identity(validated, splits),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "precision": run.proxy.model.precision,
        "max_seq_tokens": limit,
        "num_cut": corpus.num_cut,
        "num_skipped": corpus.num_skipped,
        "num_empty": corpus.num_empty,
    }
    writer = _StoreWriter(run.targets, run.seed, vocab_size=vocab_size, output=output, scratch=scratch)
    with stage("estimate distributions", total=len(corpus), unit="text") as progress:
        for batch in batches_of(corpus, asked):
            writer.add(batch, estimator(batch))
            progress.advance(len(batch.examples))
    writer.finish({**settings, **{name: facts() for name, facts in sources.facts.items()}})
    # A student with another tokenizer needs the proxy's to lay the positions on its own.
    tokenizer.save_pretrained(output / "tokenizer")
    targets = Targets(output)
    section = hash_json(run.targets.model_dump(mode="json"))
    made_from = {"validated": validated.hash, "splits": splits.hash, "proxy": proxy.hash, "targets": section}
    told = {} if completions is None else {"completions": completions.hash}
    seal(targets, {**made_from, **told})
    return targets


@dataclass(frozen=True, slots=True)
class _Sources:
    """What the estimators learn from beside the proxy."""

    run: RunSpec
    validated: ValidatedSet
    splits: SplitSet
    completions: CompletionSet | None
    tokenizer: "PreTrainedTokenizerBase"
    corpus: TokenizedCorpus
    proxy: Proxy
    scratch: Path
    facts: dict[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)

    def build(self) -> Estimator:
        """The estimator; ``facts`` then tell of its sources."""
        spec = self.run.targets.estimator
        prior = evidence = fitted = None
        if not isinstance(spec, ProxyEstimatorSpec):
            # Where something is fitted, the written token is added by what was fitted.
            counted = spec.prior.model_copy(update={"gamma": "fitted"}) if spec.is_fitted else spec.prior
            prior = CountedPrior.build(self._teacher_texts(), counted, folder=self.scratch / "counts")
            self.facts["prior"] = prior.facts
            if spec.is_fitted:
                fitted = fit_to_unseen(spec, prior.counts, self._unseen_texts(), self.proxy)
                self.facts["fitted"] = fitted.facts
        if isinstance(spec, LogprobsEstimatorSpec) and self.completions is not None:
            evidence = ApiEvidence.build(
                self.completions, self.corpus, self.tokenizer, path=self.scratch / "evidence.arrow"
            )
            self.facts["evidence"] = evidence.facts
        return build_estimator(spec, seed=self.run.seed, prior=prior, evidence=evidence, fitted=fitted)

    def _teacher_texts(self) -> TokenizedCorpus:
        """All that the teacher wrote on the training sides: what is counted, whoever learns from it."""
        sides = sides_for("sft", self.run.split)
        if sides == sides_for("distillation", self.run.split):
            return self.corpus
        return self._tokenized(sides, "counted.arrow")

    def _unseen_texts(self) -> TokenizedCorpus:
        """What neither the counts nor the proxy has seen, and the evaluation does not ask about."""
        return self._tokenized({Side.DEVELOPMENT}, "development.arrow")

    def _tokenized(self, sides: Collection[Side], name: str) -> TokenizedCorpus:
        rows = select_rows(self.validated, self.splits, sides)
        limit = self.run.proxy.model.max_seq_tokens
        return TokenizedCorpus.build(rows, self.tokenizer, max_seq_tokens=limit, path=self.scratch / name)


@dataclass
class _Statistics:
    """What is added up while the positions stream by."""

    level: float | None
    tail_sum: float = 0.0
    num_positions: int = 0
    num_tokens: int = 0
    intervals: list[NDArray[np.float64]] = field(default_factory=list)
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
        self.intervals.append(high - low)
        self.num_intervals += len(means)

    def facts(self) -> dict[str, Any]:
        total = max(self.num_positions, 1)
        found: dict[str, Any] = {"tail_prob_mean": self.tail_sum / total, "tokens_mean": self.num_tokens / total}
        if self.intervals:
            widths = np.concatenate(self.intervals)
            found["credible"] = {
                "level": self.level,
                "num_positions": len(widths),
                "top1_width_mean": float(widths.mean()),
            }
        return found


class _StoreWriter:
    """Estimates -> one store, or two of them."""

    def __init__(self, spec: TargetsSpec, seed: int, *, vocab_size: int, output: Path, scratch: Path) -> None:
        self._spec = spec
        self._weights = SampleWeights(spec.weighting)
        self._reduction = build_reduction(spec.reduction, vocab_size=vocab_size, seed=seed)
        shape: dict[str, Any] = {
            "top_k": min(spec.reduction.max_tokens, vocab_size),
            "vocab_size": vocab_size,
            "store": spec.store,
            "num_draws": spec.reduction.draws if isinstance(spec.reduction, SampledSpec) else None,
        }
        estimator = spec.estimator
        posterior = estimator if isinstance(estimator, PosteriorEstimatorSpec | LogprobsEstimatorSpec) else None
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

    def finish(self, settings: dict[str, Any]) -> None:
        """Write the weights and the description."""
        estimator, reduction = (one.model_dump(mode="json") for one in (self._spec.estimator, self._spec.reduction))
        made = {"estimator": estimator, "reduction": reduction, "temperature": self._spec.temperature}
        described = {**settings, **made}
        self._main.finish(
            self._weights.weigh,
            lambda: {**described, **self._statistics.facts(), "statistics": self._weights.facts()},
        )
        if self._prior is not None:
            self._prior.finish(lambda logprobs, lengths: np.ones(len(lengths)), lambda: described)

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

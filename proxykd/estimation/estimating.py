"""The step between the aligned proxy and the student: teacher's texts + proxy -> a store of sparse targets.

At every position t of the teacher's text y an estimator (``estimators``) says what the teacher's distribution given
x and y_<t probably was, a reduction (``sparse_targets``) keeps a few tokens of it, and the writer stores them. The
proxy's log-likelihood of y becomes the sample's weight (``weights``). Texts that cannot teach are counted in
``targets.json``; a distribution that is none stops the run.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.artifacts import (
    MANIFEST,
    CompletionSet,
    ProxyModel,
    SplitSet,
    Targets,
    TargetsPortion,
    ValidatedSet,
    link_file,
    read_json,
    seal,
    write_json,
)
from proxykd.config import RunSpec
from proxykd.config.estimation import LogprobsEstimatorSpec, ProxyEstimatorSpec
from proxykd.data.portions import Portion
from proxykd.data.splits import corpus_identity, select_rows, sides_for
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.estimation.counted_prior import CountedPrior
from proxykd.estimation.estimators import Estimator, Proxy, batches_of, build_estimator
from proxykd.estimation.evidence import ApiEvidence
from proxykd.estimation.store_files import StoreWriter, Sums, finish_store
from proxykd.estimation.unseen_text import fit_to_unseen
from proxykd.exceptions import ArtifactError, GateError
from proxykd.models.loading import load_to_ask
from proxykd.models.tokenizers import tokenizer_fingerprint
from proxykd.progress import stage
from proxykd.records import Side, hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


PORTION = "portion.json"


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
    sums = _estimate(completions, validated, splits, proxy, run, None, output=output, scratch=scratch)
    return _finish([sums], completions, validated, splits, proxy, run, output=output, scratch=scratch)


def estimate_portion(
    completions: CompletionSet | None,
    validated: ValidatedSet,
    splits: SplitSet,
    proxy: ProxyModel,
    run: RunSpec,
    portion: Portion,
    *,
    output: Path,
    scratch: Path,
) -> TargetsPortion:
    """The same for one portion of the prompts, for ``join_portions``; what is counted or fitted is so over all texts.

    Args:
        completions: As for ``estimate_distributions``, and so the others.
        validated: All rows.
        splits: Side of each prompt.
        proxy: The aligned proxy.
        run: As there.
        portion: Which prompts.
        output: Folder of the new artifact.
        scratch: Folder for temporary files.

    Raises:
        ModelError, ArtifactError: as there.
    """
    sums = _estimate(completions, validated, splits, proxy, run, portion, output=output, scratch=scratch)
    write_json(output / PORTION, sums)
    found = TargetsPortion(output)
    seal(found, _made_from(completions, validated, splits, proxy, run))
    return found


def join_portions(
    portions: Sequence[TargetsPortion],
    completions: CompletionSet | None,
    validated: ValidatedSet,
    splits: SplitSet,
    proxy: ProxyModel,
    run: RunSpec,
    *,
    output: Path,
    scratch: Path,
) -> Targets:
    """Make one store of what was estimated for every portion; reads the heads of its blocks, no position.

    Args:
        portions: All of them, in the order of their numbers.
        completions: As for ``estimate_distributions``, and so the others.
        validated: All rows.
        splits: Side of each prompt.
        proxy: The aligned proxy.
        run: As there.
        output: Folder of the new artifact.
        scratch: Folder for temporary files.

    Raises:
        GateError: if no row may teach.
        ArtifactError: if a portion was made from something else.
    """
    made_from = _made_from(completions, validated, splits, proxy, run)
    for one in portions:
        if one.manifest["made_from"] != made_from:
            raise ArtifactError(f"expected targets of this run's texts and proxy in {one.path}, found others; run anew")
        _link_files(one.path, output)
    sums = [read_json(one.path / PORTION) for one in portions]
    return _finish(sums, completions, validated, splits, proxy, run, output=output, scratch=scratch)


def _estimate(
    completions: CompletionSet | None,
    validated: ValidatedSet,
    splits: SplitSet,
    proxy: ProxyModel,
    run: RunSpec,
    portion: Portion | None,
    *,
    output: Path,
    scratch: Path,
) -> dict[str, Any]:
    """Write the files of one worker; returns what they add up to (``store_files.Sums``)."""
    model, tokenizer = load_to_ask(proxy.path / "model", precision=run.proxy.model.precision)
    model.eval()
    rows = select_rows(validated, splits, sides_for("distillation", run.split))
    if portion is not None:
        rows = (row for row in rows if portion.has(row.split_key))
    limit = run.proxy.model.max_seq_tokens
    corpus = TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=limit, path=scratch / "distillation.arrow")
    vocab_size = min(len(tokenizer), model.get_output_embeddings().weight.shape[0])
    asked = Proxy(model, vocab_size, tokenizer.pad_token_id, run.proxy.model.precision)
    sources = _Sources(run, validated, splits, completions, tokenizer, corpus, portion is None, asked, scratch)
    estimator = sources.build()
    settings = {
        "proxy": proxy.hash,
        "corpus": corpus_identity(validated, splits),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "precision": run.proxy.model.precision,
        "max_seq_tokens": limit,
    }
    counts = {"num_cut": corpus.num_cut, "num_skipped": corpus.num_skipped, "num_empty": corpus.num_empty}
    worker = 0 if portion is None else portion.number
    writer = StoreWriter(run.targets, run.seed, vocab_size=vocab_size, output=output, scratch=scratch, worker=worker)
    with stage("estimate distributions", total=len(corpus), unit="text") as progress:
        for batch in batches_of(corpus, asked):
            writer.add(batch, estimator(batch))
            progress.advance(len(batch.examples))
    # A student with another tokenizer needs the proxy's to lay the positions on its own.
    tokenizer.save_pretrained(output / "tokenizer")
    told = {name: sums() for name, sums in sources.sums.items()}
    return {"settings": settings, "counts": counts, "sources": told, "num_texts": len(corpus), **writer.close()}


def _finish(
    portions: Sequence[Sums],
    completions: CompletionSet | None,
    validated: ValidatedSet,
    splits: SplitSet,
    proxy: ProxyModel,
    run: RunSpec,
    *,
    output: Path,
    scratch: Path,
) -> Targets:
    if not any(one["num_texts"] for one in portions):
        num_empty, num_skipped = (sum(one["counts"][name] for one in portions) for name in ("num_empty", "num_skipped"))
        raise GateError(
            f"expected rows on the distillation side, found none, {num_empty} with an empty completion, and "
            f"{num_skipped - num_empty} whose prompt leaves no room within proxy.model.max_seq_tokens="
            f"{run.proxy.model.max_seq_tokens}; raise it or split.distillation, or add prompts"
        )
    finish_store(output, portions, run.targets, scratch=scratch)
    targets = Targets(output)
    seal(targets, _made_from(completions, validated, splits, proxy, run))
    return targets


def _made_from(
    completions: CompletionSet | None, validated: ValidatedSet, splits: SplitSet, proxy: ProxyModel, run: RunSpec
) -> dict[str, str]:
    section = hash_json(run.targets.model_dump(mode="json"))
    made_from = {"validated": validated.hash, "splits": splits.hash, "proxy": proxy.hash, "targets": section}
    return made_from if completions is None else {**made_from, "completions": completions.hash}


def _link_files(folder: Path, output: Path) -> None:
    """The files of a portion under the new folder too: by a hard link, or a copy on another disk."""
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        target = output / name
        if name.as_posix() in (PORTION, MANIFEST) or target.exists():  # the tokenizer and equal tables
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        link_file(file, target)


@dataclass(frozen=True, slots=True)
class _Sources:
    """What the estimators learn from beside the proxy."""

    run: RunSpec
    validated: ValidatedSet
    splits: SplitSet
    completions: CompletionSet | None
    tokenizer: "PreTrainedTokenizerBase"
    corpus: TokenizedCorpus
    is_whole: bool
    proxy: Proxy
    scratch: Path
    sums: dict[str, Callable[[], dict[str, Any]]] = field(default_factory=dict)

    def build(self) -> Estimator:
        """The estimator; ``sums`` then tell of its sources."""
        spec = self.run.targets.estimator
        prior = evidence = fitted = None
        if not isinstance(spec, ProxyEstimatorSpec):
            # Where something is fitted, the written token is added by what was fitted.
            counted = spec.prior.model_copy(update={"gamma": "fitted"}) if spec.is_fitted else spec.prior
            prior = CountedPrior.build(self._teacher_texts(), counted, folder=self.scratch / "counts")
            self.sums["prior"] = prior.sums
            if spec.is_fitted:
                fitted = fit_to_unseen(spec, prior.counts, self._unseen_texts(), self.proxy)
                self.sums["fitted"] = fitted.facts
        if isinstance(spec, LogprobsEstimatorSpec) and self.completions is not None:
            evidence = ApiEvidence.build(
                self.completions, self.corpus, self.tokenizer, path=self.scratch / "evidence.arrow"
            )
            self.sums["evidence"] = evidence.sums
        return build_estimator(spec, seed=self.run.seed, prior=prior, evidence=evidence, fitted=fitted)

    def _teacher_texts(self) -> TokenizedCorpus:
        """All that the teacher wrote on the training sides: what is counted, whoever learns from it."""
        sides = sides_for("sft", self.run.split)
        if self.is_whole and sides == sides_for("distillation", self.run.split):
            return self.corpus
        return self._tokenized(sides, "counted.arrow")

    def _unseen_texts(self) -> TokenizedCorpus:
        """What neither the counts nor the proxy has seen, and the evaluation does not ask about."""
        return self._tokenized({Side.DEVELOPMENT}, "development.arrow")

    def _tokenized(self, sides: Collection[Side], name: str) -> TokenizedCorpus:
        rows = select_rows(self.validated, self.splits, sides)
        limit = self.run.proxy.model.max_seq_tokens
        return TokenizedCorpus.build(rows, self.tokenizer, max_seq_tokens=limit, path=self.scratch / name)

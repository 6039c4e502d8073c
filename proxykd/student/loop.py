"""One training run: a model, its examples, perhaps their targets, so many steps.

A batch of texts of unlike length, or one whose scores would not fit, is worked off in micro-batches; the loss is
divided by the token count of the whole batch, so that the step is the same. Both arms run through this loop; they
differ in their examples and targets alone.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from proxykd.config.models import StudentSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.exceptions import ArtifactError
from proxykd.models.forward import collate, completion_hidden, completion_labels
from proxykd.models.heads import apply_head, factored_logits, is_factored
from proxykd.models.loading import autocast
from proxykd.progress import Progress, stage
from proxykd.student.objective import TargetBatch, collate_targets, student_objective
from proxykd.student.optimizer import build_optimizer, learning_rate_factor
from proxykd.student.order import micro_batches, staged_batches
from proxykd.targets.reader import SparseTarget, TargetReader

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Completion tokens of one micro-batch. Their scores are never in memory together.
_MICRO_BATCH_TOKENS = 2**14

# Scores of one micro-batch where the head can only be called as a module: 256 MiB in float32, whatever the vocabulary.
_MICRO_BATCH_SCORES = 2**26
_TERMS = ("loss", "nll", "kl", "divergence", "prior_divergence")


@dataclass(frozen=True, slots=True)
class TrainingData:
    """What a student learns from.

    Attributes:
        corpus: Texts; those of an earlier stage are all learnt from before any of a later one.
        targets: Their distributions; None = hard labels only.
        pad_id: Any token id.
        prior: The prior's own distributions of the same texts; None = no such term.
    """

    corpus: TokenizedCorpus
    targets: TargetReader | None
    pad_id: int
    prior: TargetReader | None = None

    def targets_of(self, indices: list[int], device: torch.device) -> TargetBatch | None:
        """The targets of some examples, cut to their completions; None = hard labels only.

        Raises:
            ArtifactError: if an example has no target, or one that is shorter than its completion.
        """
        return self._collate(indices, self.targets, device)

    def prior_of(self, indices: list[int], device: torch.device) -> TargetBatch | None:
        """The same from the prior's store; None = no such term.

        Raises:
            ArtifactError: if an example has no target, or one that is shorter than its completion.
        """
        return self._collate(indices, self.prior, device)

    def _collate(self, indices: list[int], reader: TargetReader | None, device: torch.device) -> TargetBatch | None:
        if reader is None:
            return None
        targets, temperature = [self._target_of(index, reader) for index in indices], temperature_of(reader)
        return collate_targets(targets, device=device, temperature=temperature)

    def _target_of(self, index: int, targets: TargetReader) -> SparseTarget:
        example = self.corpus[index]
        target, length = targets.get(example.prompt_id, example.sample_idx), len(example.completion_ids)
        if len(target.tail_logprob) < length:
            raise ArtifactError(
                f"expected targets at {length} positions of prompt {example.prompt_id}, found "
                f"{len(target.tail_logprob)}; proxy and student must render and cut texts alike"
            )
        return target.cut(length)


def temperature_of(reader: TargetReader) -> float:
    """What the targets of a store were tempered with; 1 where it does not say."""
    return float(reader.description.get("temperature", 1.0))


class TrainingRun(NamedTuple):
    """How a run went.

    Attributes:
        curve: One mapping a step: step (from 1), what ``train_step`` returns, lr.
        seconds: Wall time of the steps.
        num_tokens: Prompt and completion tokens trained on, padding left out.
    """

    curve: list[dict[str, float]]
    seconds: float
    num_tokens: int


def train(
    model: "PreTrainedModel", data: TrainingData, spec: StudentSpec, *, alpha: float, learning_rate: float, seed: int
) -> TrainingRun:
    """Train ``model`` in place for ``spec.steps`` steps.

    Args:
        model: On its device, adapters attached if any.
        data: Examples and targets.
        spec: Steps, optimiser and precision.
        alpha: Weight of the weighted divergence.
        learning_rate: Peak learning rate.
        seed: Decides the order of the examples and the dropout; the global generator is left as it was.
    """
    optimizer = build_optimizer(model, spec.optimizer, learning_rate=learning_rate)
    batches = staged_batches(data.corpus.stages, num_steps=spec.steps, batch_size=spec.optimizer.batch_size, seed=seed)
    curve: list[dict[str, float]] = []
    start, num_tokens = time.perf_counter(), 0
    model.train()
    description = f"train student (seed {seed}, lr {learning_rate:g})"
    with torch.random.fork_rng(), stage(description, total=spec.steps, unit="step") as progress:
        torch.manual_seed(seed)
        for step, batch in enumerate(batches):
            rate = learning_rate * learning_rate_factor(step, num_steps=spec.steps, spec=spec.optimizer)
            means = train_step(model, optimizer, data, batch, spec, alpha=alpha, learning_rate=rate)
            curve.append({"step": step + 1, **means, "lr": rate})
            num_tokens += int(data.corpus.lengths[batch].sum())
            _report(progress, means)
    return TrainingRun(curve, time.perf_counter() - start, num_tokens)


def train_step(
    model: "PreTrainedModel",
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    batch: list[int],
    spec: StudentSpec,
    *,
    alpha: float,
    learning_rate: float,
) -> dict[str, float]:
    """One optimiser step on some examples.

    Returns:
        ``loss``, ``nll`` and ``kl``, means over the batch's completion tokens, before the step; ``divergence`` where
        it is another than the forward KL, ``prior_divergence`` where the prior is learnt from. All but the loss
        without weights, in nats.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    optimizer.zero_grad(set_to_none=True)
    lengths, completions = data.corpus.lengths, data.corpus.completion_lengths
    num_tokens = int(completions[batch].sum())
    totals = torch.zeros(len(_TERMS), device=model.device)
    vocab_size = model.config.get_text_config().vocab_size
    bound = _MICRO_BATCH_TOKENS if is_factored(model) else _MICRO_BATCH_SCORES // vocab_size
    for part in micro_batches(batch, lengths, completions, max_completion_tokens=bound):
        totals += _backward(model, data, part, spec, alpha=alpha, num_tokens=num_tokens)
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    torch.nn.utils.clip_grad_norm_(trainable, spec.optimizer.max_grad_norm)
    optimizer.step()
    means = dict(zip(_TERMS, (totals / num_tokens).tolist(), strict=True))
    return {name: means[name] for name in _recorded(data, spec, alpha)}


def _recorded(data: TrainingData, spec: StudentSpec, alpha: float) -> Iterator[str]:
    yield from ("loss", "nll", "kl")
    if data.targets is not None and alpha > 0.0 and spec.objective.divergence.kind != "forward_kl":
        yield "divergence"
    if data.prior is not None and spec.objective.prior_alpha > 0.0:
        yield "prior_divergence"


def _backward(
    model: "PreTrainedModel", data: TrainingData, part: list[int], spec: StudentSpec, *, alpha: float, num_tokens: int
) -> torch.Tensor:
    batch = collate([data.corpus[index] for index in part], pad_id=data.pad_id).to(model.device)
    targets = data.targets_of(part, model.device) if alpha > 0.0 else None
    prior = data.prior_of(part, model.device) if spec.objective.prior_alpha > 0.0 else None
    labels = completion_labels(batch)
    settings: dict[str, Any] = {"alpha": alpha, "prior": prior, "objective": spec.objective, "scale": 1.0 / num_tokens}
    with autocast(spec.model.precision):
        hidden = completion_hidden(model, batch)
        scores = factored_logits(model, hidden) if is_factored(model) else apply_head(model, hidden)
        totals = student_objective(scores, labels, targets, **settings)
    (totals.loss / num_tokens).backward()  # type: ignore[no-untyped-call]
    return torch.stack([getattr(totals, name).detach() for name in _TERMS])


def _report(progress: Progress, means: Mapping[str, Any]) -> None:
    progress.advance(1, loss=means["loss"], nll=means["nll"], kl=means["kl"])

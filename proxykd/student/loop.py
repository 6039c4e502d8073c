"""One training run: a model, its examples, perhaps their targets, so many steps.

A batch of texts of unlike length, or one whose scores would not fit, is worked off in micro-batches, and under
``torchrun`` by several processes; the loss is divided by the token count of the whole batch, so that the step is the
same. Where parts of a text have weights (trajectories), the sum of the weights takes the token count's place.
Both arms run through this loop; they differ in their examples and targets alone.
"""

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch

from proxykd.config.models import StudentSpec
from proxykd.launching.interruption import noting_stops
from proxykd.launching.stepped import note_step
from proxykd.models.forward import Batch, collate, collate_packed
from proxykd.models.loading import save_activation_memory
from proxykd.models.sharding import shard, sync_gradients, total
from proxykd.progress import Progress, stage
from proxykd.student.checkpoints import Checkpoints, Reached
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import TrainingRun
from proxykd.student.living import LivingModule
from proxykd.student.module import TERMS, StudentModule, check_packing
from proxykd.student.optimizer import build_optimizer, learning_rate_factor
from proxykd.student.order import micro_batches, pack_rows, share_out, staged_batches
from proxykd.world import current_world

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def train(
    model: "PreTrainedModel",
    data: TrainingData,
    spec: StudentSpec,
    *,
    alpha: float,
    learning_rate: float,
    seed: int,
    checkpoints: Checkpoints | None = None,
) -> TrainingRun:
    """Train ``model`` in place for ``spec.steps`` steps, or until its loss is no number any more.

    Args:
        model: On its device, adapters attached if any. Where several processes train, its parameters are sharded.
        data: Examples and targets.
        spec: Steps, optimiser, precision and how a batch is worked off.
        alpha: Weight of the weighted divergence.
        learning_rate: Peak learning rate.
        seed: Decides the order of the examples and the dropout; the global generator is left as it was.
        checkpoints: What the run goes on from, and where it is saved now and then; None = nowhere.

    Raises:
        ModelError: if texts are to be packed and the model would let them see each other.
        InterruptedTrainingError: if one of the processes was asked to stop (SIGTERM), after a checkpoint; a process
            that has no other plan for the signal ends by it.
    """
    module, optimizer = _prepare(model, data, spec, alpha=alpha, learning_rate=learning_rate, seed=seed)
    curve, num_tokens, seconds = (checkpoints and checkpoints.load(module, optimizer)) or Reached([], 0, 0.0)
    batches = staged_batches(data.corpus.stages, num_steps=spec.steps, batch_size=spec.optimizer.batch_size, seed=seed)
    start = time.perf_counter() - seconds
    description = f"train student (seed {seed}, lr {learning_rate:g})"
    stopping = noting_stops() if checkpoints else nullcontext()
    with stopping, torch.random.fork_rng(), stage(description, total=spec.steps, unit="step") as progress:
        progress.advance(len(curve))
        for step, batch in islice(enumerate(batches), len(curve), None):
            if curve and not math.isfinite(curve[-1]["loss"]):
                break  # no step brings the weights back
            rate = learning_rate * learning_rate_factor(step, num_steps=spec.steps, spec=spec.optimizer)
            _seed_step(seed, step)
            means = train_step(module, optimizer, data, batch, spec, learning_rate=rate)
            note_step()
            curve.append({"step": step + 1, **means, "lr": rate})
            num_tokens += int(data.corpus.lengths[batch].sum())
            _report(progress, means)
            if checkpoints and step + 1 < spec.steps:
                checkpoints.save_if_due(module, optimizer, Reached(curve, num_tokens, time.perf_counter() - start))
    run = TrainingRun(curve, time.perf_counter() - start, num_tokens)
    has_more_runs = len(spec.seeds) > 1 or len(spec.learning_rates) > 1
    if checkpoints and (has_more_runs or checkpoints.path.is_file()):
        checkpoints.save(module, None, Reached(curve, num_tokens, run.seconds))
    return run


def _prepare(
    model: "PreTrainedModel", data: TrainingData, spec: StudentSpec, *, alpha: float, learning_rate: float, seed: int
) -> tuple[StudentModule | LivingModule, torch.optim.Optimizer]:
    if spec.packing:
        check_packing(model)
    if spec.gradient_checkpointing:
        save_activation_memory(model)
    if data.living is not None and alpha > 0.0:
        living = LivingModule(model, data.living, spec, alpha=alpha, seed=seed).train()
        return living, living.build_optimizer(learning_rate=learning_rate)
    module = StudentModule(model, spec, alpha=alpha, unshared=data.unshared)
    shard(module, module.layers)
    return module.train(), build_optimizer(module, spec.optimizer, learning_rate=learning_rate)


def _seed_step(seed: int, step: int) -> None:
    """A generator for each step of each process, so that a run that goes on draws what it would have drawn."""
    world = current_world()
    torch.manual_seed((seed * 1_000_003 + step) * world.size + world.rank)


def train_step(
    module: StudentModule | LivingModule,
    optimizer: torch.optim.Optimizer,
    data: TrainingData,
    batch: list[int],
    spec: StudentSpec,
    *,
    learning_rate: float,
) -> dict[str, float]:
    """One optimiser step on some examples.

    Returns:
        ``loss`` and ``nll``, means over the batch's completion tokens, before the step; ``kl`` where targets are
        learnt from, ``divergence`` where it is another than the forward KL, ``prior_divergence`` where the prior is
        learnt from. Divergences are without their weights. All in nats. With a living teacher, what
        ``LivingModule.accumulate`` returns.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group.get("lr_factor", 1.0)
    optimizer.zero_grad(set_to_none=True)
    if isinstance(module, LivingModule):
        means = module.accumulate([data.corpus[index] for index in batch])
    else:
        means = _accumulate(module, data, batch, spec)
    # Each model on its own: a living proxy's adapters, if any, leave the student's step as long as it is.
    for part in module.models:
        trainable = [parameter for parameter in part.parameters() if parameter.requires_grad]
        torch.nn.utils.clip_grad_norm_(trainable, spec.optimizer.max_grad_norm)
    optimizer.step()
    return means


def _accumulate(module: StudentModule, data: TrainingData, batch: list[int], spec: StudentSpec) -> dict[str, float]:
    """Leave the gradients of a batch at the weights; the means that are reported of it."""
    num_tokens = float(data.corpus.weight_sums[batch].sum())
    parts = _own_parts(module, data, batch, spec)
    totals = torch.zeros(len(TERMS), device=module.device)
    for number, part in enumerate(parts, start=1):
        sync_gradients(module, is_last=number == len(parts))
        totals += _backward(module, data, part, spec, num_tokens=num_tokens, stand_in=batch[0])
    means = dict(zip(TERMS, (total(totals) / num_tokens).tolist(), strict=True))
    return {name: means[name] for name in _recorded(module, data)}


def _recorded(module: StudentModule, data: TrainingData) -> Iterator[str]:
    yield from ("loss", "nll")
    if data.targets is not None and module.alpha > 0.0:
        yield "kl"
        if module.objective.divergence.kind != "forward_kl":
            yield "divergence"
    if data.prior is not None and module.objective.prior_alpha > 0.0:
        yield "prior_divergence"


def _own_parts(module: StudentModule, data: TrainingData, batch: list[int], spec: StudentSpec) -> list[list[int]]:
    """The micro-batches of this process; as many as every other process has, the last of them perhaps empty."""
    lengths, completions = data.corpus.lengths, data.corpus.completion_lengths
    bound, world = module.micro_batch_tokens, current_world()
    shares = [
        micro_batches(
            share,
            lengths,
            completions,
            max_completion_tokens=bound,
            shortest_share=0.0 if spec.packing else 0.5,
        )
        for share in share_out(batch, lengths, world.size)
    ]
    own = shares[world.rank]
    return own + [[]] * (max(map(len, shares)) - len(own))


def _backward(
    module: StudentModule, data: TrainingData, part: list[int], spec: StudentSpec, *, num_tokens: float, stand_in: int
) -> torch.Tensor:
    """Gradients of a micro-batch; an empty one, which others wait for, is an example that counts nothing."""
    examples = part or [stand_in]
    batch, order = _collate(data, examples, is_packed=spec.packing)
    targets = data.targets_of(order, module.device) if module.alpha > 0.0 else None
    prior = data.prior_of(order, module.device) if module.objective.prior_alpha > 0.0 else None
    # The processes' gradients are averaged; what is wanted is their sum.
    scale = current_world().size * bool(part) / num_tokens
    totals = module(batch.to(module.device), targets, prior, scale=scale or 1.0)
    (totals.loss * scale).backward()
    return torch.stack([getattr(totals, name).detach() for name in TERMS]) * bool(part)


def _collate(data: TrainingData, part: list[int], *, is_packed: bool) -> tuple[Batch, list[int]]:
    """The batch, and its examples in the order in which it has their tokens."""
    corpus = data.corpus
    if not is_packed:
        return collate([corpus[index] for index in part], pad_id=data.pad_id), part
    rows = pack_rows(part, corpus.lengths, row_tokens=int(corpus.lengths[part].max()))
    batch = collate_packed([[corpus[index] for index in row] for row in rows], pad_id=data.pad_id)
    return batch, [index for row in rows for index in row]


def _report(progress: Progress, means: Mapping[str, Any]) -> None:
    progress.advance(1, **{name: means[name] for name in ("loss", "nll", "kl") if name in means})

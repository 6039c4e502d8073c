"""One training run, from the model as it was to a folder with the student."""

import math
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from proxykd.config.models import StudentSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.models.forward import score_corpus
from proxykd.models.loading import default_device, load_trainable, save_model
from proxykd.models.sharding import gathered
from proxykd.progress import track
from proxykd.student.checkpoints import Checkpoints
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import Job, Trained
from proxykd.student.loop import train
from proxykd.world import current_world

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def train_student(
    job: Job, spec: StudentSpec, data: TrainingData, tokenizer: "PreTrainedTokenizerBase", folder: Path
) -> Trained:
    """Train, look at what came of it, and write it; of several processes the first one looks and writes.

    Args:
        job: Seed, learning rate, weight of the divergence, checkpoint, and texts to score the student on.
        spec: The job's section, parsed.
        data: The job's texts and targets, opened.
        tokenizer: The student's.
        folder: For weights and tokenizer; created.

    Raises:
        ModelError: if the model cannot be loaded.
        StorageError: if it cannot be written.
        InterruptedTrainingError: if one of the processes was asked to stop.
    """
    model = load_trainable(spec.model, seed=job.seed)
    checkpoints = None if job.checkpoint is None else Checkpoints(Path(job.checkpoint), spec.checkpoint_s)
    run = train(
        model,
        data,
        spec,
        alpha=job.alpha,
        learning_rate=job.learning_rate,
        seed=job.seed,
        checkpoints=checkpoints,
    )
    build = partial(load_trainable, spec.model, seed=job.seed, device=torch.device("cpu"))
    whole = model if current_world().size == 1 else gathered(model, build)
    if whole is None:
        return Trained(run)
    nll = math.nan
    if job.development is not None:
        texts = TokenizedCorpus.open(Path(job.development))
        nll = _mean_nll(whole.to(default_device()), texts, tokenizer, spec.model.precision)
    is_finite = _is_finite(whole)
    save_model(whole, tokenizer, folder)
    return Trained(run, is_finite, nll)


def _mean_nll(
    model: "PreTrainedModel", corpus: TokenizedCorpus, tokenizer: "PreTrainedTokenizerBase", precision: str
) -> float:
    """Nats a token over all completions; inf for a model that has diverged."""
    scores = score_corpus(model, corpus, pad_id=tokenizer.pad_token_id, precision=precision)
    total = sum(float(score.logprobs.sum(dtype="float64")) for score in track(scores, "score", total=len(corpus)))
    nll = -total / int(corpus.completion_lengths.sum())
    return nll if math.isfinite(nll) else math.inf


def _is_finite(model: "PreTrainedModel") -> bool:
    return all(bool(value.isfinite().all()) for value in model.parameters())

"""A process of a training run that several share: ``torchrun ... -m proxykd.student.worker JOB``."""

import sys
from pathlib import Path
from typing import Any

import torch

from proxykd.config.models import StudentSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.launching.worker import run_worker
from proxykd.models.loading import load_tokenizer, load_trainable, save_model
from proxykd.models.sharding import gathered
from proxykd.student.checkpoints import Checkpoints
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import MODEL, Job
from proxykd.student.loop import train


def _work(told: dict[str, Any]) -> dict[str, Any]:
    job = Job(**told)
    spec, output = StudentSpec.model_validate(job.student), Path(job.output)
    tokenizer = load_tokenizer(spec.model)
    targets = None if job.targets is None else Path(job.targets)
    corpus = TokenizedCorpus.open(Path(job.corpus))
    data = TrainingData.open(corpus, targets, tokenizer, spec, rows=None, scratch=output)
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
    plain = gathered(model, lambda: load_trainable(spec.model, seed=job.seed, device=torch.device("cpu")))
    if plain is not None:
        save_model(plain, tokenizer, output / MODEL)
    return run._asdict()


if __name__ == "__main__":
    sys.exit(run_worker(_work, Path(sys.argv[1])))

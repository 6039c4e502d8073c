"""A process of a training run that several share: ``torchrun ... -m proxykd.student.worker JOB``."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.config.models import StudentSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.launching.worker import run_worker
from proxykd.launching.world import current_world
from proxykd.models.loading import load_student, load_tokenizer, save_model
from proxykd.student.checkpoints import Checkpoints
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import MODEL, Job
from proxykd.student.loop import train
from proxykd.student.sharding import whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def _work(told: dict[str, Any]) -> dict[str, Any]:
    job = Job(**told)
    spec, output = StudentSpec.model_validate(job.student), Path(job.output)
    tokenizer = load_tokenizer(spec.model)
    targets = None if job.targets is None else Path(job.targets)
    corpus = TokenizedCorpus.open(Path(job.corpus))
    data = TrainingData.open(corpus, targets, tokenizer, spec, rows=None, scratch=output)
    model = load_student(spec, seed=job.seed)
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
    plain = _gather(model, spec, seed=job.seed)
    if current_world().rank == 0:
        save_model(plain, tokenizer, output / MODEL)
    return run._asdict()


def _gather(model: "PreTrainedModel", spec: StudentSpec, *, seed: int) -> "PreTrainedModel":
    """A model of whole weights with what the shards learnt, on the CPU."""
    learnt = {name: whole(value.detach()) for name, value in model.named_parameters() if value.requires_grad}
    plain = load_student(spec, seed=seed).cpu()
    plain.load_state_dict(learnt, strict=False)
    return plain


if __name__ == "__main__":
    sys.exit(run_worker(_work, Path(sys.argv[1])))

"""A process of a training run that several share: ``torchrun ... -m proxykd.student.worker JOB``."""

import json
import os
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist

from proxykd.config.models import StudentSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.exceptions import ProxykdError
from proxykd.models.loading import load_student, load_tokenizer, save_model
from proxykd.progress import hush_engines
from proxykd.student.checkpoints import Checkpoints
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import ERROR, MODEL, RESULT, Job
from proxykd.student.loop import train
from proxykd.student.sharding import current_world, whole

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def main(path: Path) -> int:
    """Take part in a job; the first process writes what came of it.

    Args:
        path: The job's file.

    Returns:
        Exit status.
    """
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    hush_engines()
    job = Job.read(path)
    try:
        _join()
        _work(job)
    except ProxykdError as error:
        told = {"kind": type(error).__name__, "message": str(error)}
        (Path(job.output) / ERROR).write_text(json.dumps(told), encoding="utf-8")
        return error.exit_status
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0


def _end_with_the_parent() -> None:
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


def _join() -> None:
    if torch.accelerator.is_available():
        torch.accelerator.set_device_index(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group()
    if current_world().rank > 0:
        os.environ["PROXYKD_PROGRESS"] = "off"  # one of them speaks for all


def _work(job: Job) -> None:
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
        (output / RESULT).write_text(json.dumps(run._asdict()), encoding="utf-8")


def _gather(model: "PreTrainedModel", spec: StudentSpec, *, seed: int) -> "PreTrainedModel":
    """A model of whole weights with what the shards learnt, on the CPU."""
    learnt = {name: whole(value.detach()) for name, value in model.named_parameters() if value.requires_grad}
    plain = load_student(spec, seed=seed).cpu()
    plain.load_state_dict(learnt, strict=False)
    return plain


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))

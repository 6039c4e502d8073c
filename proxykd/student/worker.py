"""A process of a training run that several share: ``torchrun ... -m proxykd.student.worker JOB``."""

import sys
from pathlib import Path
from typing import Any

from proxykd.config.models import StudentSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.launching.worker import run_worker
from proxykd.models.tokenizers import load_tokenizer
from proxykd.student.inputs import TrainingData
from proxykd.student.launch import MODEL, Job
from proxykd.student.one_run import train_student


def take_part(told: dict[str, Any]) -> dict[str, Any]:
    """This process's part of the training; gives what goes into ``result.json``."""
    job = Job(**told)
    spec, output = StudentSpec.model_validate(job.student), Path(job.output)
    tokenizer = load_tokenizer(spec.model)
    targets = None if job.targets is None else Path(job.targets)
    corpus = TokenizedCorpus.open(Path(job.corpus))
    data = TrainingData.open(corpus, targets, tokenizer, spec, rows=None, scratch=output)
    return train_student(job, spec, data, tokenizer, output / MODEL).told()


if __name__ == "__main__":
    sys.exit(run_worker(take_part, Path(sys.argv[1])))

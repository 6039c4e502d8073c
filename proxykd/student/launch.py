"""One training run in several processes: starts them with ``torchrun`` and brings back what they made.

What they need travels as one JSON file of plain values and paths; what they made comes back as files.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from proxykd import exceptions
from proxykd.exceptions import ModelError, ProxykdError

_STOP_S = 20.0
RESULT, ERROR, MODEL = "result.json", "error.json", "model"


@dataclass(frozen=True, slots=True)
class Job:
    """A training run, told to the processes that share it.

    Attributes:
        student: The specification's section, in JSON types.
        alpha: Weight of the weighted divergence.
        learning_rate: Peak learning rate.
        seed: Decides the order of the examples and the dropout.
        corpus: File of the tokenised texts.
        targets: Folder of the targets; None = hard labels only.
        checkpoint: File of the run's checkpoint; None = it has none.
        output: Folder for ``model/`` and ``result.json``.
    """

    student: Mapping[str, Any]
    alpha: float
    learning_rate: float
    seed: int
    corpus: str
    targets: str | None
    checkpoint: str | None
    output: str

    def write(self, path: Path) -> None:
        """As JSON."""
        path.write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> "Job":
        """What ``write`` wrote."""
        return cls(**json.loads(path.read_text(encoding="utf-8")))


def launch(job: Job, *, processes: int) -> dict[str, Any]:
    """Run a job in ``processes`` processes of this machine and wait for them.

    Args:
        job: Its ``output`` is created.
        processes: How many, one an accelerator where there are any.

    Returns:
        Content of ``result.json``.

    Raises:
        ProxykdError: the one that a process raised.
        ModelError: if the processes ended without saying why.
    """
    output = Path(job.output)
    output.mkdir(parents=True, exist_ok=True)
    job.write(output / "job.json")
    for left in (RESULT, ERROR):
        (output / left).unlink(missing_ok=True)
    status = _run(output / "job.json", processes)
    if (output / ERROR).is_file():
        raise _error(json.loads((output / ERROR).read_text(encoding="utf-8")))
    if status or not (output / RESULT).is_file():
        raise ModelError(
            f"the {processes} processes of a training run ended with status {status} (-9: killed, perhaps for "
            "memory); what they printed stands above; lower student.processes or student.optimizer.batch_size"
        )
    result: dict[str, Any] = json.loads((output / RESULT).read_text(encoding="utf-8"))
    return result


def _run(job: Path, processes: int) -> int:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, torch.get_num_threads() // processes))
    # A session of its own: Ctrl-C reaches this process alone, which then stops the others in order. Should it be
    # killed, they see their standard input close.
    with subprocess.Popen(
        [*command, "-m", "proxykd.student.worker", str(job)],
        stdin=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": threads},
        start_new_session=True,
    ) as torchrun:
        try:
            return torchrun.wait()
        except BaseException:
            _stop(torchrun)
            raise


def _stop(torchrun: "subprocess.Popen[bytes]") -> None:
    torchrun.terminate()
    try:
        torchrun.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        os.killpg(torchrun.pid, signal.SIGKILL)


def _error(told: Mapping[str, str]) -> ProxykdError:
    kind = getattr(exceptions, told["kind"], ProxykdError)
    error: ProxykdError = kind(told["message"])
    return error

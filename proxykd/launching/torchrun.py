"""Several processes of this machine, started and watched by ``torchrun``."""

import os
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from proxykd.launching.work import Work, finish, write_job

T = TypeVar("T")
_STOP_S, LONGEST_STOP_S = 20, 3600
"""Seconds that processes have for a checkpoint when they are told to stop; the second in a pod, whose grace period ends
them before that. torchrun's own default is 30 seconds."""


@dataclass(frozen=True, slots=True)
class Torchrun:
    """Starts them, waits for them, and stops them with itself.

    Attributes:
        processes: How many, one an accelerator where there are any.
    """

    processes: int

    def launch(self, work: Work[T]) -> T:
        """Do it in a folder that is removed at the end."""
        with tempfile.TemporaryDirectory(dir=work.folder) as folder:
            output = Path(folder)
            status = self._run(work.module, write_job(work, output))
            ended = (
                f"its {self.processes} processes ended with status {status} (-9: killed, perhaps for memory); what "
                "they printed stands above"
            )
            return finish(work, output, ended)

    def _run(self, module: str, job: Path) -> int:
        stop_s = LONGEST_STOP_S if "KUBERNETES_SERVICE_HOST" in os.environ else _STOP_S
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self.processes}"]
        # A session of its own: Ctrl-C reaches this process alone, which then stops the others in order. Should it be
        # killed, they see their standard input close.
        with subprocess.Popen(
            [*command, f"--shutdown-timeout={stop_s}", "-m", module, str(job)],
            stdin=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": self._threads()},
            start_new_session=True,
        ) as torchrun:
            try:
                return torchrun.wait()
            except BaseException:
                _stop(torchrun, patience_s=stop_s + 1.0)
                raise

    def _threads(self) -> str:
        """Of each process, so that together they have this process's."""
        if told := os.environ.get("OMP_NUM_THREADS"):
            return told
        import torch

        return str(max(1, torch.get_num_threads() // self.processes))


def _stop(torchrun: "subprocess.Popen[bytes]", *, patience_s: float) -> None:
    torchrun.terminate()
    try:
        torchrun.wait(patience_s)
    except subprocess.TimeoutExpired:
        os.killpg(torchrun.pid, signal.SIGKILL)

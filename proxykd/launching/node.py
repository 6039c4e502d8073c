"""The first process of a pod that takes part in work: ``python -m proxykd.launching.node MODULE JOB``.

It is ``torchrun``, told the rest by the environment that Kubeflow Trainer sets (``PET_NNODES``, ``PET_NODE_RANK``,
``PET_MASTER_ADDR``, ...), with exit statuses by which a Job's failure policy can tell work that is wrong from work
that another node's loss, or its own, cut short.

    0   done
    3   a process told an error that another try would not mend
    75  asked to stop, or another node was lost after a step was done: to be started again, from the last checkpoint, at
        no cost
    1   anything else: to be tried again so often
"""

import os
import signal
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

from proxykd.launching.stepped import STEPPED_VARIABLE, has_stepped
from proxykd.launching.torchrun import LONGEST_STOP_S
from proxykd.launching.worker import LOST, TOLD


def main(arguments: list[str]) -> int:
    """Run this node's processes.

    Args:
        arguments: Module and job's file.

    Returns:
        Exit status.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import parse_args, run

    # The processes end when their standard input does: when this one does, as it alone holds the other end.
    os.dup2(os.pipe()[0], sys.stdin.fileno())
    with tempfile.TemporaryDirectory() as folder:
        os.environ[STEPPED_VARIABLE] = str(Path(folder) / "stepped")
        try:
            run(parse_args([f"--shutdown-timeout={LONGEST_STOP_S}", "-m", *arguments]))  # type: ignore[no-untyped-call]
        except ChildFailedError as error:
            return exit_status(failure.exitcode for failure in error.failures.values())
        except SignalException:
            return LOST
    return 0


def exit_status(of_processes: Iterable[int], environ: Mapping[str, str] = os.environ) -> int:
    """What the pod says of its processes that failed.

    Those that torchrun stopped because another one failed say nothing of their own. NCCL's watchdog aborts a process
    whose peers on other nodes are silent for too long. A peer that is lost on a single node, or before the first step,
    is a fault that may well be there at every try, and each of them has its GPUs: such tries are counted.

    Args:
        of_processes: Their exit statuses; negative = ended by that signal.
        environ: ``PET_NNODES`` says whether there are other nodes, ``STEPPED_VARIABLE`` whether a step was done.
    """
    statuses = set(of_processes) - {-signal.SIGTERM}
    if TOLD in statuses:
        return TOLD
    is_of_others = environ.get("PET_NNODES", "1") != "1" and statuses <= {LOST, -signal.SIGABRT}
    return LOST if not statuses or (is_of_others and has_stepped(environ)) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

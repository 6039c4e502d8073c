"""A process of an alignment that several share: ``torchrun ... -m proxykd.proxy.worker JOB``."""

import shutil
import sys
from pathlib import Path
from typing import Any

from proxykd.artifacts import SplitSet, ValidatedSet
from proxykd.config import RunSpec
from proxykd.launching.worker import run_worker
from proxykd.proxy.alignment import align_here
from proxykd.proxy.launch import ALIGNED
from proxykd.world import current_world


def take_part(told: dict[str, Any]) -> dict[str, Any]:
    """This process's part of the alignment; gives what goes into ``result.json``."""
    output = Path(told["output"])
    scratch = output / f"scratch-{current_world().rank}"
    shutil.rmtree(scratch, ignore_errors=True)  # of the process whose place this one takes
    scratch.mkdir()
    checkpoint = told["checkpoint"]
    align_here(
        ValidatedSet(Path(told["validated"])),
        SplitSet(Path(told["splits"])),
        RunSpec.view(told["run"]),
        output=output / ALIGNED,
        scratch=scratch,
        checkpoint=None if checkpoint is None else Path(checkpoint),
    )
    return {}


if __name__ == "__main__":
    sys.exit(run_worker(take_part, Path(sys.argv[1])))

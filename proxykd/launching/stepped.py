"""Whether this pod's processes have done a step of the training since they were started.

The loss of a peer before the first step may be a fault of the network that every other try would meet again; after it,
the group has worked.
"""

import os
from collections.abc import Mapping
from pathlib import Path

STEPPED_VARIABLE = "PROXYKD_STEPPED"
"""Names the file that says so; not set where no pod asks."""


def note_step() -> None:
    """A step is done, by all processes of the training."""
    if name := os.environ.pop(STEPPED_VARIABLE, ""):
        Path(name).touch()


def has_stepped(environ: Mapping[str, str]) -> bool:
    """Whether a process of this pod has noted one."""
    name = environ.get(STEPPED_VARIABLE, "")
    return bool(name) and Path(name).exists()

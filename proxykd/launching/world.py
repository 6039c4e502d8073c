"""How many processes share the work, and which of them this is."""

from typing import NamedTuple

import torch.distributed as dist


class World(NamedTuple):
    """Who works.

    Attributes:
        rank: This process, 0 .. size - 1.
        size: Processes in all.
    """

    rank: int
    size: int


def current_world() -> World:
    """The process group's, or one process alone."""
    return World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World(0, 1)

"""How many processes share the work, which of them this is, and how they put together what each did."""

import json
from typing import Any, NamedTuple

import torch
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


def own_share(count: int) -> range:
    """Which of ``count`` things this process does: every one of them is some process's."""
    world = current_world()
    return range(world.rank, count, world.size)


def exchange(own: Any) -> list[Any]:
    """What every process has, by rank; all must ask.

    Args:
        own: In JSON types; floats come through as they are.
    """
    if current_world().size == 1:
        return [own]
    device = _device()
    told = torch.frombuffer(bytearray(json.dumps(own).encode()), dtype=torch.uint8).to(device)
    sizes = [torch.zeros(1, dtype=torch.int64, device=device) for _ in range(current_world().size)]
    dist.all_gather(sizes, torch.tensor([len(told)], device=device))
    longest = max(int(size) for size in sizes)
    heard = [torch.zeros(longest, dtype=torch.uint8, device=device) for _ in sizes]
    dist.all_gather(heard, torch.nn.functional.pad(told, (0, longest - len(told))))
    return [json.loads(bytes(words[: int(size)].tolist())) for words, size in zip(heard, sizes, strict=True)]


def put_together(own: list[Any], count: int) -> list[Any]:
    """The values of ``count`` things in order, of which this process has those of ``own_share``."""
    whole: list[Any] = [None] * count
    for rank, values in enumerate(exchange(own)):
        whole[rank :: current_world().size] = values
    return whole


def _device() -> torch.device:
    """Where the processes exchange tensors: NCCL knows accelerators only."""
    accelerator = torch.accelerator.current_accelerator() if dist.get_backend() != "gloo" else None
    return accelerator or torch.device("cpu")

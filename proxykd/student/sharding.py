"""One training run in several processes: FSDP's shards, and what the processes tell each other.

Under ``torchrun`` every process holds a part of each weight, of its gradient and of its moments (ZeRO-3; here
torch's ``fully_shard``), and works off its own examples of each batch. A run in one process takes the same code paths
with a world of one, in which nothing is sharded and nothing is sent.

References:
    Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, arXiv:2304.11277.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from proxykd.launching.world import current_world


def shard(module: torch.nn.Module, layers: "list[torch.nn.Module]") -> None:
    """Shard a module's parameters over all processes, if there are several.

    Each layer is gathered on its own, all other parameters together.

    Args:
        module: What is called in each step; every other use of its parameters must lie inside that call.
        layers: Its decoder layers.
    """
    if current_world().size == 1:
        return
    for layer in layers:
        fully_shard(layer)
    fully_shard(module)


def sync_gradients(module: torch.nn.Module, *, is_last: bool) -> None:
    """Whether the next backward pass exchanges gradients: once a step, after its last micro-batch."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(is_last)


def total(values: Tensor) -> Tensor:
    """The sum over all processes, on each of them."""
    if current_world().size > 1:
        dist.all_reduce(values)
    return values


def whole(value: Tensor) -> Tensor:
    """All of a tensor, on the CPU; each process must ask."""
    return (value.full_tensor() if isinstance(value, DTensor) else value).cpu()


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """This process's part of a whole tensor, as ``parameter`` is cut up."""
    value = value.to(parameter.device)
    if not isinstance(parameter, DTensor):
        return value
    return distribute_tensor(value, parameter.device_mesh, parameter.placements)

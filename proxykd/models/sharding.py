"""One model in several processes: FSDP's shards, and what the processes tell each other.

Under ``torchrun`` every process holds a part of each weight, of its gradient and of its moments (ZeRO-3; here
torch's ``fully_shard``), and works off its own examples of each batch. A run in one process takes the same code paths
with a world of one, in which nothing is sharded and nothing is sent.

A pass through a sharded model gathers each layer from all processes, so that all must make as many passes, in the same
order. Trainers see to that by themselves; whoever samples or scores says ``in_step``.

References:
    Zhao et al., PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, arXiv:2304.11277.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from proxykd.exceptions import ModelError
from proxykd.models.heads import decoder_layers, plain_model
from proxykd.models.loading import autocast, default_device, is_lowered
from proxykd.world import current_world

if TYPE_CHECKING:
    from transformers import PreTrainedModel

T = TypeVar("T")
_PASSES_NOTED = 4096


def shard(module: torch.nn.Module, layers: "list[torch.nn.Module]", mesh: DeviceMesh | None = None) -> None:
    """Shard a module's parameters over all processes, if there are several.

    Each layer is gathered on its own, all other parameters together.

    Args:
        module: What is called in each step; every other use of its parameters must lie inside that call.
        layers: Its decoder layers.
        mesh: Over which processes; None = all.
    """
    if current_world().size == 1:
        return
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(module, mesh=mesh)


def machines_mesh() -> DeviceMesh:
    """The processes of each machine for shards, and the machines for copies of them (hybrid sharding).

    The links inside a machine are faster than those between machines. Machines with one process each share the weights
    out among all. All processes must ask.
    """
    world, (_, num_own) = current_world().size, _own_turn()
    dims = {"copies": world // num_own, "shards": num_own} if 1 < num_own < world else {"shards": world}
    return init_device_mesh(default_device().type, tuple(dims.values()), mesh_dim_names=tuple(dims))


def shard_model(model: "PreTrainedModel", mesh: DeviceMesh) -> None:
    """Shard a language model that Hugging Face's trainers and ``within`` call, adapters included; in ``in_turns``.

    It may stand in the host's memory: one layer after another comes onto the process's device, and a part stays.

    Args:
        model: The same in every process, its adapters attached.
        mesh: From ``machines_mesh``.

    Raises:
        ModelError: if its layers cannot be told.
    """
    plain, layers = plain_model(model), decoder_layers(model)
    if not layers:
        raise ModelError(
            f"expected a model whose layers are a list to share out, got the type {plain.config.model_type}; leave "
            "proxy.fsdp out"
        )
    plain.apply_within = lambda function, *arguments: function(*arguments)
    shard(plain, layers, mesh)
    register_fsdp_forward_method(plain, "apply_within")
    # What transformers' trainers ask: whether somebody else places the weights and reduces their gradients.
    plain._is_distributed_loading_by_transformers = True


def is_sharded(model: "PreTrainedModel") -> bool:
    """Whether each process has a part of the model alone."""
    return isinstance(plain_model(model), FSDPModule)


def within(model: "PreTrainedModel", function: Callable[..., T], *arguments: Any) -> T:
    """Call a function of some parts of a model, as one pass through the model itself; inside ``in_step``.

    A sharded model has the weights that belong to no layer in one piece only while it is called.

    Args:
        model: Sharded or not.
        function: Takes ``arguments``; calls the decoder or the head, not the model as a whole.
        arguments: Tensors, the model, whatever it takes.
    """
    if not is_sharded(model):
        return function(*arguments)
    _announce(model)
    found: T = plain_model(model).apply_within(function, *arguments)
    _count_pass(plain_model(model))
    return found


def call(model: "PreTrainedModel", **inputs: Any) -> Any:
    """Call a model as a whole, which makes one pass through it; inside ``in_step``."""
    if not is_sharded(model):
        return plain_model(model)(**inputs)
    _announce(model)
    found = plain_model(model)(**inputs)
    _count_pass(plain_model(model))
    return found


def _announce(model: "PreTrainedModel") -> None:
    """Tell those who have no more passes to make that there is one."""
    total(torch.ones(1, device=model.device))


def _count_pass(plain: Any) -> None:
    """Now and then forget the passes: FSDP notes each of a layer for a backward pass that may never come.

    It also puts what stayed gathered in parts again, so that all processes must do it after the same pass.
    """
    plain.num_passes = getattr(plain, "num_passes", 0) + 1
    if plain.num_passes % _PASSES_NOTED == 0:
        plain.reset_iter_state()


@contextmanager
def in_step(model: "PreTrainedModel") -> Iterator[None]:
    """Inside, each process may make as many passes as it likes (``within``, ``call``), and at the end waits for all.

    One that has done takes part in the others' passes with a token that counts nothing. With an error inside, the
    process ends: the others learn of it by whoever watches them.

    Args:
        model: Sharded, or not: then nothing is waited for.
    """
    yield
    if not is_sharded(model):
        return
    plain: Any = plain_model(model)
    stand_in = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    # Frozen layers that are held in bfloat16 know no other arithmetic.
    with torch.no_grad(), autocast("bfloat16" if is_lowered(model) else "float32"):
        while float(total(torch.zeros(1, device=model.device))) > 0.0:
            plain(input_ids=stand_in, use_cache=False)
            _count_pass(plain)
    plain.reset_iter_state()


def gathered(model: "PreTrainedModel", build: "Callable[[], PreTrainedModel]") -> "PreTrainedModel | None":
    """A model of whole weights with what was trained of a sharded one; every process must ask.

    Args:
        model: Sharded or not.
        build: Makes the model as it was before the training, in the host's memory.

    Returns:
        The model, in the first process; None in the others.
    """
    learnt = trained_tensors(model)
    if current_world().rank > 0:
        return None
    plain = build()
    plain.load_state_dict(learnt, strict=False)
    return plain


def trainable(module: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """What is trained of a module, by name."""
    return ((name, value) for name, value in module.named_parameters() if value.requires_grad)


def trained_tensors(model: torch.nn.Module) -> dict[str, Tensor]:
    """What is trained of a model, whole and on the CPU, by name; the first process has it, and every one must ask."""
    tensors = ((name, whole(value.detach()).contiguous()) for name, value in trainable(model))
    is_first = current_world().rank == 0
    return {name: value for name, value in tensors if is_first}  # gathered by all, one after another


def in_turns(work: Callable[[], T]) -> T:
    """What ``work`` returns, done by one process of each machine at a time: the host's memory is shared."""
    if current_world().size == 1:
        return work()
    own, num_own = _own_turn()
    for turn in range(num_own):
        if turn == own:
            done = work()
        dist.barrier()
    return done


def _own_turn() -> tuple[int, int]:
    """Which process of its machine this is, and how many there are, as ``torchrun`` says."""
    return int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


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

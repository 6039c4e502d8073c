"""Each process's part of every batch, so that several processes take the step that one would take.

TRL's own dealing fills the last batch up with examples from the beginning, and its DPO loss averages tokens within each
process; both change the step. Here a batch is the same examples however many processes share it, one that has none of
them works on a stand-in that counts nothing, and each process's means are scaled to what they are of the whole.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from proxykd.world import current_world


class OwnShares(Sampler[list[int]]):
    """The indices of each batch that are this process's.

    Args:
        num_examples: Examples, in order.
        batch_size: Examples of a batch, of all processes together.
    """

    def __init__(self, num_examples: int, batch_size: int) -> None:
        self._num_examples, self._batch_size = num_examples, batch_size

    def __len__(self) -> int:
        return -(-self._num_examples // self._batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        # The example behind the last one is the stand-in.
        yield from (list(self.own(step)) or [self._num_examples] for step in range(len(self)))

    def own(self, step: int) -> range:
        """This process's part of a batch; empty where there are fewer examples than processes."""
        world, start = current_world(), step * self._batch_size
        return range(start + world.rank, min(start + self._batch_size, self._num_examples), world.size)

    def size(self, step: int) -> int:
        """Examples of a batch, of all processes together."""
        return min(self._batch_size, self._num_examples - step * self._batch_size)


def shared_loader(dataset: Any, shares: OwnShares, collate: Any) -> "DataLoader[Any]":
    """This process's parts of all batches."""
    return DataLoader(dataset, batch_sampler=shares, collate_fn=collate)


def pair_scales(inputs: Mapping[str, Tensor], shares: OwnShares, step: int) -> tuple[float, float]:
    """What to multiply this process's means over pairs and over the chosen texts' tokens by.

    The processes' gradients are averaged afterwards, so that with these factors they add up to those of the means over
    the whole batch.

    Args:
        inputs: What TRL collated: ``completion_mask`` [2 * pairs, seq], chosen before rejected.
        shares: Of this training.
        step: From 0.
    """
    own, size = len(shares.own(step)), current_world().size
    mask = inputs["completion_mask"][:, 1:]
    tokens = mask.chunk(2, dim=0)[0].sum().double() * (own > 0)
    total = tokens.clone()
    dist.all_reduce(total)
    return own * size / shares.size(step), float(tokens * size / torch.clamp(total, min=1.0))

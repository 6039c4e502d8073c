"""What a killed training run goes on from: weights, AdamW's moments, and how far it was, in one file.

It is always a whole file (``proxykd.models.tensor_files``). It needs no random state: the order of the examples follows
from the seed, and dropout is seeded anew for each step. Values are those of whole tensors, however many processes
shared them, so that a run may go on with another number of processes.
"""

import json
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from torch import Tensor

from proxykd.launching.interruption import InterruptedTrainingError, is_stop_asked
from proxykd.models.sharding import like, total, trainable, whole
from proxykd.models.tensor_files import open_tensors, save_tensors
from proxykd.progress import report
from proxykd.world import current_world

FORMAT = "training-1"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")


class Reached(NamedTuple):
    """How far a run is.

    Attributes:
        curve: As ``TrainingRun.curve``, one mapping for each step that is done.
        num_tokens: Trained on so far.
        seconds: Wall time of these steps.
    """

    curve: list[dict[str, float]]
    num_tokens: int
    seconds: float


@dataclass
class Checkpoints:
    """The checkpoint of one run.

    Attributes:
        path: The file; its folder is created.
        every_s: Seconds between two of them; 0 = after every step.
    """

    path: Path
    every_s: float
    _saved_at: float = field(default_factory=time.monotonic)

    def save_if_due(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer, reached: Reached) -> None:
        """``save`` where the last one is old enough, which the first process decides, or where any was asked to stop.

        Raises:
            InterruptedTrainingError: in all processes, if any of them was asked to stop.
        """
        is_due = current_world().rank == 0 and time.monotonic() - self._saved_at >= self.every_s
        asked = torch.tensor([float(is_due), float(is_stop_asked())], device=_device_of(module))
        any_due, any_stop = total(asked).tolist()
        if any_due or any_stop:
            self.save(module, optimizer, reached)
        if any_stop:
            raise InterruptedTrainingError(f"asked to stop after step {len(reached.curve)}, which is saved")

    def save(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer | None, reached: Reached) -> None:
        """Write one; called by all processes, written by the first.

        Args:
            module: What is trained.
            optimizer: Its AdamW; None = the run is finished, and nothing but its weights is needed.
            reached: How far it is.
        """
        is_first = current_world().rank == 0
        tensors = {name: value for name, value in _tensors(module, optimizer) if is_first}
        if is_first:
            self._write(tensors, reached)
        self._saved_at = time.monotonic()

    def _write(self, tensors: dict[str, Tensor], reached: Reached) -> None:
        save_tensors(tensors, self.path, {"format": FORMAT, "reached": json.dumps(reached._asdict())})

    def load(self, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Reached | None:
        """Put a run where its checkpoint was; None = there is none that can be used, and nothing was changed."""
        if not self.path.is_file():
            return None
        try:
            with open_tensors(self.path) as file:
                return _restore(file, module, optimizer)
        except (OSError, SafetensorError, ValueError) as error:
            report(f"the checkpoint {self.path} cannot be used ({error}); training begins anew")
            return None


def _device_of(module: torch.nn.Module) -> torch.device:
    return next(module.parameters()).device


def _tensors(module: torch.nn.Module, optimizer: torch.optim.Optimizer | None) -> Iterator[tuple[str, Tensor]]:
    for name, parameter in trainable(module):
        yield f"weight/{name}", whole(parameter.detach())
        state = optimizer.state.get(parameter, {}) if optimizer else {}
        yield from ((f"{moment}/{name}", whole(state[moment])) for moment in _MOMENTS if moment in state)


def _restore(file: Any, module: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Reached:
    metadata, names = file.metadata() or {}, set(file.keys())
    wanted = {f"weight/{name}": value.shape for name, value in trainable(module)}
    found = {name: torch.Size(file.get_slice(name).get_shape()) for name in names if name.startswith("weight/")}
    if metadata.get("format") != FORMAT or found != wanted:
        raise ValueError("it is of another model or another release")
    with torch.no_grad():
        for name, parameter in trainable(module):
            parameter.copy_(like(parameter, file.get_tensor(f"weight/{name}")))
            if moments := {moment: f"{moment}/{name}" for moment in _MOMENTS if f"{moment}/{name}" in names}:
                optimizer.state[parameter] = {
                    moment: _moment(parameter, moment, file.get_tensor(key)) for moment, key in moments.items()
                }
    return Reached(**json.loads(metadata["reached"]))


def _moment(parameter: Tensor, moment: str, value: Tensor) -> Tensor:
    return value.to(parameter.device) if moment == "step" else like(parameter, value)

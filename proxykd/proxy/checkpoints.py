"""What an alignment that was cut short goes on from: the trained weights after its last finished stage.

A stage begins with nothing but the weights, the texts and its seed, so that an alignment that goes on ends with the
weights that it would have had.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from proxykd.models.sharding import like, trainable, trained_tensors
from proxykd.models.tensor_files import open_tensors, save_tensors
from proxykd.progress import report
from proxykd.world import current_world

FORMAT = "alignment-1"


@dataclass(frozen=True, slots=True)
class StageCheckpoint:
    """The file of one alignment.

    Attributes:
        path: Of the file; its folder is created.
    """

    path: Path

    def save(self, model: torch.nn.Module, stages: list[dict[str, Any]]) -> None:
        """Keep the trained weights and what was measured so far; called by all processes, written by the first."""
        tensors = trained_tensors(model)
        if current_world().rank > 0:
            return
        save_tensors(tensors, self.path, {"format": FORMAT, "stages": json.dumps(stages)})

    def load(self, model: torch.nn.Module) -> list[dict[str, Any]]:
        """Put the weights back; returns what was measured, or nothing where there is no checkpoint that can be used."""
        if not self.path.is_file():
            return []
        try:
            with open_tensors(self.path) as file:
                return _restore(file, dict(trainable(model)))
        except (OSError, SafetensorError, ValueError) as error:
            report(f"the checkpoint {self.path} cannot be used ({error}); the alignment begins anew")
            return []


def _restore(file: Any, wanted: dict[str, torch.nn.Parameter]) -> list[dict[str, Any]]:
    """Put weights back one by one, so that no process has the whole file in its memory."""
    metadata = file.metadata() or {}
    names = list(file.keys())
    shapes = {name: torch.Size(file.get_slice(name).get_shape()) for name in names}
    if metadata.get("format") != FORMAT or shapes != {name: value.shape for name, value in wanted.items()}:
        raise ValueError("it is of another model or another release")
    with torch.no_grad():
        for name, value in wanted.items():
            value.copy_(like(value, file.get_tensor(name)))
    stages: list[dict[str, Any]] = json.loads(metadata["stages"])
    return stages

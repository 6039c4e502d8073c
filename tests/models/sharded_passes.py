"""A process that shares a model with others and makes passes of its own: arguments FOLDER MACHINES.

The first process has every text to score and to continue, the others have none.
"""

import json
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from proxykd.config.models import LoraSpec, ModelSpec, OptimizerSpec
from proxykd.models import sharding
from proxykd.models.forward import score_corpus
from proxykd.models.loading import attach_lora, load_tokenizer, lower_frozen
from proxykd.models.sampling import TransformersSampler
from proxykd.models.sharding import gathered, in_turns, machines_mesh, shard_model
from proxykd.proxy.training import train_nll
from tests.models.tiny import PAD, TinyTokenizer, random_examples, tiny_llama

PROMPTS = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8, 9]]
LENGTHS = [(3, 4), (1, 1), (7, 2), (2, 9)]


KINDS = {"plain": "float32", "adapters": "float32", "low": "bfloat16"}
"""Kinds of models, and the precision of each."""


def build(kind: str) -> Any:
    model = tiny_llama()
    if kind == "plain":
        return model
    torch.manual_seed(0)
    model = attach_lora(model, LoraSpec(rank=2))
    lower_frozen(model, KINDS[kind])
    return model


def answers(model: Any, kind: str, *, is_asked: bool = True) -> dict[str, Any]:
    """Scores of texts, one pass each, and completions of prompts."""
    examples = random_examples(LENGTHS) if is_asked else []
    how: dict[str, Any] = {"precision": KINDS[kind], "max_tokens": 1}
    found = {one.example_idx: one.logprobs.tolist() for one in score_corpus(model, examples, pad_id=PAD, **how)}
    sampler = TransformersSampler(model, TinyTokenizer, description=None, **how)  # type: ignore[arg-type]
    prompts = PROMPTS if is_asked else []
    sampled = sampler.sample(prompts, max_new_tokens=6, temperature=0.0, seed=0)
    return {"scores": [found[idx] for idx in sorted(found)], "sampled": sampled}


def train(model: Any, kind: str, scratch: Path) -> None:
    """Two steps on the texts, of three and of one."""
    scratch.mkdir()
    optimizer = OptimizerSpec(learning_rate=1e-2, batch_size=3)
    tokenizer = load_tokenizer(ModelSpec(source="embedded:student"))
    how: dict[str, Any] = {"precision": KINDS[kind], "seed": 0, "scratch": scratch, "description": "train"}
    train_nll(model, tokenizer, random_examples(LENGTHS), optimizer, **how)


def weights(model: Any) -> list[float]:
    """What was trained."""
    trained = (value.detach().flatten() for value in model.parameters() if value.requires_grad)
    return torch.cat(list(trained)).tolist()  # type: ignore[no-any-return]


def load(mesh: DeviceMesh, kind: str, turns: list[float]) -> Any:
    turns.append(time.monotonic())
    model = build(kind)
    shard_model(model, mesh)
    time.sleep(0.05)
    turns.append(time.monotonic())
    return model


def report(kind: str, scratch: Path) -> dict[str, Any]:
    """What this process saw of a model of some kind."""
    turns: list[float] = []
    model = in_turns(partial(load, machines_mesh(), kind, turns))
    num_local = sum(value.to_local().numel() for value in model.parameters())
    is_asked = dist.get_rank() == 0
    told = answers(model, kind, is_asked=is_asked)
    # Twice: whatever was gathered for the passes is in parts again.
    again = answers(model, kind, is_asked=is_asked)
    train(model, kind, scratch)
    whole = gathered(model, partial(build, kind))
    return {
        **told,
        "again": again,
        "turns": turns,
        "share": num_local / sum(value.numel() for value in model.parameters()),
        "trained": None if whole is None else weights(whole),
    }


def main(folder: Path, num_machines: int) -> None:
    if num_machines > 1:  # as torchrun would tell on so many
        num_own = int(os.environ["WORLD_SIZE"]) // num_machines
        os.environ |= {"LOCAL_WORLD_SIZE": str(num_own), "LOCAL_RANK": str(int(os.environ["RANK"]) % num_own)}
    dist.init_process_group()
    # Few enough that it happens in the middle of a text.
    sharding._PASSES_NOTED = 3
    for kind in KINDS:
        name = f"{kind}-{dist.get_rank()}"
        told = report(kind, folder / f"scratch-{name}")
        (folder / f"{name}.json").write_text(json.dumps(told), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

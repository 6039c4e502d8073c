"""A process that shares a model with others and makes passes of its own: ``torchrun ... sharded_passes.py FOLDER``.

The first process has every text to score and to continue, the others have none.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from proxykd.config.models import LoraSpec
from proxykd.models.forward import score_corpus
from proxykd.models.loading import attach_lora
from proxykd.models.sampling import TransformersSampler
from proxykd.models.sharding import gathered, one_after_another, shard_model
from tests.models.tiny import PAD, TinyTokenizer, random_examples, tiny_llama

PROMPTS = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8, 9]]
LENGTHS = [(3, 4), (1, 1), (7, 2), (2, 9)]


def build(*, has_adapters: bool) -> Any:
    model = tiny_llama()
    if not has_adapters:
        return model
    torch.manual_seed(0)
    return attach_lora(model, LoraSpec(rank=2))


def answers(model: Any, *, is_asked: bool = True) -> dict[str, Any]:
    """Scores of texts, one pass each, and completions of prompts."""
    examples = random_examples(LENGTHS) if is_asked else []
    found = {one.example_idx: one.logprobs.tolist() for one in score_corpus(model, examples, pad_id=PAD, max_tokens=1)}
    sampler = TransformersSampler(model, TinyTokenizer, max_tokens=1, description=None)  # type: ignore[arg-type]
    prompts = PROMPTS if is_asked else []
    sampled = sampler.sample(prompts, max_new_tokens=6, temperature=0.0, seed=0)
    return {"scores": [found[idx] for idx in sorted(found)], "sampled": sampled}


def main(folder: Path) -> None:
    dist.init_process_group()
    for has_adapters in (False, True):
        model = one_after_another(lambda is_peft=has_adapters: build(has_adapters=is_peft))
        shard_model(model)
        num_local = sum(value.to_local().numel() for value in model.parameters())
        told = answers(model, is_asked=dist.get_rank() == 0)
        # Twice: whatever was gathered for the passes is in parts again.
        told = {**told, "again": answers(model, is_asked=dist.get_rank() == 0)}
        whole = gathered(model, lambda is_peft=has_adapters: build(has_adapters=is_peft))
        told["share"] = num_local / sum(value.numel() for value in model.parameters())
        told["is_whole"] = whole is not None
        name = f"{'adapters' if has_adapters else 'plain'}-{dist.get_rank()}.json"
        (folder / name).write_text(json.dumps(told), encoding="utf-8")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

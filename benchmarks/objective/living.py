"""What a step costs when the proxy teaches in person, against plain fine-tuning of the same student.

    python benchmarks/objective/living.py                 a vocabulary of 49,152, about two minutes on two cores
    python benchmarks/objective/living.py --vocab-size 151936 --hidden 896 --layers 2

Each kind takes its step on the same batch, in turn so that a slow moment of the machine hits all alike; a step ends
with its gradients (no optimiser). Student and proxy have random weights and one shape, so that a forward pass of the
proxy costs what one of the student does. Printed are medians and their ratio to plain fine-tuning.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import TypeAdapter
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from proxykd.config.living import LivingTeacherSpec
from proxykd.config.models import ModelSpec, StudentSpec
from proxykd.data.tokenizing import Example
from proxykd.models.forward import collate
from proxykd.models.loading import load_tokenizer, save_model
from proxykd.student.living import LivingModule, LivingProxy
from proxykd.student.module import StudentModule

PROMPT_TOKENS = 32
KINDS: dict[str, dict[str, Any]] = {
    "gkd, teacher's texts": {"kind": "gkd", "on_policy": 0.0},
    "okd": {"kind": "okd"},
    "gkd, own texts": {"kind": "gkd", "on_policy": 1.0},
    "minillm": {"kind": "minillm", "teacher_mix": 0.0},
    "minillm, teacher_mix 0.2": {"kind": "minillm"},
}


class Tokenizer:
    """The facts that a step asks of a tokenizer."""

    pad_token_id = eos_token_id = 0

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size

    def __len__(self) -> int:
        return self._vocab_size


def build(arguments: argparse.Namespace, seed: int) -> PreTrainedModel:
    """A model with random weights."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=arguments.vocab_size,
        hidden_size=arguments.hidden,
        intermediate_size=3 * arguments.hidden,
        num_hidden_layers=arguments.layers,
        num_attention_heads=arguments.hidden // 64,
        num_key_value_heads=arguments.hidden // 64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def steps(arguments: argparse.Namespace, folder: Path) -> dict[str, Callable[[], object]]:
    """Name -> one step's gradients."""
    rng = np.random.default_rng(0)
    examples = [
        Example(
            str(index),
            0,
            rng.integers(1, arguments.vocab_size, PROMPT_TOKENS, dtype=np.int32),
            rng.integers(1, arguments.vocab_size, arguments.tokens, dtype=np.int32),
        )
        for index in range(arguments.batch_size)
    ]
    student = build(arguments, 0)
    save_model(build(arguments, 1), load_tokenizer(ModelSpec(source="embedded:proxy")), folder)
    spec = StudentSpec(model=ModelSpec(source="none", max_seq_tokens=PROMPT_TOKENS + arguments.tokens))
    plain = StudentModule(student, spec, alpha=0.0)
    num_tokens = arguments.batch_size * arguments.tokens

    def fine_tune() -> None:
        (plain(collate(examples, pad_id=0), None, scale=1.0 / num_tokens).loss / num_tokens).backward()

    found: dict[str, Callable[[], object]] = {"fine-tuning": fine_tune}
    for name, kind in KINDS.items():
        text = {} if kind["kind"] == "okd" else {"max_new_tokens": arguments.tokens}
        teacher: Any = TypeAdapter(LivingTeacherSpec).validate_python({**kind, **text})
        proxy = LivingProxy(folder, teacher, Tokenizer(arguments.vocab_size))  # type: ignore[arg-type]
        module = LivingModule(student, proxy, spec, alpha=1.0, seed=0).train()
        found[name] = lambda module=module: module.accumulate(examples)
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {
        "vocab-size": 49_152, "hidden": 576, "layers": 2, "batch-size": 4, "tokens": 16, "repeats": 3
    }.items():  # fmt: skip
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        kinds = steps(arguments, folder)
        seconds: dict[str, list[float]] = {kind: [] for kind in kinds}
        for repeat in range(arguments.repeats + 1):
            for kind, step in kinds.items():
                start = time.perf_counter()
                step()
                if repeat:
                    seconds[kind].append(time.perf_counter() - start)
    base = statistics.median(seconds["fine-tuning"])
    print(f"{'step':26} {'seconds':>8} {'ratio':>6}")
    for name, values in seconds.items():
        print(f"{name:26} {statistics.median(values):8.3f} {statistics.median(values) / base:6.2f}")


if __name__ == "__main__":
    main()

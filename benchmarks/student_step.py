"""Tokens a second of the Proxy-KD student's step against plain fine-tuning of the same model.

    python benchmarks/student_step.py            both models, under 90 s on two cores
    python benchmarks/student_step.py --threads 1 --repeats 7

Three steps of the same model on the same batch, taken in turn so that a slow moment of the machine hits all alike:

    proxy-kd      this library's step: NLL + alpha * weighted KL over 10 tokens and a tail, one normaliser
    nll           this library's step with hard labels only
    transformers  the model's own loss (``model(input_ids, labels=...)``), the usual way to fine-tune

Each ends with clipping and AdamW. Printed are medians, and the ratio of each turn's proxy-kd speed to the other's as
median [lowest .. highest].
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from proxykd.data.tokenizing import Example
from proxykd.models.forward import collate, completion_labels, completion_logits
from proxykd.models.loading import autocast
from proxykd.student.objective import TargetBatch, student_objective

TOP_K = 10
TARGET_RATIO = 0.8


class Case(NamedTuple):
    """A model and the batch that it learns from."""

    name: str
    shape: dict[str, int]
    precision: str
    batch_size: int
    prompt_tokens: int
    completion_tokens: int


CASES = (
    Case(
        "embedded student, vocabulary 465, float32",
        {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 320}
        | {"vocab_size": 465},
        "float32",
        16,
        40,
        80,
    ),
    Case(
        "6 layers of SmolLM2-135M, vocabulary 49,152, bfloat16",
        {"hidden_size": 576, "num_hidden_layers": 6, "num_attention_heads": 9, "num_key_value_heads": 3}
        | {"intermediate_size": 1536, "vocab_size": 49152},
        "bfloat16",
        4,
        64,
        128,
    ),
)


def main() -> None:
    """Run every case and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--repeats", type=int, default=5, help="timed turns of each step")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="threads of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    print(f"torch {torch.__version__}, {arguments.threads} threads, {arguments.repeats} turns")
    for case in CASES:
        _print_case(case, _measure(case, arguments.repeats))


def _measure(case: Case, repeats: int) -> dict[str, list[float]]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**case.shape, tie_word_embeddings=True))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    losses = _losses(model, case)
    seconds: dict[str, list[float]] = {name: [] for name in losses}
    for turn in range(repeats + 1):
        for name, loss in losses.items():
            elapsed = _timed_step(model, optimizer, loss)
            if turn > 0:
                seconds[name].append(elapsed)
    return seconds


def _losses(model: Any, case: Case) -> dict[str, Callable[[], torch.Tensor]]:
    rng = np.random.default_rng(0)
    vocab_size, num_tokens = case.shape["vocab_size"], case.batch_size * case.completion_tokens
    examples = [
        Example("", 0, *(rng.integers(0, vocab_size, n).astype(np.int32) for n in case[4:6]))
        for _ in range(case.batch_size)
    ]
    batch = collate(examples, pad_id=0)
    ids = torch.from_numpy(np.stack([rng.permutation(vocab_size)[:TOP_K] for _ in range(num_tokens)]))
    probs = torch.from_numpy(rng.dirichlet(np.ones(TOP_K + 1), num_tokens)).float()
    targets = TargetBatch(ids, probs[:, :TOP_K].log(), probs[:, TOP_K].log(), torch.full((num_tokens,), 0.5))

    def own(soft: TargetBatch | None) -> torch.Tensor:
        with autocast(case.precision):
            logits = completion_logits(model, batch)
        totals = student_objective(logits, completion_labels(batch), soft, alpha=1.0)
        return totals.loss / num_tokens

    def plain() -> torch.Tensor:
        labels = batch.input_ids.masked_fill(~batch.loss_mask, -100)
        with autocast(case.precision):
            return model(batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss  # type: ignore[no-any-return]

    return {"proxy-kd": lambda: own(targets), "nll": lambda: own(None), "transformers": plain}


def _timed_step(model: Any, optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> float:
    start = time.perf_counter()
    optimizer.zero_grad(set_to_none=True)
    loss().backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return time.perf_counter() - start


def _print_case(case: Case, seconds: dict[str, list[float]]) -> None:
    tokens = case.batch_size * (case.prompt_tokens + case.completion_tokens)
    print(f"\n{case.name}: {case.batch_size} x ({case.prompt_tokens} + {case.completion_tokens}) tokens a step")
    for name, values in seconds.items():
        line = f"  {name:<13}{tokens / statistics.median(values):>9,.0f} tokens/s"
        if name != "proxy-kd":
            ratios = [other / own for own, other in zip(seconds["proxy-kd"], values, strict=True)]
            middle = statistics.median(ratios)
            verdict = "met" if middle >= TARGET_RATIO else "missed"
            line += f"   proxy-kd / {name} = {middle:.2f} [{min(ratios):.2f} .. {max(ratios):.2f}]"
            line += f", target {TARGET_RATIO} {verdict}"
        print(line)


if __name__ == "__main__":
    main()

"""Tokens a second of the Proxy-KD student's step against plain fine-tuning of the same model.

    python benchmarks/objective/step.py            both models, under 90 s on two cores
    python benchmarks/objective/step.py --threads 1 --repeats 7

Three steps of the same model on the same texts, taken in turn so that a slow moment of the machine hits all alike:

    proxy-kd      ``train_step`` as distillation runs it: reads its batch's targets (10 tokens and a tail at each
                  position) from a store on disk, collates them, NLL + alpha * weighted KL, one normaliser
    nll           ``train_step`` with hard labels only: the other arm of every run
    transformers  the model's own loss (``model(input_ids, labels=...)``), the usual way to fine-tune

Each collates its texts and ends with clipping and AdamW. Printed are medians, and the ratio of
each turn's proxy-kd speed to the other's as median [lowest .. highest]. The target is met when both ratios reach it.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from proxykd.artifacts import Targets, seal
from proxykd.config.models import ModelSpec, OptimizerSpec, StudentSpec
from proxykd.data.tokenizing import Example
from proxykd.models.forward import collate
from proxykd.models.loading import autocast
from proxykd.student.inputs import TrainingData
from proxykd.student.loop import train_step
from proxykd.student.module import StudentModule
from proxykd.targets.codec import Positions
from proxykd.targets.reader import TargetReader
from proxykd.targets.writer import TargetWriter

TOP_K = 10
TARGET_RATIO = 0.9
NUM_BATCHES = 8


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
    parser.add_argument("--cpu", action="store_true", help="CPU time: for one thread on a machine that others use")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    clock = time.process_time if arguments.cpu else time.perf_counter
    turns = f"{arguments.threads} threads, {arguments.repeats} turns, load {os.getloadavg()[0]:.1f}"
    print(f"torch {torch.__version__}, {turns}")
    for case in CASES:
        _print_case(case, _measure(case, arguments.repeats, clock))


def _measure(case: Case, repeats: int, clock: Callable[[], float]) -> dict[str, list[float]]:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(LlamaConfig(**case.shape, tie_word_embeddings=True)).train()
    with tempfile.TemporaryDirectory() as folder:
        steps = _steps(model, _make_data(case, Path(folder)), case)
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        rng = np.random.default_rng(0)
        for turn in range(repeats + 1):
            batch = rng.choice(NUM_BATCHES * case.batch_size, case.batch_size, replace=False).tolist()
            for name, step in steps.items():
                start = clock()
                step(batch)
                if turn > 0:
                    seconds[name].append(clock() - start)
    return seconds


class _Corpus(list[Example]):
    """Texts in memory with the lengths that training asks of a tokenised corpus."""

    @cached_property
    def completion_lengths(self) -> np.ndarray[Any, Any]:
        return np.array([len(example.completion_ids) for example in self], np.int32)

    @cached_property
    def weight_sums(self) -> np.ndarray[Any, Any]:
        return self.completion_lengths.astype(np.float64)

    @cached_property
    def lengths(self) -> np.ndarray[Any, Any]:
        return self.completion_lengths + np.array([len(example.prompt_ids) for example in self], np.int32)


def _make_data(case: Case, folder: Path) -> TrainingData:
    """Random texts, and random targets for them in a store on disk."""
    rng, vocab_size = np.random.default_rng(0), case.shape["vocab_size"]
    texts = _Corpus()
    writer = TargetWriter(folder / "targets", scratch=folder / "scratch", top_k=TOP_K, vocab_size=vocab_size)
    for idx in range(NUM_BATCHES * case.batch_size):
        prompt, completion = (rng.integers(0, vocab_size, n).astype(np.int32) for n in case[4:6])
        texts.append(Example(f"{idx:016x}", 0, prompt, completion))
        ids = np.stack([rng.choice(vocab_size, TOP_K, replace=False) for _ in completion]).astype(np.int32)
        logprobs = np.log(rng.dirichlet(np.ones(TOP_K + 1), len(completion))).astype(np.float32)
        positions = Positions(ids, logprobs[:, :TOP_K], logprobs[:, TOP_K])
        writer.add(f"{idx:016x}", 0, positions, sequence_logprob=-1.0)
    writer.finish(lambda logprobs, lengths: np.full(len(lengths), 0.5), dict)
    seal(Targets(folder / "targets"))
    return TrainingData(texts, TargetReader(folder / "targets"), pad_id=0)  # type: ignore[arg-type]


def _steps(model: Any, data: TrainingData, case: Case) -> dict[str, Callable[[list[int]], object]]:
    spec = StudentSpec(
        model=ModelSpec(source="embedded:student", precision=case.precision),  # type: ignore[arg-type]
        optimizer=OptimizerSpec(batch_size=case.batch_size),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    hard = TrainingData(data.corpus, None, data.pad_id)

    module = StudentModule(model, spec, alpha=1.0)

    def own(some: TrainingData, batch: list[int]) -> object:
        return train_step(module, optimizer, some, batch, spec, learning_rate=1e-4)

    def plain(batch: list[int]) -> object:
        texts = collate([data.corpus[idx] for idx in batch], pad_id=data.pad_id)
        labels = texts.input_ids.masked_fill(~texts.loss_mask, -100)
        optimizer.zero_grad(set_to_none=True)
        with autocast(case.precision):
            loss = model(texts.input_ids, attention_mask=texts.attention_mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), spec.optimizer.max_grad_norm)
        optimizer.step()
        return loss.item()

    return {"proxy-kd": lambda batch: own(data, batch), "nll": lambda batch: own(hard, batch), "transformers": plain}


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

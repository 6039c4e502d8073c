"""The worlds that ``truth`` measures in: a corpus of the embedded teacher's, its proxy, unseen texts, and the truth."""

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from proxykd.artifacts import CompletionSet
from proxykd.config.models import ModelSpec, OptimizerSpec
from proxykd.data.tokenizing import TokenizedCorpus
from proxykd.estimation.estimators import Proxy, TextBatch
from proxykd.models.loading import load_model, load_tokenizer
from proxykd.proxy.training import train_nll
from proxykd.records import Completion, Outcome, ValidatedRow
from proxykd.teacher.problems import generate_prompts, sample_completion
from proxykd.teacher.server import PIECE, logprobs_of
from proxykd.teacher.truth import TeacherTruth

MODEL = ModelSpec(source="embedded:proxy", attention="eager", precision="bfloat16", max_seq_tokens=256)
NUM_TEXTS = 120
TOP_LOGPROBS = 5


class World(NamedTuple):
    """A corpus, its proxy, texts that neither has seen, and the truth about some of the corpus's texts."""

    corpus: TokenizedCorpus
    completions: CompletionSet
    tokenizer: Any
    batch: TextBatch
    proxy: Proxy
    unseen: TokenizedCorpus
    truth: Tensor
    folder: Path


def build_world(size: int, seed: int, steps: int, repeats: int, folder: Path) -> World:
    """Write a corpus, train a proxy on it, ask for the truth about its first texts.

    The development side has a twentieth as many prompts, each with ``repeats`` completions, four at most.
    """
    rng, tokenizer = random.Random(seed), load_tokenizer(MODEL)
    prompts = list(generate_prompts(size + max(1, size // 20), seed))
    prompts, others = prompts[:size], prompts[size:]
    texts = [sample_completion(prompt.messages[-1].content, rng) for prompt in prompts]
    corpus = _tokenized(zip(prompts, texts, strict=True), tokenizer, folder / "corpus.arrow")
    completions = CompletionSet(folder / "completions")
    completions.write(_told(prompt, text) for prompt, text in zip(prompts, texts, strict=True))
    unseen = _tokenized(_answered(others, repeats, random.Random(1000 + seed)), tokenizer, folder / "unseen.arrow")
    proxy = train_proxy(corpus, tokenizer, steps, seed, rng, folder)
    indices = list(range(min(NUM_TEXTS, size)))
    batch = TextBatch(indices, [corpus[idx] for idx in indices], proxy)
    truth = _truth(batch, [prompts[idx].messages[-1].content for idx in indices], tokenizer)
    return World(corpus, completions, tokenizer, batch, proxy, unseen, truth, folder)


def train_proxy(
    corpus: TokenizedCorpus, tokenizer: Any, steps: int, seed: int, rng: random.Random, folder: Path
) -> Proxy:
    """A proxy from random weights, trained for some steps of 16 texts."""
    model = load_model(MODEL, seed=seed)
    optimizer = OptimizerSpec(learning_rate=2e-3, batch_size=16)
    order = [corpus[idx] for idx in _passes(len(corpus), steps * optimizer.batch_size, rng)]
    train_nll(
        model, tokenizer, order, optimizer, precision=MODEL.precision, seed=seed, scratch=folder, description="proxy"
    )
    model.eval()
    return Proxy(model, len(tokenizer), tokenizer.pad_token_id, MODEL.precision)


def _answered(prompts: Sequence[Any], repeats: int, rng: random.Random) -> Iterator[tuple[Any, str]]:
    """Some completions of each prompt, the first ones of four."""
    for prompt in prompts:
        texts = [sample_completion(prompt.messages[-1].content, rng) for _ in range(4)]
        yield from ((prompt, text) for text in texts[:repeats])


def _tokenized(texts: Iterable[tuple[Any, str]], tokenizer: Any, path: Path) -> TokenizedCorpus:
    numbers, rows = Counter[str](), []
    for prompt, text in texts:
        idx = numbers[prompt.prompt_id]
        numbers[prompt.prompt_id] += 1
        rows.append(ValidatedRow(prompt.prompt_id, idx, prompt.messages, text, "", None, Outcome.OK, "keep", ""))
    return TokenizedCorpus.build(rows, tokenizer, max_seq_tokens=256, path=path)


def _passes(num: int, total: int, rng: random.Random) -> Iterator[int]:
    """Indices of shuffled passes over ``num`` examples, ``total`` in all."""
    given = 0
    while given < total:
        order = list(range(num))
        rng.shuffle(order)
        yield from order[: total - given]
        given += min(num, total - given)


def _told(prompt: Any, text: str) -> Completion:
    """A completion with what the teacher's API tells about it."""

    def plain(token: Mapping[str, Any]) -> dict[str, Any]:
        return {"token": token["token"], "bytes": bytes(token["bytes"]), "logprob": token["logprob"]}

    content = logprobs_of(prompt.messages[-1].content, PIECE.findall(text), TOP_LOGPROBS)["content"]
    rows = [{**plain(one), "top": [plain(other) for other in one["top_logprobs"]]} for one in content]
    return Completion(prompt.prompt_id, 0, Outcome.OK, "", text, "stop", 0, 0, 0.0, "", "", logprobs=rows)


def _truth(batch: TextBatch, questions: Sequence[str], tokenizer: Any) -> Tensor:
    """The teacher's own distributions, float64 [n, vocab]."""
    knower, rows = TeacherTruth(tokenizer), []
    for question, example in zip(questions, batch.examples, strict=True):
        for token in knower.next_token_probs(question, example.completion_ids):
            row = torch.zeros(batch.vocab_size, dtype=torch.float64)
            row[torch.from_numpy(token.token_ids).long()] = torch.from_numpy(token.probs)
            rows.append(row)
    return torch.stack(rows)

"""The aligned proxy, teacher-forced on the teacher's text -> the distributions that the student learns from.

At every position t of the teacher's text y the proxy's distribution p(. | x, y_<t) stands in for the black box's
(Proxy-KD, Eq. 8; section A.1 keeps 10 tokens of each). Stored are its top-k tokens, their log-probabilities and the
log of the mass of all others.

Differs from the paper: the k probabilities are not renormalised. Renormalising would teach the student that no other
token is ever possible and would scale up the kept ones; the tail bucket keeps the distribution honest at no cost.

References:
    Chen et al., Knowledge Distillation of Black-Box Large Language Models, arXiv:2401.07013, Eq. (8) and (9), A.1.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from proxykd.artifacts import ProxyModel, SplitSet, Targets, ValidatedSet, seal
from proxykd.config import RunSpec
from proxykd.data.splits import select_rows, sides_for
from proxykd.data.tokenizing import Example, TokenizedCorpus
from proxykd.divergences import bucketed_logprobs
from proxykd.estimation.weights import SampleWeights
from proxykd.exceptions import GateError, ModelError
from proxykd.models.forward import collate, completion_labels, completion_logits, length_batches
from proxykd.models.loading import autocast, load_saved
from proxykd.models.tokenizers import tokenizer_fingerprint
from proxykd.progress import stage
from proxykd.records import hash_json
from proxykd.targets.codec import Positions
from proxykd.targets.writer import TargetWriter

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Scores of one batch: 256 MiB in float32, whatever the vocabulary.
_BATCH_SCORES = 2**26
_MAX_BATCH_TOKENS = 8192


class ProxyTarget(NamedTuple):
    """What the proxy says about one text.

    Attributes:
        example: The text.
        positions: Top-k distributions, one row for each completion token.
        sequence_logprob: Sum of the log-probabilities of the completion's tokens, nats.
    """

    example: Example
    positions: Positions
    sequence_logprob: float


def estimate_distributions(
    validated: ValidatedSet, splits: SplitSet, proxy: ProxyModel, run: RunSpec, *, output: Path, scratch: Path
) -> Targets:
    """Write the targets of every row on the distillation side.

    Args:
        validated: Rows with verdicts.
        splits: Side of each prompt.
        proxy: The aligned proxy.
        run: Its sections ``proxy``, ``split`` and ``targets`` are read.
        output: Folder of the new artifact.
        scratch: Folder for temporary files.

    Raises:
        GateError: if no row may teach.
        ModelError: if the proxy's scores are not finite.
    """
    spec = run.proxy.model
    model, tokenizer = load_saved(proxy.path / "model")
    rows = select_rows(validated, splits, sides_for("distillation", run.split))
    corpus = TokenizedCorpus.build(
        rows, tokenizer, max_seq_tokens=spec.max_seq_tokens, path=scratch / "distillation.arrow"
    )
    if not len(corpus):
        raise GateError("expected rows on the distillation side, found none; raise split.distillation or add prompts")
    vocab_size = min(len(tokenizer), model.get_output_embeddings().weight.shape[0])
    top_k = min(run.targets.top_k, vocab_size)
    writer = TargetWriter(output, scratch=scratch, top_k=top_k, vocab_size=vocab_size)
    settings = {
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "precision": spec.precision,
        "max_seq_tokens": spec.max_seq_tokens,
        "num_cut": corpus.num_cut,
        "num_skipped": corpus.num_skipped,
    }
    stream = proxy_targets(
        model,
        corpus,
        top_k=top_k,
        vocab_size=vocab_size,
        pad_id=tokenizer.pad_token_id,
        precision=spec.precision,
    )
    _write(stream, writer, SampleWeights(run.targets.weighting), settings, num_samples=len(corpus))
    # A student with another tokenizer needs the proxy's to lay the positions on its own.
    tokenizer.save_pretrained(output / "tokenizer")
    targets = Targets(output)
    section = hash_json(run.targets.model_dump(mode="json"))
    seal(targets, {"validated": validated.hash, "splits": splits.hash, "proxy": proxy.hash, "targets": section})
    return targets


def proxy_targets(
    model: "PreTrainedModel", corpus: TokenizedCorpus, *, top_k: int, vocab_size: int, pad_id: int, precision: str
) -> Iterator[ProxyTarget]:
    """The proxy's targets for every example once, in batches of similar length.

    Args:
        model: The proxy; put into evaluation mode.
        corpus: Texts.
        top_k: Tokens kept at each position, <= vocab_size.
        vocab_size: Scores beyond it belong to no token (padding of the head) and are left out.
        pad_id: Any token id.
        precision: Arithmetic, as in ``ModelSpec.precision``; log-probabilities are float32 either way.
    """
    model.eval()
    max_tokens = min(_MAX_BATCH_TOKENS, _BATCH_SCORES // vocab_size)
    for indices in length_batches(corpus.lengths.tolist(), max_tokens=max_tokens):
        examples = [corpus[index] for index in indices]
        batch = collate(examples, pad_id=pad_id).to(model.device)
        with torch.no_grad(), autocast(precision):
            logits = completion_logits(model, batch)[:, :vocab_size]
            buckets = _top_buckets(logits, completion_labels(batch), top_k)
        counts = [len(example.completion_ids) for example in examples]
        for example, parts in zip(
            examples, zip(*(torch.split(part, counts) for part in buckets), strict=True), strict=True
        ):
            ids, logprobs, tail, labels = (part.numpy() for part in parts)
            yield ProxyTarget(example, Positions(ids, logprobs, tail), float(labels.sum(dtype=np.float64)))


def _top_buckets(logits: Tensor, labels: Tensor, top_k: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    token_ids = logits.topk(top_k, dim=-1).indices
    buckets = bucketed_logprobs(logits, token_ids, labels)
    return (token_ids.int().cpu(), *(part.cpu() for part in buckets))  # type: ignore[return-value]


def _write(
    stream: Iterator[ProxyTarget],
    writer: TargetWriter,
    weights: SampleWeights,
    settings: dict[str, Any],
    *,
    num_samples: int,
) -> None:
    tail_sum, num_positions = 0.0, 0
    with stage("estimate distributions", total=num_samples, unit="text") as progress:
        for example, positions, logprob in stream:
            if not math.isfinite(logprob):
                raise ModelError(
                    f"expected finite scores from the proxy, got log-likelihood {logprob} for prompt "
                    f"{example.prompt_id}; its training diverged: lower proxy.*.optimizer.learning_rate"
                )
            weights.observe(np.array([logprob]), np.array([len(example.completion_ids)]))
            writer.add(example.prompt_id, example.sample_idx, positions, sequence_logprob=logprob)
            tail_sum += float(np.exp(positions.tail_logprob, dtype=np.float64).sum())
            num_positions += len(positions.tail_logprob)
            progress.advance()
    tail_mean = tail_sum / max(num_positions, 1)
    writer.finish(weights.weigh, lambda: {**settings, "tail_prob_mean": tail_mean, "statistics": weights.facts()})

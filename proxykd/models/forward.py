"""Teacher-forced passes: examples -> padded batches -> logits and scores at the completion's tokens alone.

The head, the most expensive matrix of a small model with a large vocabulary, is applied only at positions that predict
a completion token. Prompts are context; no score ever includes them.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxykd.exceptions import ShapeError
from proxykd.logprobs import token_logprobs
from proxykd.models.heads import apply_head, plain_model
from proxykd.models.loading import autocast
from proxykd.models.sharding import in_step, within

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from proxykd.data.tokenizing import Example

EVALUATION_BATCH_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Batch:
    """Sequences of prompt + completion, padded on the right: one a row, or several behind each other.

    Attributes:
        input_ids: long [batch, seq].
        attention_mask: long [batch, seq], 1 = attended; None where rows hold several sequences.
        loss_mask: bool [batch, seq], true at the completion's tokens.
        position_ids: long [batch, seq], from 0 in each sequence, which tells models where one begins; None where every
            row holds one.
        weights: Of the completion's tokens in the NLL, float32 [batch, seq]; None = each weighs 1.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    loss_mask: Tensor
    position_ids: Tensor | None = None
    weights: Tensor | None = None

    def to(self, device: torch.device) -> "Batch":
        """The same batch on ``device``."""
        mask, positions, weights = (
            part if part is None else part.to(device) for part in (self.attention_mask, self.position_ids, self.weights)
        )
        return Batch(self.input_ids.to(device), mask, self.loss_mask.to(device), positions, weights)


class ExampleScores(NamedTuple):
    """What a model makes of one example.

    Attributes:
        example_idx: Position of the example in its corpus.
        logprobs: Log-probability of each completion token, float32 [completion], nats.
        is_top1: Whether that token was the model's first choice, bool [completion].
        top1_logprobs: Log-probability of the model's first choice, float32 [completion], nats.
    """

    example_idx: int
    logprobs: NDArray[np.float32]
    is_top1: NDArray[np.bool_]
    top1_logprobs: NDArray[np.float32]


def collate(examples: "Sequence[Example]", *, pad_id: int) -> Batch:
    """Pad examples to the longest of them.

    Raises:
        ShapeError: if there is no example, or one has an empty prompt (nothing could predict its first token).
    """
    if not examples or any(len(example.prompt_ids) == 0 for example in examples):
        raise ShapeError(f"expected examples with a prompt each, got {len(examples)} and an empty prompt among them")
    lengths = [(len(example.prompt_ids), len(example.completion_ids)) for example in examples]
    shape = len(examples), max(prompt + completion for prompt, completion in lengths)
    input_ids = np.full(shape, pad_id, np.int64)
    attention_mask, loss_mask = np.zeros(shape, np.int64), np.zeros(shape, np.bool_)
    for row, (example, (prompt, completion)) in enumerate(zip(examples, lengths, strict=True)):
        input_ids[row, :prompt] = example.prompt_ids
        input_ids[row, prompt : prompt + completion] = example.completion_ids
        attention_mask[row, : prompt + completion] = 1
        loss_mask[row, prompt : prompt + completion] = True
    ids, attended, learnt = (torch.from_numpy(array) for array in (input_ids, attention_mask, loss_mask))
    return Batch(ids, attended, learnt, weights=_weights_at(learnt, examples))


def collate_packed(rows: "Sequence[Sequence[Example]]", *, pad_id: int) -> Batch:
    """Put several examples behind each other in each row.

    Args:
        rows: Examples of each row; ``completion_logits`` has their positions in this order.
        pad_id: Any token id; the padding of a row is a sequence of its own.

    Raises:
        ShapeError: if there is no row, or an example has an empty prompt.
    """
    if not rows or any(len(example.prompt_ids) == 0 for row in rows for example in row):
        raise ShapeError(f"expected rows of examples with a prompt each, got {len(rows)} rows")
    sizes = [[len(example.prompt_ids) + len(example.completion_ids) for example in row] for row in rows]
    shape = len(rows), max(map(sum, sizes))
    input_ids, loss_mask = np.full(shape, pad_id, np.int64), np.zeros(shape, np.bool_)
    position_ids = np.zeros(shape, np.int64)
    for idx, (row, lengths) in enumerate(zip(rows, sizes, strict=True)):
        texts = [ids for example in row for ids in (example.prompt_ids, example.completion_ids)]
        learnt = [np.full(len(ids), which % 2, np.bool_) for which, ids in enumerate(texts)]
        num_tokens = sum(lengths)
        input_ids[idx, :num_tokens], loss_mask[idx, :num_tokens] = np.concatenate(texts), np.concatenate(learnt)
        position_ids[idx] = np.concatenate([np.arange(length) for length in (*lengths, shape[1] - num_tokens)])
    ids, mask, positions = (torch.from_numpy(array) for array in (input_ids, loss_mask, position_ids))
    return Batch(ids, None, mask, positions, _weights_at(mask, [example for row in rows for example in row]))


def _weights_at(mask: Tensor, examples: "Sequence[Example]") -> Tensor | None:
    """Weights of the completions' tokens where the mask has them, row after row; None = no example has any."""
    if all(example.weights is None for example in examples):
        return None
    parts = [
        np.ones(len(example.completion_ids), np.float32) if example.weights is None else example.weights
        for example in examples
    ]
    weights = torch.zeros(mask.shape)
    weights[mask] = torch.from_numpy(np.concatenate(parts))
    return weights


def completion_logits(model: "PreTrainedModel", batch: Batch) -> Tensor:
    """Logits that predict each completion token, row after row.

    Args:
        model: A causal language model, with or without adapters; its own dtype and the caller's autocast decide the
            arithmetic.
        batch: On the model's device.

    Returns:
        Float [num_completion_tokens, vocab], in the order of ``completion_labels``, where the batch is.
    """
    return apply_head(model, completion_hidden(model, batch)).to(batch.input_ids.device)


def completion_hidden(model: "PreTrainedModel", batch: Batch) -> Tensor:
    """Hidden states that predict each completion token, row after row: what ``completion_logits`` applies the head to.

    Returns:
        Float [num_completion_tokens, hidden], in the order of ``completion_labels``.
    """
    decoder = plain_model(model).get_decoder()
    hidden = decoder(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
    ).last_hidden_state
    return hidden[:, :-1][batch.loss_mask[:, 1:].to(hidden.device)]  # type: ignore[no-any-return]


def completion_labels(batch: Batch) -> Tensor:
    """Token ids of all completions, row after row, long [num_completion_tokens]."""
    return batch.input_ids[:, 1:][batch.loss_mask[:, 1:]]


def completion_weights(batch: Batch) -> Tensor | None:
    """Weights in the NLL of the same tokens, float32 [num_completion_tokens]; None = each weighs 1."""
    return None if batch.weights is None else batch.weights[:, 1:][batch.loss_mask[:, 1:]]


def length_batches(lengths: Iterable[int], *, max_tokens: int) -> list[list[int]]:
    """Indices grouped into batches of similar length, longest first.

    Args:
        lengths: Tokens of each sequence.
        max_tokens: Bound on rows * longest row of a batch; a longer sequence gets a batch of its own.

    Returns:
        Each index exactly once.
    """
    sizes = np.asarray(list(lengths))
    batches: list[list[int]] = []
    for index in np.argsort(-sizes, kind="stable").tolist():
        if not batches or (len(batches[-1]) + 1) * sizes[batches[-1][0]] > max_tokens:
            batches.append([])
        batches[-1].append(index)
    return batches


def score_corpus(
    model: "PreTrainedModel",
    corpus: "Sequence[Example]",
    *,
    pad_id: int,
    precision: str = "float32",
    max_tokens: int = EVALUATION_BATCH_TOKENS,
) -> Iterator[ExampleScores]:
    """Score the completion of every example, without gradients and without dropout.

    Args:
        model: Left in evaluation mode while it scores, put back afterwards.
        corpus: Examples; a ``TokenizedCorpus`` is read batch by batch.
        pad_id: Any token id; padding is never attended.
        precision: Arithmetic, as in ``ModelSpec.precision``; scores are float32 either way.
        max_tokens: Bound on rows * longest row of a batch.

    Yields:
        Scores of each example once, in batches of similar length: order them by ``example_idx`` where order matters.
    """
    was_training = model.training
    model.eval()
    try:
        with in_step(model):
            for indices in length_batches(_total_lengths(corpus), max_tokens=max_tokens):
                yield from _score_batch(model, corpus, indices, pad_id, precision)
    finally:
        model.train(was_training)


def _score_batch(
    model: "PreTrainedModel", corpus: "Sequence[Example]", indices: list[int], pad_id: int, precision: str
) -> Iterator[ExampleScores]:
    batch = collate([corpus[index] for index in indices], pad_id=pad_id).to(model.device)
    with torch.no_grad(), autocast(precision):
        logits = within(model, completion_logits, model, batch)
    labels = completion_labels(batch)
    logprobs = token_logprobs(logits, labels)
    highest, first_choice = logits.max(dim=-1)
    # log p(first choice) from log p(label): the two share their normaliser, which is not computed again.
    above_label = highest.float() - logits.gather(-1, labels.unsqueeze(-1)).squeeze(-1).float()
    top1_logprobs = (logprobs + above_label).clamp(max=0.0)
    ends = batch.loss_mask.sum(dim=1).cumsum(dim=0).tolist()[:-1]
    parts = (np.split(part.cpu().numpy(), ends) for part in (logprobs, first_choice == labels, top1_logprobs))
    yield from map(ExampleScores, indices, *parts)


def _total_lengths(corpus: "Sequence[Example]") -> list[int]:
    if hasattr(corpus, "lengths"):
        return corpus.lengths.tolist()  # type: ignore[no-any-return]
    return [len(example.prompt_ids) + len(example.completion_ids) for example in corpus]

"""Completions drawn from a model: batched by length, cached keys and values, stopped at the end token.

One plain loop instead of ``generate``: what the preference rounds and the evaluation need is temperature sampling and
greedy decoding alone, and for the tiny models the per-step overhead of the general machinery costs more than the model.
"""

import copy
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache

from proxykd.exceptions import ShapeError
from proxykd.models.forward import length_batches
from proxykd.models.loading import autocast, is_lowered, is_spread
from proxykd.models.sharding import call, in_step, is_sharded
from proxykd.progress import stage

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from proxykd.data.tokenizing import Example

SAMPLING_BATCH_TOKENS = 16_384


class CompletionSampler(Protocol):
    """Anything that continues prompts."""

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        max_seq_tokens: int | None = None,
    ) -> list[list[int]]:
        """One completion for each prompt, in the order of the prompts.

        Args:
            prompts: Token ids, at least one each.
            max_new_tokens: Longest completion.
            temperature: Divides the logits; 0 = greedy.
            seed: Same prompts and seed, same completions.
            max_seq_tokens: Longest prompt plus completion, for models that know no further position; None = any. A
                completion has one token at least.

        Returns:
            Token ids; the last one is the end token unless the completion was cut at its room (``rooms_of``).
        """


def rooms_of(prompts: Sequence[Sequence[int]], max_new_tokens: int, max_seq_tokens: int | None) -> list[int]:
    """Most new tokens of each prompt; see ``CompletionSampler.sample``."""
    if max_seq_tokens is None:
        return [max_new_tokens] * len(prompts)
    return [min(max_new_tokens, max(1, max_seq_tokens - len(prompt))) for prompt in prompts]


class Mixture(NamedTuple):
    """A second model with a say in every token.

    Attributes:
        model: In evaluation mode, with the first model's tokens.
        weight: Its share a in the distribution (1 - a) q + a p that each token is drawn from.
    """

    model: "PreTrainedModel"
    weight: float


class TransformersSampler:
    """Samples from a transformers model in this process.

    Args:
        model: The model; not changed. With ``bfloat16`` a copy in that type is sampled, as the model is now, unless
            what is frozen of it has that type already, or its weights are in several places.
        tokenizer: Its tokenizer: end token and padding.
        precision: Arithmetic, as in ``ModelSpec.precision``.
        max_tokens: Bound on rows * (prompt + new tokens) of a batch.
        description: What the progress line says; None = there is none.
        mixture: A second model that every token is drawn from with it; None = the model alone.
        vocab_size: Draw from so many tokens, the first ones, alone; None = from all that the model has.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        precision: str = "float32",
        max_tokens: int = SAMPLING_BATCH_TOKENS,
        description: str | None = "sampling",
        mixture: Mixture | None = None,
        vocab_size: int | None = None,
    ) -> None:
        self._mixture, self._vocab_size = mixture, vocab_size
        is_kept = precision != "bfloat16" or is_lowered(model) or is_sharded(model) or is_spread(model)
        self._model = model if is_kept else copy.deepcopy(model).to(torch.bfloat16)
        self._precision = precision if is_kept else "float32"
        self._eos_id: int = tokenizer.eos_token_id
        self._max_tokens = max_tokens
        self._description = description
        self._is_ended: Callable[[Sequence[int]], bool] | None = None

    def with_stops(self, is_ended: Callable[[Sequence[int]], bool], stops: Sequence[str]) -> Self:
        """The same sampler; a completion also ends with the token after which ``is_ended`` is true of it.

        Args:
            is_ended: Asked after every token of every row.
            stops: The strings that ``is_ended`` looks for; not read here.
        """
        stopping = copy.copy(self)
        stopping._is_ended = is_ended
        return stopping

    def sample(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        temperature: float,
        seed: int,
        max_seq_tokens: int | None = None,
    ) -> list[list[int]]:
        """See ``CompletionSampler.sample``.

        Raises:
            ShapeError: if a prompt is empty.
        """
        if any(len(prompt) == 0 for prompt in prompts):
            raise ShapeError("expected prompts of at least one token, got an empty one")
        generator = torch.Generator(self._model.device).manual_seed(seed)
        completions: list[list[int]] = [[] for _ in prompts]
        lengths = (len(prompt) + max_new_tokens for prompt in prompts)
        was_training = self._model.training
        self._model.eval()
        with (
            torch.no_grad(),
            autocast(self._precision),
            in_step(self._model),
            stage(self._description, total=len(prompts), unit="sample") as progress,
        ):
            for indices in length_batches(lengths, max_tokens=self._max_tokens):
                batch = [prompts[index] for index in indices]
                rooms = rooms_of(batch, max_new_tokens, max_seq_tokens)
                sampled = self._sample_batch(batch, rooms, temperature, generator)
                for index, completion in zip(indices, sampled, strict=True):
                    completions[index] = completion
                progress.advance(len(indices))
        self._model.train(was_training)
        return completions

    @property
    def _models(self) -> "list[PreTrainedModel]":
        return [self._model] if self._mixture is None else [self._model, self._mixture.model]

    @property
    def _weights(self) -> list[float]:
        return [1.0] if self._mixture is None else [1.0 - self._mixture.weight, self._mixture.weight]

    def _sample_batch(
        self, prompts: list[Sequence[int]], rooms: list[int], temperature: float, generator: torch.Generator
    ) -> list[list[int]]:
        """Continue one batch; rows that have ended, or are full, leave it, so that the last long ones run alone."""
        completions: list[list[int]] = [[] for _ in prompts]
        input_ids, mask = (part.to(self._model.device) for part in _pad_left(prompts))
        kind = _HalvedCache if self._precision == "bfloat16" else DynamicCache
        caches, rows = [kind() for _ in self._models], torch.arange(len(prompts))
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        most = torch.tensor(rooms)
        for num_drawn in range(1, max(rooms) + 1):
            logits = [
                call(
                    model,
                    input_ids=input_ids,
                    attention_mask=mask,
                    position_ids=positions,
                    past_key_values=cache,
                    use_cache=True,
                    logits_to_keep=1,
                ).logits[:, -1, : self._vocab_size]
                for model, cache in zip(self._models, caches, strict=True)
            ]
            tokens = _choose(logits, self._weights, temperature, generator)
            for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
                completions[row].append(token)
            has_room = (most[rows] > num_drawn).to(tokens.device)
            is_open = self._open_rows(tokens, [completions[row] for row in rows.tolist()], has_room)
            if len(is_open) == 0:
                break
            positions = positions[:, -1:] + 1
            if len(is_open) < len(tokens):
                kept = is_open.cpu()  # every layer's cache may be somewhere else
                for cache in caches:
                    cache.batch_select_indices(kept)
                rows, tokens = rows[kept], tokens[is_open]
                mask, positions = mask[is_open], positions[is_open]
            input_ids = tokens.unsqueeze(1)
            mask = torch.cat([mask, mask.new_ones(len(tokens), 1)], dim=1)
        return completions

    def _open_rows(self, tokens: Tensor, completions: list[list[int]], has_room: Tensor) -> Tensor:
        """Rows of the batch that go on, long [num_open]."""
        is_open = (tokens != self._eos_id) & has_room
        if self._is_ended is not None:
            is_ended = [self._is_ended(completion) for completion in completions]
            is_open &= ~torch.tensor(is_ended, device=tokens.device)
        return is_open.nonzero().squeeze(1)


class _HalvedCache(DynamicCache):  # type: ignore[misc]
    """Keys and values in bfloat16, as attention reads them under autocast, however they come."""

    def update(self, key_states: Tensor, value_states: Tensor, *others: Any, **more: Any) -> Any:
        """Add a layer's; see ``DynamicCache.update``."""
        halved = key_states.to(torch.bfloat16), value_states.to(torch.bfloat16)
        return super().update(*halved, *others, **more)


def sample_examples(
    examples: "Sequence[Example]",
    sampler: CompletionSampler,
    *,
    max_new_tokens: int,
    max_seq_tokens: int,
    temperature: float,
    seed: int,
) -> "list[Example]":
    """The model's own completion for the prompt of every example.

    Args:
        examples: The teacher's texts.
        sampler: Of the model as it is now.
        max_new_tokens: Longest completion.
        max_seq_tokens: Longest prompt plus completion; a completion that fills it is cut, and no position beyond it is
            asked for.
        temperature: Of the sampling.
        seed: Same model, prompts and seed: same completions.

    Returns:
        One example for each; its completion has at least one token and ends with eos unless it was cut.
    """
    completions = sampler.sample(
        [example.prompt_ids.tolist() for example in examples],
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        max_seq_tokens=max_seq_tokens,
    )
    return [
        example._replace(
            completion_ids=np.asarray(completion[: max_seq_tokens - len(example.prompt_ids)], np.int32), weights=None
        )
        for example, completion in zip(examples, completions, strict=True)
    ]


def _pad_left(prompts: list[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, long [batch, seq]; what fills the padding is never attended."""
    width = max(len(prompt) for prompt in prompts)
    input_ids = np.zeros((len(prompts), width), np.int64)
    mask = np.zeros_like(input_ids)
    for row, prompt in enumerate(prompts):
        input_ids[row, width - len(prompt) :] = prompt
        mask[row, width - len(prompt) :] = 1
    return torch.from_numpy(input_ids), torch.from_numpy(mask)


def _choose(
    logits: Sequence[Tensor], weights: Sequence[float], temperature: float, generator: torch.Generator
) -> Tensor:
    """One token for each row, long [batch], from a mixture of the distributions of several models."""
    if temperature == 0.0 and len(logits) == 1:
        return logits[0].argmax(dim=-1)
    divisor = temperature or 1.0
    parts = [weight * (one.float() / divisor).softmax(dim=-1) for one, weight in zip(logits, weights, strict=True)]
    probs = torch.stack(parts).sum(dim=0) if len(parts) > 1 else parts[0]
    if temperature == 0.0:
        return probs.argmax(dim=-1)
    return torch.multinomial(probs, num_samples=1, generator=generator).squeeze(1)

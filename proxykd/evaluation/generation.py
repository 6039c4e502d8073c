"""Asking a model: completions and log-likelihoods, in batches of similar length, each answer journaled.

Batches are made of everything that is asked at once, whether the journal knows it or not, and a batch of which
anything is missing is run whole. So a batch has the same rows in the run that was killed and in the one that goes on,
and the answers are the same to the last bit; what is lost is the batch in flight.

What a completion's key holds: the prompt's tokens, the longest completion, the temperature, the stop strings, the
sample's number and the seed; of a log-likelihood, both token sequences. Tasks that ask the same share the answer.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

import numpy as np

from proxykd.data.chat import render_prompt
from proxykd.data.tokenizing import Example
from proxykd.evaluation.generation_journal import AnswerJournal
from proxykd.exceptions import ConfigError
from proxykd.models.forward import EVALUATION_BATCH_TOKENS, length_batches, score_corpus
from proxykd.models.sampling import SAMPLING_BATCH_TOKENS, CompletionSampler, TransformersSampler
from proxykd.progress import stage
from proxykd.records import Message, hash_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TokenIds = Sequence[int]
_STOP_TOKENS = 16
_DEFAULT_CONTEXT = 1 << 20


class Likelihood(NamedTuple):
    """What a model makes of a continuation.

    Attributes:
        logprob: Sum over its tokens, nats.
        num_tokens: Its tokens.
        num_top1: Tokens that were the model's first choice.
    """

    logprob: float
    num_tokens: int
    num_top1: int

    @property
    def is_greedy(self) -> bool:
        """Whether greedy decoding would have written it."""
        return self.num_top1 == self.num_tokens


class Generation(NamedTuple):
    """How completions are drawn.

    Attributes:
        max_new_tokens: Longest completion.
        temperature: Divides the logits; 0 = greedy.
        num_samples: Completions of each prompt.
        stops: A completion ends before the first of these strings.
        seed: Of the draws.
    """

    max_new_tokens: int
    temperature: float = 0.0
    num_samples: int = 1
    stops: tuple[str, ...] = ()
    seed: int = 0


class StoppingSampler(CompletionSampler, Protocol):
    """A sampler that can also end a completion at a string."""

    def with_stops(self, is_ended: Callable[[TokenIds], bool], stops: Sequence[str]) -> Self:
        """The same sampler; completions also end with the token that completes one of ``stops``.

        Args:
            is_ended: Whether a completion holds one of them at its end.
            stops: The strings themselves, for engines that look for them on their own.
        """


class Respondent:
    """One model that is asked.

    Args:
        model: Scores; in evaluation mode while it does.
        tokenizer: Its tokenizer.
        sampler: Generates from the same weights; None = with transformers, in this process.
        journal: Keeps every answer; None = nothing is kept.
        precision: Arithmetic, as in ``ModelSpec.precision``.
        batch_tokens: Bound on rows * (prompt + new tokens) of a generated batch.
    """

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        *,
        sampler: StoppingSampler | None = None,
        journal: AnswerJournal | None = None,
        precision: str = "float32",
        batch_tokens: int = SAMPLING_BATCH_TOKENS,
    ) -> None:
        self.model, self.tokenizer, self.precision = model, tokenizer, precision
        self._journal, self._batch_tokens = journal, batch_tokens
        self._sampler = sampler or TransformersSampler(
            model, tokenizer, precision=precision, max_tokens=batch_tokens, description=None
        )
        self.max_tokens = int(getattr(model.config, "max_position_embeddings", None) or _DEFAULT_CONTEXT)

    def encode(self, text: str) -> list[int]:
        """Tokens of a rendered text, special tokens where the text spells them out."""
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def encode_plain(self, text: str) -> list[int]:
        """Tokens of a plain text: a special token that it spells out stays spelled out."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    @property
    def prefix_id(self) -> int:
        """The token before a text that has no prompt: the tokenizer's first one, or its last."""
        bos = self.tokenizer.bos_token_id
        return int(self.tokenizer.eos_token_id if bos is None else bos)

    def encode_messages(self, messages: Sequence[Message]) -> list[int]:
        """Tokens after which the answer to ``messages`` begins."""
        return self.encode(render_prompt(self.tokenizer, messages))

    def decode(self, completion: TokenIds, stops: Sequence[str] = ()) -> str:
        """The text of a completion, special tokens left out, up to the first of ``stops``."""
        text = str(self.tokenizer.decode(list(completion), skip_special_tokens=True))
        return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]

    def ended(self, completion: TokenIds) -> bool:
        """Whether a completion ends with the end token: it was not cut."""
        return bool(completion) and completion[-1] == self.tokenizer.eos_token_id

    def generate(
        self, prompts: Sequence[TokenIds], how: Generation, *, description: str = "generating answers"
    ) -> list[list[int]]:
        """Completions of all prompts: the samples of the first prompt, then those of the second, and so on.

        A prompt that leaves no room for ``how.max_new_tokens`` loses its first tokens, as in lm-evaluation-harness, but
        keeps as many as half of what the model can read; completions end where that is full.

        Args:
            prompts: Token ids, at least one each.
            how: Length, temperature, samples.
            description: What the progress line says.

        Returns:
            Token ids of ``len(prompts) * how.num_samples`` completions.
        """
        room = max(self.max_tokens - how.max_new_tokens, self.max_tokens // 2)
        asked = [(prompt[-room:], sample) for prompt in prompts for sample in range(how.num_samples)]
        keys = [_generation_key(prompt, sample, how) for prompt, sample in asked]
        sampler = self._stopping_at(how.stops) if how.stops else self._sampler

        def run(indices: list[int]) -> list[list[int]]:
            # The batch's own keys seed it, so that its draws do not depend on the batches before it.
            seed = int(hash_json([keys[index] for index in indices], length=15), 16)
            batch = [asked[index][0] for index in indices]
            return sampler.sample(
                batch,
                max_new_tokens=min(how.max_new_tokens, self.max_tokens - max(map(len, batch))),
                temperature=how.temperature,
                seed=seed,
            )

        lengths = [len(prompt) + how.max_new_tokens for prompt, _ in asked]
        batches = length_batches(lengths, max_tokens=self._batch_tokens)
        return self._answers(keys, batches, run, description)

    def likelihoods(
        self, pairs: Sequence[tuple[TokenIds, TokenIds]], *, description: str = "scoring answers"
    ) -> list[Likelihood]:
        """What the model makes of each continuation of a context.

        Args:
            pairs: Context, at least one token, and continuation. Contexts that leave no room lose their first tokens.
            description: What the progress line says.
        """
        examples = [self._example(context, continuation) for context, continuation in pairs]
        keys = [hash_json([one.prompt_ids.tolist(), one.completion_ids.tolist()]) for one in examples]
        batches = length_batches(
            (len(one.prompt_ids) + len(one.completion_ids) for one in examples), max_tokens=EVALUATION_BATCH_TOKENS
        )

        def run(indices: list[int]) -> list[list[float]]:
            batch = [examples[index] for index in indices]
            scores = score_corpus(self.model, batch, pad_id=self.tokenizer.pad_token_id or 0, precision=self.precision)
            ordered = sorted(scores, key=lambda score: score.example_idx)
            return [[float(s.logprobs.sum(dtype=np.float64)), len(s.logprobs), int(s.is_top1.sum())] for s in ordered]

        found = self._answers(keys, batches, run, description)
        return [Likelihood(float(logprob), int(count), int(top1)) for logprob, count, top1 in found]

    def _example(self, context: TokenIds, continuation: TokenIds) -> Example:
        kept = list(continuation)[-max(1, self.max_tokens - 1) :]
        room = max(1, self.max_tokens - len(kept))
        return Example("", 0, np.asarray(list(context)[-room:], np.int32), np.asarray(kept, np.int32))

    def _stopping_at(self, stops: Sequence[str]) -> StoppingSampler:
        def is_ended(completion: TokenIds) -> bool:
            tail = str(self.tokenizer.decode(list(completion[-_STOP_TOKENS:]), skip_special_tokens=True))
            return any(stop in tail for stop in stops)

        return self._sampler.with_stops(is_ended, stops)

    def _answers(
        self, keys: Sequence[str], batches: list[list[int]], run: Callable[[list[int]], list[Any]], description: str
    ) -> list[Any]:
        """An answer for each key: from the journal, or from ``run`` batch by batch."""
        answers: list[Any] = [None] * len(keys)
        with stage(description if keys else None, total=len(keys), unit="answer") as progress:
            for indices in batches:
                found = self._known([keys[index] for index in indices])
                if found is None:
                    found = run(indices)
                    if self._journal is not None:
                        self._journal.put((keys[index], value) for index, value in zip(indices, found, strict=True))
                for index, value in zip(indices, found, strict=True):
                    answers[index] = value
                progress.advance(len(indices))
        return answers

    def _known(self, keys: list[str]) -> list[Any] | None:
        """The journal's answers to all of ``keys``; None if it lacks one."""
        if self._journal is None or not all(key in self._journal for key in keys):
            return None
        return [self._journal.get(key) for key in keys]


def journal_of(folder: Path, *, model_hash: str, precision: str, engine: str) -> AnswerJournal:
    """The journal of one model in one arithmetic: another model's answers are never taken for its own."""
    return AnswerJournal(folder / f"{hash_json([model_hash, precision, engine], length=32)}.jsonl")


def build_sampler(
    engine: str,
    folder: Path,
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    *,
    precision: str,
    batch_tokens: int,
) -> StoppingSampler:
    """What generates.

    Args:
        engine: ``transformers`` or ``vllm``.
        folder: The model's, which vLLM loads for itself.
        model: The same model, loaded.
        tokenizer: Its tokenizer.
        precision: Arithmetic.
        batch_tokens: As for ``Respondent``.

    Raises:
        ConfigError: if vLLM is asked for and is not installed.
    """
    if engine == "vllm":
        from proxykd.models.vllm_sampling import VllmSampler

        return VllmSampler.of_folder(folder, tokenizer, precision=precision)
    if engine != "transformers":
        raise ConfigError(f"expected evaluation.engine to be transformers or vllm, got {engine!r}")
    return TransformersSampler(model, tokenizer, precision=precision, max_tokens=batch_tokens, description=None)


def _generation_key(prompt: TokenIds, sample_idx: int, how: Generation) -> str:
    settings = [how.max_new_tokens, how.temperature, list(how.stops), how.seed if how.temperature else 0]
    return hash_json([list(map(int, prompt)), sample_idx if how.temperature else 0, settings])

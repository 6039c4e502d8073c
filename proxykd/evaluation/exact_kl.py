"""The true distance between a teacher whose odds are known and a model.

At every position t of the teacher's own text y (drawn from p_T, end token included),

    KL_t = sum_v p_T(v | x, y_<t) (log p_T(v | x, y_<t) - log p_model(v | x, y_<t))        nats, >= 0
    H_t  = - sum_v p_T(v | x, y_<t) log p_T(v | x, y_<t)                                   nats, >= 0

Only the next token is summed out exactly. The prefixes y_<t are those of the teacher's sampled texts, so the mean of
KL_t over them estimates, with the luck of the prefixes, the KL (a token) between the two distributions over token
sequences (chain rule); the held-out NLL has the luck of the next tokens on top. The teacher's distribution is over
canonical sequences, each text as the tokenizer writes it: mass that a model gives to other spellings of the same text
counts against it. The mean of H_t over the same texts is the floor of their held-out NLL: NLL = H + KL in expectation.

Only the embedded teacher's odds are known, and only this module may ask for them; training never does.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxykd.data.tokenizing import Example
from proxykd.evaluation.heldout import PromptIndex
from proxykd.models.forward import EVALUATION_BATCH_TOKENS, collate, completion_logits, length_batches
from proxykd.models.loading import autocast
from proxykd.teacher.truth import NextToken, TeacherTruth

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Truth(Protocol):
    """Knows the teacher's odds; ``TeacherTruth`` does."""

    def next_token_probs(self, question: str, completion_ids: NDArray[np.int32]) -> list[NextToken]:
        """The distribution from which each token of a completion was drawn."""


class TrueOdds(NamedTuple):
    """The teacher's distributions along one completion, flattened over its positions.

    Attributes:
        position: Position of each entry, int64 [num_entries], ascending.
        token_ids: A token that can follow there, int64 [num_entries].
        probs: Its probability, float64 [num_entries], > 0; the entries of a position sum to 1.
    """

    position: NDArray[np.int64]
    token_ids: NDArray[np.int64]
    probs: NDArray[np.float64]


class TrueCorpus(NamedTuple):
    """Examples of the embedded teacher with the odds from which they were drawn.

    Attributes:
        examples: The examples.
        odds: One for each example.
        prompt_idx: The prompt of each example, int64 [num_examples], as in a ``PromptIndex``.
    """

    examples: Sequence[Example]
    odds: Sequence[TrueOdds]
    prompt_idx: NDArray[np.int64]


def true_corpus(
    corpus: Sequence[Example],
    index: PromptIndex,
    questions: Mapping[str, str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    num_prompts: int,
    truth: Truth | None = None,
) -> TrueCorpus:
    """The examples of the first ``num_prompts`` prompts with the teacher's odds; asks once for all arms.

    Args:
        corpus: The held-out examples.
        index: ``index_prompts(corpus)``.
        questions: Prompt id -> the question as the teacher read it.
        tokenizer: The tokenizer of ``corpus``.
        num_prompts: Bound on the prompts, and so on memory.
        truth: Who knows the odds; None = the embedded teacher.

    Raises:
        InputError: if a text is none of the embedded teacher's.
    """
    knower = TeacherTruth(tokenizer) if truth is None else truth
    chosen = np.flatnonzero(index.prompt_idx < num_prompts)
    examples = [corpus[int(idx)] for idx in chosen]
    odds = [flatten(knower.next_token_probs(questions[one.prompt_id], one.completion_ids)) for one in examples]
    return TrueCorpus(examples, odds, index.prompt_idx[chosen])


def flatten(distributions: Iterable[NextToken]) -> TrueOdds:
    """One row of entries out of a list of sparse distributions."""
    rows = list(distributions)
    return TrueOdds(
        np.repeat(np.arange(len(rows)), [len(row.token_ids) for row in rows]),
        np.concatenate([np.zeros(0, np.int64), *(row.token_ids.astype(np.int64) for row in rows)]),
        np.concatenate([np.zeros(0), *(row.probs for row in rows)]),
    )


def exact_kl(odds: TrueOdds, logprobs: Tensor) -> NDArray[np.float64]:
    """KL(teacher || model) at every position, nats, float64 [num_positions], >= 0.

    Args:
        odds: The teacher's distributions at those positions.
        logprobs: The model's log-probabilities, float [num_positions, vocab]; -inf where the teacher has mass gives
            an infinite KL, elsewhere it does not matter.
    """
    entries = logprobs[torch.from_numpy(odds.position), torch.from_numpy(odds.token_ids)].double().cpu().numpy()
    terms = odds.probs * (np.log(odds.probs) - entries)
    return np.bincount(odds.position, weights=terms, minlength=len(logprobs)).astype(np.float64)


def entropy_by_prompt(corpus: TrueCorpus, num_prompts: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The teacher's own entropy: nats and tokens for each prompt, float64 [num_prompts] both."""
    sums, tokens = np.zeros(num_prompts), np.zeros(num_prompts)
    for odds, example, prompt in zip(corpus.odds, corpus.examples, corpus.prompt_idx, strict=True):
        sums[prompt] -= float(odds.probs @ np.log(odds.probs))
        tokens[prompt] += len(example.completion_ids)
    return sums, tokens


def kl_by_prompt(
    model: "PreTrainedModel", corpus: TrueCorpus, num_prompts: int, *, pad_id: int, precision: str = "float32"
) -> NDArray[np.float64]:
    """Sum of KL(teacher || model) over the positions of each prompt's completions, nats, float64 [num_prompts].

    Args:
        model: A causal language model over the corpus's tokens.
        corpus: Examples with the teacher's odds.
        num_prompts: Length of the result; prompts without an example get 0.
        pad_id: Any token id; padding is never attended.
        precision: Arithmetic of the forward pass; the KL itself is float64.
    """
    model.eval()
    sums = np.zeros(num_prompts)
    lengths = [len(one.prompt_ids) + len(one.completion_ids) for one in corpus.examples]
    for indices in length_batches(lengths, max_tokens=EVALUATION_BATCH_TOKENS):
        examples = [corpus.examples[idx] for idx in indices]
        batch = collate(examples, pad_id=pad_id).to(model.device)
        with torch.no_grad(), autocast(precision):
            logprobs = completion_logits(model, batch).float().log_softmax(dim=-1)
        parts = torch.split(logprobs, [len(example.completion_ids) for example in examples])
        for idx, part in zip(indices, parts, strict=True):
            sums[corpus.prompt_idx[idx]] += exact_kl(corpus.odds[idx], part).sum()
    return sums

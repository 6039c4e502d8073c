"""How well a model predicts the teacher's held-out text, prompt by prompt.

    NLL of a prompt      = - sum_t log p_model(y_t | x, y_<t)
    top-1 of a prompt    = number of t at which argmax_v p_model(v | x, y_<t) = y_t

over the tokens t of its completions, end token included. How often the first choice is right at each confidence,
max_v p_model(v | x, y_<t), is counted in bins (``proxykd.evaluation.calibration``).

Sums are kept for each prompt (not means), so that the statistics can form ratios of sums. The corpus is read batch by
batch; what is kept are three numbers a prompt, and three a bin.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.data.tokenizing import Example
from proxykd.evaluation.calibration import DEFAULT_BINS, bin_outcomes
from proxykd.models.forward import ExampleScores, score_corpus

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class PromptIndex(NamedTuple):
    """Which prompt each example of a corpus belongs to.

    Attributes:
        prompt_ids: Distinct prompts in order of first appearance.
        prompt_idx: Index into ``prompt_ids`` for each example, int64 [num_examples].
    """

    prompt_ids: tuple[str, ...]
    prompt_idx: NDArray[np.int64]


class HeldoutScores(NamedTuple):
    """Sums for each prompt, in the order of a ``PromptIndex``; float64 [num_prompts] but for the last.

    Attributes:
        nll_sum: Negative log-likelihood of the completions, nats.
        num_tokens: Their tokens, end tokens included.
        num_top1: Tokens that were the model's first choice.
        reliability: First choices, their probabilities and how often they were right, in bins by probability,
            float64 [num_prompts, bins, 3].
    """

    nll_sum: NDArray[np.float64]
    num_tokens: NDArray[np.float64]
    num_top1: NDArray[np.float64]
    reliability: NDArray[np.float64]


def index_prompts(examples: Iterator[Example] | Sequence[Example]) -> PromptIndex:
    """The distinct prompts of ``examples``."""
    positions: dict[str, int] = {}
    prompt_idx = [positions.setdefault(example.prompt_id, len(positions)) for example in examples]
    return PromptIndex(tuple(positions), np.asarray(prompt_idx, dtype=np.int64))


def score_heldout(
    model: "PreTrainedModel",
    corpus: Sequence[Example],
    index: PromptIndex,
    *,
    pad_id: int,
    precision: str = "float32",
    bins: int = DEFAULT_BINS,
) -> HeldoutScores:
    """Score the teacher's text under ``model``.

    Args:
        model: A causal language model.
        corpus: The held-out examples, in the model's tokens.
        index: ``index_prompts(corpus)``.
        pad_id: Any token id; padding is never attended.
        precision: Arithmetic, as in ``ModelSpec.precision``.
        bins: Of the reliability.
    """
    return sum_by_prompt(score_corpus(model, corpus, pad_id=pad_id, precision=precision), index, bins=bins)


def sum_by_prompt(scores: Iterator[ExampleScores], index: PromptIndex, *, bins: int = DEFAULT_BINS) -> HeldoutScores:
    """Add up the scores of all examples of a prompt; a prompt without any has zeros."""
    num_prompts = len(index.prompt_ids)
    nll_sum, num_tokens, num_top1 = np.zeros((3, num_prompts))
    sums = HeldoutScores(nll_sum, num_tokens, num_top1, np.zeros((num_prompts, bins, 3)))
    for score in scores:
        prompt, count = index.prompt_idx[score.example_idx], len(score.logprobs)
        sums.nll_sum[prompt] -= score.logprobs.sum(dtype=np.float64)
        sums.num_tokens[prompt] += count
        sums.num_top1[prompt] += score.is_top1.sum()
        confidences = np.minimum(np.exp(score.top1_logprobs.astype(np.float64)), 1.0)
        sums.reliability[prompt] += bin_outcomes(confidences, score.is_top1, np.zeros(count), num_prompts=1, bins=bins)[
            0
        ]
    return sums

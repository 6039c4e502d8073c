"""Which texts a round sees, and the pairs that it learns from: the teacher's text against the proxy's own."""

import math
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.data.tokenizing import Example


class ReferenceLogprobs(NamedTuple):
    """log p(completion | prompt) under the previous round's proxy, float32 [num_pairs] each."""

    chosen: NDArray[np.float32]
    rejected: NDArray[np.float32]


class PairSet:
    """The pairs of one round.

    Args:
        chosen: The teacher's texts.
        rejected: The proxy's own completions of the same prompts.
        reference_logprobs: Scores of both under the proxy that the round starts from.
        eos_id: End token; a completion without it was cut.
    """

    def __init__(
        self,
        chosen: Sequence[Example],
        rejected: Sequence[Example],
        reference_logprobs: ReferenceLogprobs,
        *,
        eos_id: int,
    ) -> None:
        self.chosen, self.rejected, self.reference_logprobs = chosen, rejected, reference_logprobs
        self._eos_id = eos_id

    def __len__(self) -> int:
        return len(self.chosen)

    def rows(self) -> Iterator[dict[str, Any]]:
        """One mapping a pair, under the names that ``DPOTrainer`` reads."""
        for chosen, rejected, *reference in zip(self.chosen, self.rejected, *self.reference_logprobs, strict=True):
            yield {
                "prompt_ids": chosen.prompt_ids.tolist(),
                "chosen_ids": chosen.completion_ids.tolist(),
                "rejected_ids": rejected.completion_ids.tolist(),
                "ref_chosen_logps": float(reference[0]),
                "ref_rejected_logps": float(reference[1]),
            }

    def is_tie(self, idx: int) -> bool:
        """Whether the proxy wrote exactly the teacher's text."""
        return np.array_equal(self.chosen[idx].completion_ids, self.rejected[idx].completion_ids)

    def summary(self) -> dict[str, float]:
        """Numbers of pairs, ties and unfinished samples, and mean lengths in tokens."""
        return {
            "num_pairs": len(self),
            "num_ties": sum(self.is_tie(idx) for idx in range(len(self))),
            "num_unfinished": sum(int(example.completion_ids[-1]) != self._eos_id for example in self.rejected),
            "mean_chosen_tokens": float(np.mean([len(example.completion_ids) for example in self.chosen])),
            "mean_rejected_tokens": float(np.mean([len(example.completion_ids) for example in self.rejected])),
        }


def round_indices(num_examples: int, *, epochs: float, rounds: int, seed: int) -> list[NDArray[np.int64]]:
    """Which examples each round sees, in order.

    ``epochs`` passes, each shuffled anew, are laid end to end and cut into ``rounds`` parts of equal size (to within
    one example).

    Args:
        num_examples: Size of the corpus.
        epochs: Passes in all rounds together.
        rounds: Number of parts; a part may be empty if there are more of them than examples.
        seed: Same seed, same order.
    """
    rng = np.random.default_rng(seed)
    wanted = math.ceil(num_examples * epochs)
    passes = (rng.permutation(num_examples).tolist() for _ in count())
    return np.array_split(np.fromiter(islice(chain.from_iterable(passes), wanted), np.int64, wanted), rounds)

"""The embedded teacher's exact next-token distributions.

A next-token probability is a ratio of masses: with S the set of all texts of a question (tokenised, + eos) and P their
probabilities, p(v | prefix) = sum of P over texts that start with prefix + v, over the same sum for prefix. The black
box is thereby fully known here, which is why the evaluation alone may import this module.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from proxykd.exceptions import InputError
from proxykd.teacher.problems import enumerate_completions

_NO_TOKEN = -1


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is needed."""

    eos_token_id: int

    def __call__(self, text: list[str], *, add_special_tokens: bool) -> Any:
        """An encoding with ``input_ids``."""


class NextToken(NamedTuple):
    """A sparse distribution over the next token.

    Attributes:
        token_ids: int32 [num_tokens], ascending, the tokens that can follow.
        probs: float64 [num_tokens], > 0, sum 1.
    """

    token_ids: NDArray[np.int32]
    probs: NDArray[np.float64]


class _Texts(NamedTuple):
    token_ids: NDArray[np.int32]  # [num_texts, longest], padded with _NO_TOKEN
    probs: NDArray[np.float64]  # [num_texts]

    def column(self, position: int) -> NDArray[np.int32]:
        if position < self.token_ids.shape[1]:
            return self.token_ids[:, position]
        return np.full(len(self.probs), _NO_TOKEN, dtype=np.int32)


class TeacherTruth:
    """Knows the embedded teacher's distributions in the tokens of one tokenizer.

    Args:
        tokenizer: A transformers tokenizer with an eos token; texts are tokenised without special tokens, eos is
            appended.
        cached_questions: Questions whose texts are kept tokenised.
    """

    def __init__(self, tokenizer: Tokenizer, *, cached_questions: int = 64) -> None:
        self._tokenizer = tokenizer
        self._texts = lru_cache(maxsize=cached_questions)(self._tokenise)

    def next_token_probs(self, question: str, completion_ids: Sequence[int] | NDArray[np.int32]) -> list[NextToken]:
        """The distribution from which each token of a completion was drawn.

        Args:
            question: A question as ``generate_prompts`` makes them.
            completion_ids: One of the teacher's texts in tokens, eos last; a proper prefix of one is allowed.

        Returns:
            One distribution for each position, given the tokens before it.

        Raises:
            InputError: if the question is not the teacher's, or it cannot say this completion.
        """
        texts = self._texts(question)
        given = np.asarray(completion_ids, dtype=np.int32)
        alive = np.arange(len(texts.probs))
        found: list[NextToken] = []
        for position, token_id in enumerate(given):
            column = texts.column(position)[alive]
            alive_after = alive[column == token_id]
            if token_id == _NO_TOKEN or not len(alive_after):
                raise self._cannot_say(question, position, int(token_id))
            found.append(_distribution(column, texts.probs[alive]))
            alive = alive_after
        return found

    def _tokenise(self, question: str) -> _Texts:
        texts, probs = zip(*enumerate_completions(question), strict=True)
        encoded = self._tokenizer(list(texts), add_special_tokens=False).input_ids
        rows = np.full((len(encoded), max(map(len, encoded)) + 1), _NO_TOKEN, dtype=np.int32)
        for row, token_ids in zip(rows, encoded, strict=True):
            row[: len(token_ids)] = token_ids
            row[len(token_ids)] = self._tokenizer.eos_token_id
        return _Texts(rows, np.array(probs))

    def _cannot_say(self, question: str, position: int, token_id: int) -> InputError:
        return InputError(
            f"expected a completion that the embedded teacher can write for {question!r:.80}, got token {token_id} at "
            f"position {position}, which cannot follow; use its own texts, tokenised without special tokens, + eos"
        )


def _distribution(column: NDArray[np.int32], masses: NDArray[np.float64]) -> NextToken:
    token_ids, inverse = np.unique(column, return_inverse=True)
    probs = np.bincount(inverse, weights=masses)
    return NextToken(token_ids, probs / probs.sum())

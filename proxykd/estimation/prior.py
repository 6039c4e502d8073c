"""The prior of the teacher's distributions: n-gram frequencies over its own corpus (Proxy-KD, version 1).

At position t of a text y, with a context of the tokens before it that the corpus has seen C times, c(w) of them
followed by w,

    p(w) = 1/gamma * c(w)/C + (gamma - 1)/gamma * 1[w = y_t],      gamma >= 1

gamma = 1 is the n-gram estimate, gamma -> infinity the written token alone. The context is the longest that was seen
``min_count`` times; ``interpolated`` mixes in the shorter ones, with N the distinct tokens that followed a context:

    P_k(w) = (c_k(w) + N_k P_{k-1}(w)) / (C_k + N_k),      P_0(w) = c_0(w) / C_0

Differs from the paper: its text could not be had, only the shape of the equation; n, gamma, and what happens to a
context that nobody else used are choices made here. By default the counts leave out everything that the sequence
itself contributed: counted in, the longest context of almost every position was seen once, at that very position, and
the estimate would be the written token again. Where nothing is left even of the empty context (a corpus of one text)
the row is the written token, and ``SparseRows.num_no_evidence`` counts it.

References:
    Chen et al., arXiv:2401.07013v1 (the estimate). Witten and Bell, The zero-frequency problem, IEEE Transactions on
    Information Theory 37(4), 1991, method C, in the interpolated form of Chen and Goodman, TR-10-98, Harvard, 1998.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.config.prior import PriorSpec
from proxykd.data.tokenizing import Example
from proxykd.estimation.ngrams import NgramCounts
from proxykd.exceptions import InputError
from proxykd.targets.codec import Positions

# Beyond it single precision cannot hold the estimate's share.
_GAMMA_OF_ONE_HOT = 1e25


class SparseRows(NamedTuple):
    """Sparse distributions at the positions of one completion.

    Attributes:
        token_ids: int32 [length, max_tokens], distinct within a row, the most probable first (ties: smaller ids
            first); -1 = unused, always last.
        probs: float32 [length, max_tokens], > 0 where used, 0 elsewhere.
        tail: Mass outside the listed tokens, float32 [length], >= 0; exactly 0 where there is none.
        orders: Tokens of the context that was believed, int8 [length]; -1 = no evidence, the row is the written token.
        observed: How often that context was seen, int64 [length]; the weight of the evidence.
    """

    token_ids: NDArray[np.int32]
    probs: NDArray[np.float32]
    tail: NDArray[np.float32]
    orders: NDArray[np.int8]
    observed: NDArray[np.int64]

    @property
    def num_no_evidence(self) -> int:
        """Positions about which the rest of the corpus says nothing at all."""
        return int(np.count_nonzero(self.orders < 0))

    def positions(self) -> Positions:
        """The same as log-probabilities in nats; -inf in unused places and where there is no tail."""
        with np.errstate(divide="ignore"):
            return Positions(self.token_ids, np.log(self.probs), np.log(self.tail))


def prior_rows(counts: NgramCounts, example: Example, spec: PriorSpec) -> SparseRows:
    """The prior at every position of a completion.

    An example that was not counted contributed nothing, so nothing is left out for it.

    Args:
        counts: Counts of the corpus.
        example: Any; its tokens beyond the counted vocabulary have no counts.
        spec: Its ``order`` may be at most that of ``counts``. Where its ``gamma`` is fitted, it is taken as 1 here: who
            fitted it adds the written token.

    Returns:
        One row for each completion token; each row's probabilities and tail sum to 1.

    Raises:
        InputError: if ``spec.order`` is larger than what was counted, a token id is negative, or the example was
            counted with other tokens.
    """
    if spec.order > counts.order:
        raise InputError(f"expected an order <= {counts.order}, which was counted, got {spec.order}; count again")
    leave = spec.counts == "leave_out" and counts.is_counted(example)
    context = example.prompt_ids[max(0, len(example.prompt_ids) - spec.order) :]
    tokens = np.concatenate([context, example.completion_ids]).astype(np.int32, copy=False)
    if tokens.min(initial=0) < 0:
        raise InputError("expected token ids >= 0 in the example, got a negative one; tokenise it again")
    length = len(example.completion_ids)
    rows = SparseRows(
        np.full((length, spec.max_tokens), -1, np.int32),
        np.zeros((length, spec.max_tokens), np.float32),
        np.zeros(length, np.float32),
        np.zeros(length, np.int8),
        np.zeros(length, np.int64),
    )
    gamma = 1.0 if spec.gamma == "fitted" else spec.gamma
    share = 1.0 / gamma if gamma < _GAMMA_OF_ONE_HOT else 0.0
    _fill(spec)(tuple(counts.trie), tokens, len(context), spec.order, int(leave), spec.min_count, share, tuple(rows))
    return rows


def _fill(spec: PriorSpec) -> Callable[..., None]:
    if spec.back_off == "interpolated":
        from proxykd.estimation.ngram_mixing import fill_mixture

        return fill_mixture
    from proxykd.estimation.ngram_lookup import fill_longest

    return fill_longest

"""How much the counts and the proxy are worth, fitted to text of the teacher's that neither of them has seen.

With P the counts' estimate at a position, pi the proxy's, and y the token that the teacher wrote there:

    m = w P + (1 - w) pi                    w: the share of the counts, one for each order and number of observations
    P_teacher ~ Dirichlet(s m)              s: what the estimate m is worth, in draws from the teacher itself
    P_teacher | y ~ Dirichlet(s m + [y]),   mean (s m + 1[y]) / (s + 1),   1 - 1/gamma = 1 / (s + 1)

w maximises sum_t log m(y_t) (deleted interpolation; Jelinek and Mercer). Each stratum's w is drawn towards the whole
corpus's by so many positions of imagined text, so that a stratum of three positions does not decide for itself.

One token a position says nothing about s: whatever s is, y_t has the probability m(y_t). Several completions of one
prompt do, as far as they begin with the same tokens. If a prefix was continued n times, c_v times by v, then

    p(c) = Gamma(s) / Gamma(s + n)  prod_v Gamma(s m(v) + c_v) / Gamma(s m(v))

and s maximises the sum of its logarithm: one s for each range of the certainty max_v m0(v), m0 = pi where the proxy
takes part and P where it does not, each drawn towards the s of all; that one weakly towards 1 (gamma 2), and the w of
the whole corpus towards 1/2, so that a handful of positions decides nothing for ever.

This module knows arrays alone.

References:
    Jelinek and Mercer, Interpolated estimation of Markov source parameters from sparse data, 1980. Levin and Reeds,
    Compound multinomial likelihood functions are unimodal, Annals of Statistics 5(1), 1977.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CERTAINTY_EDGES = (0.5, 0.8, 0.95)
"""Where one range of certainty ends and the next begins."""

_IMAGINED_POSITIONS = 5.0
_LOG_WORTH_DEVIATION = 1.0
_LOG_WORTH_WIDTH = 3.0
_WORTH_RANGE = (1e-3, 1e6)
_STEPS_A_DECADE = 10
# 2 ** 63 observations at most, and orders from -1 (nothing seen) on.
_SIZES = 64
_ORDERS = 18
# A token to which the estimate gives nothing still has a likelihood; the choice of s does not depend on this.
_LEAST_PROB = 1e-12


class Unseen(NamedTuple):
    """Positions of text that neither the counts nor the proxy has seen.

    Attributes:
        counted: P(y), float64 [n].
        proxy: pi(y), float64 [n].
        orders: Tokens of the context that the counts believed, int64 [n]; -1 = none.
        observed: How often it was seen, int64 [n].
        certainty: max_v m0(v), float64 [n].
        contexts: int64 [n]; the same number where the prompt and all tokens before are the same.
        tokens: y, int64 [n].
    """

    counted: Floats
    proxy: Floats
    orders: Ints
    observed: Ints
    certainty: Floats
    contexts: Ints
    tokens: Ints


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """What was fitted; rows of a batch are weighed by it.

    Attributes:
        share: w of all positions together.
        shares: w of each stratum, float64 [num_strata].
        worth: s of all positions together.
        worths: s of each range of certainty, float64 [len(CERTAINTY_EDGES) + 1].
        num_positions: That w was fitted to.
        num_repeated: Prefixes with several continuations, which s was fitted to; 0 = s was given.
    """

    share: float
    shares: Floats
    worth: float
    worths: Floats
    num_positions: int
    num_repeated: int

    def share_of(self, orders: Ints, observed: Ints) -> Floats:
        """The counts' share at each position, float64 [n], from the counts' context and its observations, int64 [n]."""
        return self.shares[strata_of(orders, observed)]

    def worth_of(self, certainty: Floats) -> Floats:
        """What the estimate is worth at each position, float64 [n], from max_v m0(v), float64 [n]."""
        return self.worths[np.digitize(certainty, CERTAINTY_EDGES)]

    def facts(self) -> dict[str, Any]:
        """For ``targets.json``; ``gamma`` is that of all positions together, None = infinite."""
        return {
            "num_positions": self.num_positions,
            "counts_share": self.share,
            "num_repeated_prefixes": self.num_repeated,
            "worth": self.worth,
            "worth_by_certainty": self.worths.tolist(),
            "gamma": 1.0 + 1.0 / self.worth if self.worth else None,
        }


def strata_of(orders: Ints, observed: Ints) -> Ints:
    """The stratum of each position: the order, and the observations' power of two."""
    sizes = np.frexp(np.maximum(observed, 1).astype(np.float64))[1].astype(np.int64) - 1
    return (orders.astype(np.int64) + 1) * _SIZES + np.minimum(sizes, _SIZES - 1)


def fit(unseen: Unseen, *, mixes: bool, worth: float | None) -> Fitted:
    """Fit the shares and, unless it is given, the worth.

    Args:
        unseen: Positions.
        mixes: False = the counts alone, w = 1.
        worth: s where it is not to be fitted, or where no prefix was continued several times; None = 1, by which the
            estimate and the written token weigh the same (gamma = 2).

    Returns:
        The fit; ``num_repeated`` says whether s was fitted.
    """
    share, shares = 1.0, np.ones(_ORDERS * _SIZES)
    if mixes:
        share, shares = fit_shares(unseen.counted, unseen.proxy, strata_of(unseen.orders, unseen.observed))
    found = share_worths(worth)
    if worth is None:
        weights = shares[strata_of(unseen.orders, unseen.observed)]
        estimate = weights * unseen.counted + (1.0 - weights) * unseen.proxy
        found = fit_worths(estimate, unseen.contexts, unseen.tokens, unseen.certainty)
    return Fitted(share, shares, found.worth, found.worths, len(unseen.tokens), found.num_repeated)


def fit_shares(counted: Floats, proxy: Floats, strata: Ints) -> tuple[float, Floats]:
    """The shares of the counts under which the written tokens are likeliest.

    Args:
        counted: P(y), float64 [n].
        proxy: pi(y), float64 [n].
        strata: int64 [n].

    Returns:
        Of all positions together (0.5 if there are none), and of each stratum, float64 [num_strata]; what no position
        is in has that of all.
    """
    overall = float(_best_shares(counted, proxy, np.zeros(len(counted), np.int64), 1, 0.5, _IMAGINED_POSITIONS)[0])
    shares = _best_shares(counted, proxy, strata, _ORDERS * _SIZES, overall, _IMAGINED_POSITIONS)
    return overall, shares


def _best_shares(counted: Floats, proxy: Floats, strata: Ints, num: int, towards: float, imagined: float) -> Floats:
    """Of each stratum argmax_w sum log(w P + (1 - w) pi) + imagined (c log w + (1 - c) log(1 - w)), c = towards."""
    gain = counted - proxy
    low, high = np.zeros(num), np.ones(num)
    # The sum is concave: its slope falls, and is bisected.
    for _ in range(60):
        middle = 0.5 * (low + high)
        weights = middle[strata]
        mixed = np.maximum(weights * counted + (1.0 - weights) * proxy, _LEAST_PROB)
        slopes = np.bincount(strata, gain / mixed, minlength=num) + imagined * (
            towards / np.maximum(middle, 1e-300) - (1.0 - towards) / np.maximum(1.0 - middle, 1e-300)
        )
        low, high = np.where(slopes > 0.0, middle, low), np.where(slopes > 0.0, high, middle)
    return 0.5 * (low + high)


class Worths(NamedTuple):
    """``Fitted``'s fields of the same names."""

    worth: float
    worths: Floats
    num_repeated: int


def share_worths(worth: float | None) -> Worths:
    """One worth for every certainty; None = 1."""
    given = 1.0 if worth is None else min(float(worth), _WORTH_RANGE[1])
    return Worths(given, np.full(len(CERTAINTY_EDGES) + 1, given), 0)


def fit_worths(estimate: Floats, contexts: Ints, tokens: Ints, certainty: Floats) -> Worths:
    """What the estimate is worth in draws from the teacher, from prefixes that were continued several times.

    Args:
        estimate: m(y), float64 [n].
        contexts: int64 [n], as in ``Unseen``.
        tokens: y, int64 [n].
        certainty: float64 [n].

    Returns:
        Of all together and of each range of certainty; 1 each and ``num_repeated`` 0 where nothing is repeated.
    """
    repeats = _Repeats.of(estimate, contexts, tokens, certainty)
    if not len(repeats.totals):
        return share_worths(None)
    # Without this, one prefix whose continuations agree would call the estimate worthless, and another one sure.
    worth = repeats.best(lambda log_worths: 0.5 * (log_worths / _LOG_WORTH_WIDTH) ** 2)
    centre = np.log(worth)

    def penalty(log_worths: Floats) -> Floats:
        return np.asarray(0.5 * ((log_worths - centre) / _LOG_WORTH_DEVIATION) ** 2)

    bins = np.digitize(repeats.certainty, CERTAINTY_EDGES)
    worths = [repeats.within(bins == one).best(penalty) for one in range(len(CERTAINTY_EDGES) + 1)]
    return Worths(worth, np.array(worths), len(repeats.totals))


class _Repeats(NamedTuple):
    """Prefixes that were continued several times: entries (prefix, token) and prefixes.

    probs, counts float64 and prefixes int64 [num_entries]; totals and certainty float64 [num_prefixes].
    """

    probs: Floats
    counts: Floats
    prefixes: Ints
    totals: Floats
    certainty: Floats

    @classmethod
    def of(cls, estimate: Floats, contexts: Ints, tokens: Ints, certainty: Floats) -> "_Repeats":
        pairs, first, counts = np.unique(np.stack([contexts, tokens]), axis=1, return_index=True, return_counts=True)
        _, starts, prefixes = np.unique(pairs[0], return_index=True, return_inverse=True)
        totals = np.bincount(prefixes, counts, minlength=len(starts)).astype(np.float64)
        found = cls(
            np.maximum(estimate[first], _LEAST_PROB), counts.astype(np.float64), prefixes, totals,
            certainty[first[starts]] if len(first) else np.zeros(0),
        )  # fmt: skip
        return found.within(totals > 1)

    def within(self, is_kept: NDArray[np.bool_]) -> "_Repeats":
        entries, numbers = is_kept[self.prefixes], np.cumsum(is_kept) - 1
        return _Repeats(
            self.probs[entries], self.counts[entries], numbers[self.prefixes[entries]],
            self.totals[is_kept], self.certainty[is_kept],
        )  # fmt: skip

    def log_likelihood(self, worth: float) -> float:
        """Sum of log p(c) over prefixes, without what does not depend on s."""
        from scipy.special import gammaln

        weighed = worth * self.probs
        entries = gammaln(weighed + self.counts) - gammaln(weighed)
        return float(entries.sum() + (gammaln(worth) - gammaln(worth + self.totals)).sum())

    def best(self, penalty: Callable[[Floats], Floats]) -> float:
        """argmax_s of the log-likelihood less ``penalty(log s)``: a grid, then a search between its neighbours."""
        from scipy.optimize import minimize_scalar

        def loss(log_worth: float) -> float:
            return float(penalty(np.array(log_worth))) - self.log_likelihood(float(np.exp(log_worth)))

        low, high = np.log(_WORTH_RANGE)
        grid = np.linspace(low, high, round(_STEPS_A_DECADE * (high - low) / np.log(10.0)) + 1)
        losses = [loss(point) for point in grid]
        at = int(np.argmin(losses))
        around = grid[max(0, at - 1)], grid[min(len(grid) - 1, at + 1)]
        refined = minimize_scalar(loss, bounds=around, method="bounded", options={"xatol": 1e-6})
        return float(np.exp(refined.x if refined.fun < losses[at] else grid[at]))

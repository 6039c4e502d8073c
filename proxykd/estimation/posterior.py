"""A prior over the teacher's next-token distribution, updated by draws: the conjugate Dirichlet step, token by token.

At one position let P be the teacher's unknown distribution, p0 the prior's mean (n-gram counts), pi the proxy's
distribution and kappa > 0 how many draws the prior is worth:

    P ~ Dirichlet(kappa p0),   k ~ Multinomial(N, pi)   =>   P | k ~ Dirichlet(kappa p0 + k)
    E[P_v | k] = (kappa p0(v) + k_v) / (kappa + N)
    with each k_v at its mean N pi(v):   lam p0(v) + (1 - lam) pi(v),   lam = kappa / (kappa + N)
    P_v | k ~ Beta(a_v, A - a_v),   a = kappa p0 + k,  A = kappa + N      (its quantiles are the credible interval)

Probabilities that an API tells enter as M draws from the teacher itself, of which M e_v hit the listed token v and the
rest M (1 - sum e) "some other token". A Dirichlet is neutral: what is learnt about a group's mass leaves the shares
inside the group as they were. So

    E[P_v] = (a_v + M e_v) / (A + M)                                        v listed
    E[P_v] = a_v / A_others * (A_others + M (1 - sum e)) / (A + M)          v not listed

Differs from the paper: arXiv:2401.07013v1 is said to update a density on a grid of [0, 1] for each token on its own and
to renormalise. The Dirichlet needs no grid, its estimates sum to 1 by themselves, and its limit needs no draws.

References:
    Chen et al., arXiv:2401.07013v1 (prior and posterior); Ferguson, A Bayesian Analysis of Some Nonparametric Problems,
    Annals of Statistics 1(2), 1973 (Dirichlet); Connor and Mosimann, JASA 64(325), 1969 (neutrality).
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from proxykd.estimation.estimates import Estimate, SparseProbs, densify, merge_tokens
from proxykd.exceptions import ShapeError


class Evidence(NamedTuple):
    """Probabilities that the teacher's API told, at some rows of a batch.

    Attributes:
        rows: long [num_rows], ascending, distinct.
        token_ids: long [num_rows, m], distinct within a row, -1 = no token.
        probs: float32 [num_rows, m], >= 0, at most 1 in all; what is missing from 1 belongs to tokens not listed.
    """

    rows: Tensor
    token_ids: Tensor
    probs: Tensor


def expected_posterior(prior: SparseProbs, logits: Tensor, *, kappa: Tensor, draws: Tensor | float) -> Estimate:
    """The posterior mean where every token is hit as often as on average: ``lam p0 + (1 - lam) pi``.

    Args:
        prior: p0 at each position.
        logits: The proxy's scores, float32 [n, vocab]; overwritten.
        kappa: Draws that the prior is worth, float64 [n], >= 0.
        draws: N >= 0, of all rows or float64 [n]; kappa + draws > 0 in every row.

    Returns:
        Dense, normalised, of concentration kappa + draws.
    """
    total = kappa + draws
    logits -= (logits.logsumexp(dim=-1).double() - (draws / total).log()).to(logits.dtype)[:, None]
    ids = prior.token_ids.clamp_min(0)
    # log 0 is -inf: logaddexp leaves the other side as it is.
    share = (kappa / total).log()[:, None].to(logits.dtype)
    added = torch.logaddexp(logits.gather(1, ids), prior.probs.log() + share)
    # A padding slot must not write over the true entry of token 0.
    spots = _spots(prior.token_ids)
    logits[spots] = added[prior.token_ids >= 0]
    return Estimate(logits, None, total)


def sampled_posterior(prior: SparseProbs, drawn: Tensor, *, kappa: Tensor, worth: Tensor | None = None) -> Estimate:
    """The posterior mean after real draws: ``(kappa p0 + k) / (kappa + N)``.

    Args:
        prior: p0 at each position.
        drawn: The tokens drawn from the proxy, long [n, N]; N may be 0.
        kappa: Draws that the prior is worth, float64 [n], >= 0; kappa + N > 0 in every row.
        worth: What all N draws of a row together are worth, float64 [n], >= 0; None = N.

    Returns:
        Sparse, normalised, of concentration kappa + worth.
    """
    num = drawn.shape[1]
    evidence = torch.full_like(kappa, num) if worth is None else worth
    total = kappa + evidence
    weighed = prior.probs.double() * (kappa / total)[:, None]
    hits = (evidence / total / max(num, 1))[:, None].expand(-1, num)
    ids = torch.cat([torch.where(weighed > 0.0, prior.token_ids, -1), drawn], dim=1)
    merged = merge_tokens(ids, torch.cat([weighed, hits], dim=1))
    return Estimate(merged.probs.log().float(), merged.token_ids, total)


def with_evidence(estimate: Estimate, evidence: Evidence, *, weight: float, vocab_size: int) -> Estimate:
    """The posterior after the API's probabilities, each row of them worth ``weight`` draws from the teacher.

    Args:
        estimate: A posterior, normalised; overwritten where it is dense.
        evidence: What the API told.
        weight: M > 0.
        vocab_size: Columns of the result.

    Returns:
        Dense; rows without evidence are as they were, the others have concentration A + M.

    Raises:
        ShapeError: if the estimate has no concentration to weigh the evidence against.
    """
    if estimate.concentration is None:
        raise ShapeError("expected an estimate with a concentration, got one without; update a posterior")
    scores, concentration = densify(estimate, vocab_size), estimate.concentration.clone()
    if len(rows := evidence.rows):
        scores[rows], concentration[rows] = _updated(scores[rows], concentration[rows], evidence, weight)
    return Estimate(scores, None, concentration)


def _updated(scores: Tensor, concentration: Tensor, evidence: Evidence, weight: float) -> tuple[Tensor, Tensor]:
    """Log-means and concentrations of the rows that have evidence."""
    listed, spots = evidence.token_ids >= 0, _spots(evidence.token_ids)
    told = torch.where(listed, evidence.probs.double(), 0.0)
    others = scores.double().exp()
    own = torch.where(listed, others.gather(1, evidence.token_ids.clamp_min(0)), 0.0)
    # The mass outside the list is summed, not subtracted: it keeps its precision however small it is.
    others[spots] = 0.0
    rest, untold = others.sum(dim=1), (1.0 - told.sum(dim=1)).clamp_min(0.0)
    # Where the estimate knows no other token, what the list leaves out has nowhere to go.
    untold = torch.where(rest > 0.0, untold, 0.0)
    total = concentration + weight * (told.sum(dim=1) + untold)
    scale = (concentration + weight * torch.where(rest > 0.0, untold / rest, 0.0)) / total
    after = others.mul_(scale[:, None])
    after[spots] = ((concentration[:, None] * own + weight * told) / total[:, None])[listed]
    return after.log().to(scores.dtype), total


def _spots(token_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Rows and columns of all tokens, padding left out."""
    used = token_ids >= 0
    rows = torch.arange(len(token_ids), device=token_ids.device)[:, None].expand_as(token_ids)
    return rows[used], token_ids[used]


def credible_interval(
    probs: NDArray[np.floating[Any]], concentration: NDArray[np.floating[Any]], *, level: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The interval that holds a token's true probability with probability ``level``, as the posterior sees it.

    Equal tails of Beta(A p, A (1 - p)), the marginal of Dirichlet(A p).

    Args:
        probs: Posterior means, any shape, in [0, 1].
        concentration: A > 0, of a shape that can be broadcast to that of ``probs``.
        level: In (0, 1).

    Returns:
        Lower and upper ends, of the same shape; both 0 where the mean is 0, both 1 where it is 1.

    Example:
        >>> low, high = credible_interval(np.array([0.5]), np.array(2.0), level=0.9)
        >>> low.round(4).tolist(), high.round(4).tolist()
        ([0.05], [0.95])
    """
    from scipy.special import betaincinv

    means = np.clip(np.asarray(probs, np.float64), 0.0, 1.0)
    is_inside = (means > 0.0) & (means < 1.0)
    inner = np.where(is_inside, means, 0.5)
    first, second = concentration * inner, concentration * (1.0 - inner)
    tail = (1.0 - level) / 2.0
    ends = (betaincinv(first, second, tail), betaincinv(first, second, 1.0 - tail))
    low, high = (np.where(is_inside, end, means) for end in ends)
    return low, high

"""Divergences between next-token distributions: un-reduced, in nats, computed in float32 (float64 stays float64).

outcomes   the formulas, between two distributions over the same outcomes
dense      over the whole vocabulary, from the student's scores
buckets    the student's probabilities of k tokens, of all others together, and of the label, in one pass
bucketed   over k tokens and a tail bucket: what sparse targets are learnt with

The modules know tensors only: no padding of sequences (callers pass the positions that count) and no reduction.
"""

from proxykd.divergences.bucketed import bucketed_divergence, bucketed_forward_kl, sparse_forward_kl
from proxykd.divergences.buckets import BucketedLogprobs, bucketed_logprobs
from proxykd.divergences.dense import dense_divergence, forward_kl
from proxykd.divergences.outcomes import Divergence

__all__ = [
    "BucketedLogprobs",
    "Divergence",
    "bucketed_divergence",
    "bucketed_forward_kl",
    "bucketed_logprobs",
    "dense_divergence",
    "forward_kl",
    "sparse_forward_kl",
]

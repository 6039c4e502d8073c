"""Sample weights: how well the aligned proxy explains a text decides how much its distributions may teach (Eq. 9).

    w(x, y) = sigmoid((l(x, y) - mu) / gamma),    mu, gamma = mean and standard deviation of l over the distillation set

where l is the proxy's log-likelihood of the teacher's text: its sum over tokens as the equation is written, or its
mean over tokens, which takes the length out of it. Statistics are accumulated while the samples stream by.

References:
    Chen et al., Knowledge Distillation of Black-Box Large Language Models, arXiv:2401.07013, Eq. (9).
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Weighting = Literal["mean", "sum", "none"]


class RunningMoments:
    """Mean, variance and correlation of pairs (first, second) that stream by, in constant memory.

    Blocks are merged by the pairwise update of Chan, Golub and LeVeque, which does not cancel for large means.

    Attributes:
        num_pairs: Pairs seen.
        mean: Means of both components, float64 [2]; 0 before the first pair.
    """

    def __init__(self) -> None:
        self.num_pairs = 0
        self.mean = np.zeros(2)
        self._deviations = np.zeros((2, 2))

    def update(self, first: NDArray[np.floating[Any]], second: NDArray[np.floating[Any]]) -> None:
        """Take in a block of pairs, both arrays [rows]."""
        if not len(first):
            return
        block = np.stack([first, second]).astype(np.float64)
        block_mean = block.mean(axis=1)
        centred = block - block_mean[:, None]
        self._absorb(len(first), block_mean, centred @ centred.T)

    def _absorb(self, num_pairs: int, mean: NDArray[np.float64], deviations: NDArray[np.float64]) -> None:
        shift, total = mean - self.mean, self.num_pairs + num_pairs
        self._deviations += deviations + np.outer(shift, shift) * (self.num_pairs * num_pairs / total)
        self.mean = self.mean + shift * (num_pairs / total)
        self.num_pairs = total

    def to_json(self) -> dict[str, Any]:
        """All of it, exactly, for ``add``."""
        return {"num_pairs": self.num_pairs, "mean": self.mean.tolist(), "deviations": self._deviations.tolist()}

    def add(self, sums: Mapping[str, Any]) -> None:
        """Take in what another one has seen.

        Args:
            sums: Its ``to_json``.
        """
        if sums["num_pairs"]:
            self._absorb(sums["num_pairs"], np.array(sums["mean"]), np.array(sums["deviations"]))

    @property
    def std(self) -> NDArray[np.float64]:
        """Population standard deviations of both components, float64 [2]; 0 before the first pair."""
        return np.sqrt(np.diag(self._deviations) / max(self.num_pairs, 1))

    @property
    def correlation(self) -> float:
        """Pearson correlation in [-1, 1]; 0 where one component does not vary."""
        scale = math.sqrt(self._deviations[0, 0] * self._deviations[1, 1])
        return float(np.clip(self._deviations[0, 1] / scale, -1.0, 1.0)) if scale > 0.0 else 0.0


class SampleWeights:
    """Weights of a distillation set: observe every sample first, then weigh them.

    Args:
        weighting: ``mean`` or ``sum`` = sigmoid of the z-score of the log-likelihood per token or per text;
            ``none`` = every sample weighs 1.

    Differs from the paper: the default is the mean over tokens. With the sum, as Eq. (9) is written, the weight is
    mostly a function of the length (long texts have low sums), which ``facts`` makes visible.
    """

    def __init__(self, weighting: Weighting) -> None:
        self._weighting = weighting
        self._likelihoods, self._weights = RunningMoments(), RunningMoments()

    def observe(self, sequence_logprobs: NDArray[np.float64], lengths: NDArray[np.int64]) -> None:
        """Take a block of samples into mu and gamma.

        Args:
            sequence_logprobs: Sum of the proxy's token log-probabilities of each text, float [rows], nats.
            lengths: Tokens of each text, int [rows].
        """
        self._likelihoods.update(self._likelihoods_of(sequence_logprobs, lengths), lengths.astype(np.float64))

    def sums(self) -> dict[str, Any]:
        """What ``observe`` has gathered, for ``add``."""
        return self._likelihoods.to_json()

    def add(self, sums: Mapping[str, Any]) -> None:
        """Take the samples that another process observed into mu and gamma.

        Args:
            sums: Its ``sums``.
        """
        self._likelihoods.add(sums)

    def weigh(self, sequence_logprobs: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        """Weights in (0, 1), float [rows]; 0.5 for all if the log-likelihood does not vary."""
        if self._weighting == "none":
            weights = np.ones(len(sequence_logprobs))
        else:
            mean, std = self._likelihoods.mean[0], self._likelihoods.std[0]
            weights = sigmoid_of_zscore(self._likelihoods_of(sequence_logprobs, lengths), mean=mean, std=std)
        self._weights.update(weights, lengths.astype(np.float64))
        return weights

    def facts(self) -> dict[str, Any]:
        """Statistics for ``targets.json``, nats and tokens; complete once every sample has been weighed."""
        return {
            "weighting": self._weighting,
            "likelihood_mean": float(self._likelihoods.mean[0]),
            "likelihood_std": float(self._likelihoods.std[0]),
            "likelihood_length_correlation": self._likelihoods.correlation,
            "weight_mean": float(self._weights.mean[0]),
            "weight_std": float(self._weights.std[0]),
            "weight_length_correlation": self._weights.correlation,
            "completion_tokens_mean": float(self._likelihoods.mean[1]),
        }

    def _likelihoods_of(self, logprobs: NDArray[np.float64], lengths: NDArray[np.int64]) -> NDArray[np.float64]:
        return logprobs if self._weighting == "sum" else logprobs / np.maximum(lengths, 1)


def sigmoid_of_zscore(values: NDArray[np.float64], *, mean: float, std: float) -> NDArray[np.float64]:
    """``sigmoid((values - mean) / std)``, in (0, 1); 0.5 for all where std is 0.

    A spread below the rounding error of the mean counts as 0: it says nothing about the samples.

    Example:
        >>> sigmoid_of_zscore(np.array([-2.0, -1.0]), mean=-1.5, std=0.5).round(4).tolist()
        [0.2689, 0.7311]
    """
    if std <= 1e-12 * max(1.0, abs(mean)):
        return np.full(len(values), 0.5)
    scores = (values - mean) / std
    return np.exp(-np.logaddexp(0.0, -scores))

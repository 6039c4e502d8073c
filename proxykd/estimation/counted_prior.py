"""The n-gram prior (``prior``) of a batch of texts, as tensors.

What the prior leaves to tokens that it does not list (``max_tokens``) is spread over those it lists, in proportion:
neither the posterior nor a drawn target has a place for "some other token". ``tail_mean`` says how much that is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from proxykd.config.prior import PriorSpec
from proxykd.data.tokenizing import Example, TokenizedCorpus
from proxykd.estimation.estimates import PriorRows, SparseProbs
from proxykd.estimation.ngrams import NgramCounts
from proxykd.estimation.prior import prior_rows


@dataclass
class CountedPrior:
    """Looks texts up in the counts of the teacher's corpus.

    Attributes:
        counts: The counts.
        spec: Order, gamma, back-off.
    """

    counts: NgramCounts
    spec: PriorSpec
    _num_positions: int = field(default=0, init=False)
    _num_no_evidence: int = field(default=0, init=False)
    _tail_sum: float = field(default=0.0, init=False)

    @classmethod
    def build(cls, corpus: TokenizedCorpus, spec: PriorSpec, *, folder: Path) -> "CountedPrior":
        """Count a corpus.

        Args:
            corpus: Every text of the teacher's that may be counted.
            spec: Order, gamma, back-off.
            folder: Where the counts go.
        """
        return cls(NgramCounts.build(corpus, spec.order, folder), spec)

    def rows_of(self, examples: Sequence[Example]) -> PriorRows:
        """The prior at every completion token of the examples, one text after the other."""
        parts = [prior_rows(self.counts, example, self.spec) for example in examples]
        self._num_positions += sum(len(part.tail) for part in parts)
        self._num_no_evidence += sum(part.num_no_evidence for part in parts)
        self._tail_sum += float(sum(part.tail.sum(dtype=np.float64) for part in parts))
        ids = np.concatenate([part.token_ids for part in parts])
        width = max(1, int((ids >= 0).sum(axis=1).max(initial=1)))
        probs = np.concatenate([part.probs for part in parts])[:, :width].astype(np.float64)
        probs /= probs.sum(axis=1, keepdims=True)
        observed = np.concatenate([part.observed for part in parts])
        listed = SparseProbs(torch.from_numpy(ids[:, :width].astype(np.int64)), torch.from_numpy(probs).float())
        orders = np.concatenate([part.orders for part in parts]).astype(np.int64)
        return PriorRows(listed, torch.from_numpy(observed), torch.from_numpy(orders))

    def sums(self) -> dict[str, Any]:
        """Counts for ``prior_facts``; complete once every text has been looked up."""
        return {
            "num_tokens": self.counts.num_tokens,
            "num_examples": self.counts.num_examples,
            "num_positions": self._num_positions,
            "num_no_evidence": self._num_no_evidence,
            "tail_sum": self._tail_sum,
        }


def prior_facts(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """For ``targets.json``.

    Args:
        parts: ``CountedPrior.sums`` of each portion of the texts; all looked up in counts of the same corpus.
    """
    total = max(1, sum(part["num_positions"] for part in parts))
    return {
        "num_tokens": parts[0]["num_tokens"],
        "num_examples": parts[0]["num_examples"],
        "no_evidence_share": sum(part["num_no_evidence"] for part in parts) / total,
        "tail_mean": sum(part["tail_sum"] for part in parts) / total,
    }

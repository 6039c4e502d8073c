"""The prior at every position of a text: for now the token that stands there (gamma without bound)."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from proxykd.config.estimation import NgramSpec
from proxykd.data.tokenizing import Example, TokenizedCorpus
from proxykd.estimation.estimates import SparseProbs


class HardLabelPrior:
    """All of the mass on the token that stands there."""

    def probs_of(self, examples: Sequence[Example]) -> SparseProbs:
        """One row for each completion token."""
        labels = torch.from_numpy(np.concatenate([example.completion_ids for example in examples])).long()
        return SparseProbs(labels[:, None], torch.ones(len(labels), 1))

    def facts(self) -> dict[str, Any]:
        """For ``targets.json``."""
        return {"kind": "hard label"}


def build_prior(corpus: TokenizedCorpus, spec: NgramSpec, *, vocab_size: int) -> HardLabelPrior:
    """The prior of a corpus."""
    return HardLabelPrior()

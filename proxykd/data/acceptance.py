"""How often completions check out: of all rows, of each prompt's samples, and at least once in k samples."""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from proxykd.data.verifiers import Check


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a verifier made of a corpus.

    Attributes:
        num_prompts: Prompts with at least one checked row.
        num_rows: Checked rows.
        num_passed: Rows that checked out.
        num_prompts_passed: Prompts of which at least one row did.
        pass_at_k: k -> mean over the prompts with at least k rows of the estimate for one prompt; a k that no prompt
            reaches is left out.
        reasons: Code of ``Check.code`` -> rows that failed for it, most frequent first.
    """

    num_prompts: int
    num_rows: int
    num_passed: int
    num_prompts_passed: int
    pass_at_k: dict[int, float]
    reasons: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """As JSON; the keys of ``pass_at_k`` become texts."""
        return {
            "num_prompts": self.num_prompts,
            "num_rows": self.num_rows,
            "num_passed": self.num_passed,
            "num_prompts_passed": self.num_prompts_passed,
            "pass_at_k": {str(k): value for k, value in self.pass_at_k.items()},
            "reasons": self.reasons,
        }


def measure_acceptance(checks: Iterable[tuple[str, Check]], *, ks: Sequence[int] = (1,)) -> Acceptance:
    """Count the checks of a corpus in one pass; holds the counts of one prompt in memory.

    Args:
        checks: (prompt id, check); the rows of a prompt stand together.
        ks: Which pass@k to estimate, each >= 1.
    """
    num_prompts = num_rows = num_passed = num_prompts_passed = 0
    reasons: Counter[str] = Counter()
    sums, counts = dict.fromkeys(ks, 0.0), dict.fromkeys(ks, 0)
    for _, group in groupby(checks, key=lambda pair: pair[0]):
        samples = passed = 0
        for _, check in group:
            samples += 1
            passed += check.passed
            if not check.passed:
                reasons[check.code] += 1
        num_prompts, num_rows, num_passed = num_prompts + 1, num_rows + samples, num_passed + passed
        num_prompts_passed += passed > 0
        for k in ks:
            if k <= samples:
                sums[k], counts[k] = sums[k] + pass_at_k(samples, passed, k), counts[k] + 1
    means = {k: sums[k] / counts[k] for k in ks if counts[k]}
    return Acceptance(num_prompts, num_rows, num_passed, num_prompts_passed, means, dict(reasons.most_common()))


def pass_at_k(num_samples: int, num_passed: int, k: int) -> float:
    """Estimated probability that at least one of ``k`` samples passes, unbiased for independent samples.

    1 - C(n - c, k) / C(n, k): of all ways to take k of the n samples, the share that holds one of the c that passed.

    Args:
        num_samples: n >= k.
        num_passed: c, 0 .. n.
        k: >= 1.

    Returns:
        0 .. 1.

    Raises:
        ValueError: if the numbers do not fit together.

    Example:
        >>> pass_at_k(4, 1, 2)
        0.5

    References: Chen et al., Evaluating Large Language Models Trained on Code, arXiv:2107.03374, Eq. (1).
    """
    if not (1 <= k <= num_samples and 0 <= num_passed <= num_samples):
        raise ValueError(
            f"expected 1 <= k <= num_samples and 0 <= num_passed <= num_samples, got k={k}, "
            f"num_samples={num_samples}, num_passed={num_passed}"
        )
    return 1.0 - math.comb(num_samples - num_passed, k) / math.comb(num_samples, k)

"""What a run's answers cost: the teacher's and the judge's, in one place for report, gate, lineage, tracker and page.

spend = {
    num_completions, outcomes, prompt_tokens, completion_tokens, cost_usd, teachers?: what the teacher was asked,
    judge:  {requests, prompt_tokens, completion_tokens, cost_usd}, where a model judged: of the arms, and of the
            champion once the student has been compared with it,
}
"""

from collections.abc import Mapping
from typing import Any

JUDGE = "judge"
"""Key of the judge's part."""

_TOKENS = ("prompt_tokens", "completion_tokens")


def with_judge(spend: Mapping[str, Any], costs: Mapping[str, float]) -> dict[str, Any]:
    """The spend with what asking a judge cost added to the judge's part.

    Args:
        spend: Of the run so far; not changed.
        costs: As ``FollowUp.costs`` has them.

    Example:
        >>> with_judge({"cost_usd": 1.0, "judge": {"requests": 2}}, {"requests": 3, "cost_usd": 0.5})
        {'cost_usd': 1.0, 'judge': {'requests': 5, 'cost_usd': 0.5}}
    """
    before = spend.get(JUDGE, {})
    return {**spend, JUDGE: {**before, **{name: before.get(name, 0) + cost for name, cost in costs.items()}}}


def total_usd(spend: Mapping[str, Any]) -> float | None:
    """USD of teacher and judge together; None if neither is known.

    Example:
        >>> total_usd({"cost_usd": 1.0, "judge": {"cost_usd": 0.5}}), total_usd({})
        (1.5, None)
    """
    known = [one["cost_usd"] for one in (spend, spend.get(JUDGE, {})) if one.get("cost_usd") is not None]
    return float(sum(known)) if known else None


def num_tokens(spend: Mapping[str, Any]) -> int:
    """Tokens to and from whoever the spend, or its part, is of.

    Example:
        >>> num_tokens({"prompt_tokens": 30, "completion_tokens": 12})
        42
    """
    return int(sum(spend.get(name, 0) for name in _TOKENS))

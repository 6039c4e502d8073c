"""A judge's replies -> scores -> who won: pure functions.

Every pair is judged in both orders, because judges favour a place; with s_12 the scores where the arm stands first and
s_21 those where it stands second (Lion, arXiv 2305.12870, section 3.2),

    score(arm) = (s_12(arm) + s_21(arm)) / 2,     win if score(arm) - score(other) > tie margin, loss if < -margin.

An explanation comes before the scores, so the scores stand in the last lines; a reply without them is unparsable.
"""

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

LEAST, MOST = 1.0, 10.0
"""Range of a score."""

_SCORE = re.compile(
    r"^[\s*_#>`-]*score[\s*_]*([12])[\s*_]*[:=][\s*_]*(-?\d+(?:\.\d+)?)[\s*_]*(?:/\s*10)?[\s*_.`]*$", re.I
)


class Scores(NamedTuple):
    """One reply's scores.

    Attributes:
        first: Of the answer that stands first, 1 to 10.
        second: Of the answer that stands second; NaN where there was only one.
    """

    first: float
    second: float


class Pair(NamedTuple):
    """What the judge made of two answers to one prompt.

    Attributes:
        prompt_id: The prompt.
        forward: Scores with the arm's answer first; None = never readable.
        backward: Scores with the arm's answer second; None = never readable.
    """

    prompt_id: str
    forward: Scores | None
    backward: Scores | None

    @property
    def is_judged(self) -> bool:
        """Whether both orders have scores; one alone would carry the bias of its place."""
        return self.forward is not None and self.backward is not None

    @property
    def score(self) -> float:
        """The arm's mean score over the orders; NaN unless judged."""
        return _mean(self.forward, 0, self.backward, 1)

    @property
    def score_against(self) -> float:
        """The other's mean score over the orders; NaN unless judged."""
        return _mean(self.forward, 1, self.backward, 0)


def _mean(forward: Scores | None, place: int, backward: Scores | None, other_place: int) -> float:
    if forward is None or backward is None:
        return math.nan
    return (forward[place] + backward[other_place]) / 2


def read_scores(reply: str, count: int) -> Scores | None:
    r"""The scores in the last lines of a reply; None if they are not there, or not between 1 and 10.

    Args:
        reply: The judge's text.
        count: 2 for a pair, 1 for one answer alone.

    Example:
        >>> read_scores("Both are right, the first is clearer.\nScore 1: 8\nScore 2: 6.5", 2)
        Scores(first=8.0, second=6.5)
    """
    lines = [line for line in reply.splitlines() if line.strip().strip("`")]
    found = [_SCORE.match(line) for line in lines[-count:]]
    if len(found) < count or not all(found):
        return None
    numbers = {match[1]: float(match[2]) for match in found if match}
    if sorted(numbers) != ["1", "2"][:count] or not all(LEAST <= score <= MOST for score in numbers.values()):
        return None
    return Scores(numbers["1"], numbers.get("2", math.nan))


def points(pair: Pair, tie_margin: float) -> float:
    """1 for a win of the arm, 0.5 for a tie, 0 for a loss; NaN unless judged."""
    difference = pair.score - pair.score_against
    if math.isnan(difference):
        return math.nan
    return 0.5 if abs(difference) <= tie_margin else float(difference > 0)


def consistency(pairs: Sequence[Pair], tie_margin: float) -> dict[str, Any]:
    """How far the judge agrees with itself when the answers change places.

    Returns:
        ``num_pairs`` judged in both orders; ``agreement``, the share whose winner (or tie) is the same in both;
        ``first_preferred``, the mean share of points that goes to the answer that stands first (0.5 = no bias of
        place), both None without pairs.
    """
    judged = [(pair.forward, pair.backward) for pair in pairs if pair.forward and pair.backward]
    if not judged:
        return {"num_pairs": 0, "agreement": None, "first_preferred": None}
    signs = np.asarray([(_sign(one, tie_margin), -_sign(other, tie_margin)) for one, other in judged])
    to_first = np.concatenate([signs[:, 0], -signs[:, 1]])
    return {
        "num_pairs": len(judged),
        "agreement": float((signs[:, 0] == signs[:, 1]).mean()),
        "first_preferred": float((1 + to_first).mean() / 2),
    }


def _sign(scores: Scores, tie_margin: float) -> int:
    difference = scores.first - scores.second
    return 0 if abs(difference) <= tie_margin else (1 if difference > 0 else -1)

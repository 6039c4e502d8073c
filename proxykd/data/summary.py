"""What a validation found, in numbers that do not grow with the rows: the content of ``result.json``."""

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from proxykd.data.judging import JudgedRow, question_of
from proxykd.data.quality import Verdict
from proxykd.records import Outcome, Side

RULES = tuple(verdict for verdict in Verdict if verdict is not Verdict.KEEP)
"""Every rule, in order."""

_OFFENDERS_PER_VERDICT = 3
_EXCERPT_CHARS = 200
_BINS_PER_DOUBLING = 2


@dataclass
class Summary:
    """Counts over rows as they pass."""

    outcomes: Counter[str] = field(default_factory=Counter)
    verdicts: Counter[str] = field(default_factory=Counter)
    kept_by_side: Counter[str] = field(default_factory=Counter)
    measured: Counter[str] = field(default_factory=Counter)
    broken: Counter[str] = field(default_factory=Counter)
    chars: Counter[int] = field(default_factory=Counter)
    tokens: Counter[int] = field(default_factory=Counter)
    num_released: int = 0
    offenders: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, judged: JudgedRow) -> None:
        """Count a row."""
        row = judged.row
        self.outcomes[row.outcome] += 1
        self.verdicts[row.verdict] += 1
        self.measured.update(judged.measured)
        self.broken.update(found.rule for found in row.findings)
        self.num_released += bool(row.released)
        if row.text:
            self.chars[length_bin(len(row.text))] += 1
        if judged.num_tokens is not None:
            self.tokens[length_bin(judged.num_tokens)] += 1
        if row.verdict == Verdict.KEEP:
            self.kept_by_side[judged.side] += 1
        elif len(rows := self.offenders.setdefault(row.verdict, [])) < _OFFENDERS_PER_VERDICT:
            rows.append(_offender(judged))

    def to_json(self) -> dict[str, Any]:
        """The counts; every name in its fixed order, so that the same rows give the same text."""
        return {
            "num_rows": self.verdicts.total(),
            "num_released": self.num_released,
            "outcomes": {outcome.value: self.outcomes[outcome] for outcome in Outcome},
            "verdicts": {verdict.value: self.verdicts[verdict] for verdict in Verdict},
            "kept_by_side": {side.value: self.kept_by_side[side] for side in Side},
            "rules": {rule.value: {"broken": self.broken[rule], "measured": self.measured[rule]} for rule in RULES},
            "lengths": {
                "chars": {str(idx): count for idx, count in sorted(self.chars.items())},
                "tokens": {str(idx): count for idx, count in sorted(self.tokens.items())},
            },
            "offending_rows": [row for verdict in Verdict for row in self.offenders.get(verdict, [])],
        }


def length_bin(length: int) -> int:
    """The bin of a length: bins grow with it, two to a doubling.

    Example:
        >>> [length_bin(length) for length in (0, 1, 2, 3, 100, 200)]
        [0, 2, 3, 4, 13, 15]
    """
    return int(_BINS_PER_DOUBLING * math.log2(length + 1))


def _offender(judged: JudgedRow) -> dict[str, Any]:
    row = judged.row
    return {
        "prompt_id": row.prompt_id,
        "sample_idx": row.sample_idx,
        "verdict": row.verdict,
        "reason": judged.reason or next(found.detail for found in row.findings if found.rule == row.verdict),
        "also": [found.rule for found in row.findings if found.rule != row.verdict],
        "question": question_of(row.messages)[:_EXCERPT_CHARS],
        "text": row.text[:_EXCERPT_CHARS],
    }

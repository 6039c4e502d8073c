"""All duels or grades of a run -> win rates, strengths and the judge's consistency, as the report shows them.

    report["judge"] = {
        model, kind, tie_margin, requests, prompt_tokens, completion_tokens, cost_usd,
        fates:         scored, unparsable, refused, ... -> requests,
        duels:         [{arm, against, wins, ties, losses, num_unjudged, win_rate, score, score_against, consistency}],
        strengths:     arm -> {value, low, high}, Bradley-Terry over all duels,
        grades:        arm -> {value, low, high, num_ungraded},
    }

A win rate counts a tie as half. Prompts that were not judged are in no rate; their number stands beside it.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from proxykd.config.evaluation import EvaluationSpec
from proxykd.evaluation import statistics
from proxykd.evaluation.bradley_terry import strength_intervals
from proxykd.evaluation.comparing import number, settings_of
from proxykd.evaluation.judge import Grade, Judge, duels_of
from proxykd.evaluation.rating import LEAST, MOST, Pair, consistency, points
from proxykd.records import Message

Answers = Mapping[str, Mapping[str, str]]
"""Arm -> prompt id -> its answer."""

_COSTS = ("requests", "prompt_tokens", "completion_tokens", "cost_usd")


class Judged(NamedTuple):
    """What the judge made of a run's answers.

    Attributes:
        pairs: (arm, against) -> one pair a prompt; empty if the judge graded.
        grades: Arm -> one grade a prompt; empty if the judge compared.
    """

    pairs: Mapping[tuple[str, str], Sequence[Pair]]
    grades: Mapping[str, Sequence[Grade]]

    def rows(self) -> list[dict[str, Any]]:
        """A row a verdict: arm, against (None if graded), prompt id, and the scores (None = not readable)."""
        rows: list[dict[str, Any]] = []
        for (arm, against), pairs in self.pairs.items():
            for pair in pairs:
                scores = {"forward": pair.forward, "backward": pair.backward}
                plain = {name: None if value is None else list(value) for name, value in scores.items()}
                rows.append({"arm": arm, "against": against, "prompt_id": pair.prompt_id, **plain})
        for arm, grades in self.grades.items():
            for grade in grades:
                forward = None if grade.score is None else [grade.score]
                rows.append(
                    {"arm": arm, "against": None, "prompt_id": grade.prompt_id, "forward": forward, "backward": None}
                )
        return rows


def judge_answers(judge: Judge, messages: Mapping[str, tuple[Message, ...]], answers: Answers) -> Judged:
    """Have the duels of the specification judged, as far as both sides have answers.

    Args:
        judge: Who judges.
        messages: Prompt id -> chat turns; the order decides which prompts a limit keeps.
        answers: Every contestant's; the teacher's own texts stand under ``teacher``.
    """
    wanted: list[tuple[str, str]] = [
        (duel.arm, duel.against) for duel in judge.spec.duels if {duel.arm, duel.against} <= answers.keys()
    ]
    if judge.spec.kind == "graded":
        arms = dict.fromkeys(chain.from_iterable(wanted))
        grades: dict[str, Sequence[Grade]] = {}
        for arm in arms:
            answered = ((one, turns, answers[arm][one]) for one, turns in messages.items() if one in answers[arm])
            grades[arm] = judge.grade(islice(answered, judge.spec.limit), name=arm)
        return Judged({}, grades)
    pairs: dict[tuple[str, str], Sequence[Pair]] = {}
    for arm, against in wanted:
        duels = list(duels_of(messages, answers[arm], answers[against], judge.spec.limit))
        pairs[arm, against] = judge.compare(duels, name=f"{arm}-{against}")
    return Judged(pairs, {})


def describe(judge: Judge, judged: Judged, evaluation: EvaluationSpec) -> dict[str, Any]:
    """The section ``judge`` of a report.

    Args:
        judge: Who judged.
        judged: What it said.
        evaluation: Confidence and resamples of the intervals.
    """
    spec = judge.spec
    outcomes = {duel: _points(pairs, spec.tie_margin) for duel, pairs in judged.pairs.items()}
    return {
        "model": spec.teacher.model,
        "kind": spec.kind,
        "tie_margin": spec.tie_margin,
        **judge.asking.costs,
        "fates": dict(judge.fates),
        "duels": [
            _duel(arm, against, judged.pairs[arm, against], outcomes[arm, against], spec.tie_margin, evaluation)
            for arm, against in judged.pairs
        ],
        "strengths": _strengths(judged, spec.tie_margin, evaluation),
        "grades": {arm: _grades(grades, evaluation) for arm, grades in judged.grades.items()},
    }


def merge_described(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """One section ``judge`` of two: the duels of both, their requests, costs and fates added up.

    Args:
        first: The arms', whose strengths and grades stay; {} = nobody judged them.
        other: Of the same judge, asked later.
    """
    if not first:
        return dict(other)
    fates = Counter(first["fates"])
    fates.update(other["fates"])
    added = {name: first[name] + other[name] for name in _COSTS}
    return {**first, **added, "fates": dict(fates), "duels": [*first["duels"], *other["duels"]]}


def duel_sums(pairs: Sequence[Pair], tie_margin: float) -> tuple[dict[str, tuple[float, float]], ...]:
    """Prompt id -> (points, 1) of the arm and of the other, sums as ``compare`` takes them; (0, 0) = not judged."""
    won = {pair.prompt_id: points(pair, tie_margin) if pair.is_judged else None for pair in pairs}
    return (
        {one: (0.0, 0.0) if share is None else (share, 1.0) for one, share in won.items()},
        {one: (0.0, 0.0) if share is None else (1.0 - share, 1.0) for one, share in won.items()},
    )


def _points(pairs: Sequence[Pair], tie_margin: float) -> NDArray[np.float64]:
    return np.asarray([points(pair, tie_margin) for pair in pairs], dtype=np.float64)


def _duel(
    arm: str,
    against: str,
    pairs: Sequence[Pair],
    outcomes: NDArray[np.float64],
    tie_margin: float,
    evaluation: EvaluationSpec,
) -> dict[str, Any]:
    judged = outcomes[~np.isnan(outcomes)]
    return {
        "arm": arm,
        "against": against,
        "wins": int((judged == 1.0).sum()),
        "ties": int((judged == 0.5).sum()),
        "losses": int((judged == 0.0).sum()),
        "num_unjudged": len(outcomes) - len(judged),
        "win_rate": _interval(judged, evaluation, is_judgement=True),
        "score": _mean([pair.score for pair in pairs if pair.is_judged]),
        "score_against": _mean([pair.score_against for pair in pairs if pair.is_judged]),
        "consistency": consistency(pairs, tie_margin),
    }


def _strengths(judged: Judged, tie_margin: float, evaluation: EvaluationSpec) -> dict[str, Any]:
    if not judged.pairs:
        return {}
    by_duel = {
        duel: {pair.prompt_id: points(pair, tie_margin) for pair in pairs} for duel, pairs in judged.pairs.items()
    }
    prompt_ids = list(dict.fromkeys(chain.from_iterable(by_duel.values())))
    outcomes = {
        duel: np.asarray([won.get(one, math.nan) for one in prompt_ids], dtype=np.float64)
        for duel, won in by_duel.items()
    }
    players = list(dict.fromkeys(chain.from_iterable(judged.pairs)))
    found = strength_intervals(players, outcomes, confidence=evaluation.confidence, resamples=evaluation.resamples)
    return {player: dict(zip(("value", "low", "high"), map(number, found[player]), strict=True)) for player in players}


def _grades(grades: Sequence[Grade], evaluation: EvaluationSpec) -> dict[str, Any]:
    scores = [grade.score for grade in grades if grade.score is not None]
    shares = (np.asarray(scores, dtype=np.float64) - LEAST) / (MOST - LEAST)
    found = _interval(shares, evaluation, is_judgement=True)
    ends = {name: None if end is None else LEAST + (MOST - LEAST) * end for name, end in found.items()}
    return {**ends, "num_ungraded": len(grades) - len(scores)}


def _interval(values: NDArray[np.float64], evaluation: EvaluationSpec, *, is_judgement: bool = False) -> dict[str, Any]:
    found = statistics.interval(statistics.arm(values), settings_of(evaluation), is_judgement=is_judgement)
    return {name: number(getattr(found, name)) for name in ("value", "low", "high")}


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None

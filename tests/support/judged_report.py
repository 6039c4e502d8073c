"""The judge's and the calibration's part of a made-up report."""

import math
import random
from typing import Any

DUELS = (("proxy_kd", "sft"), ("proxy_kd", "teacher"), ("sft", "teacher"), ("champion", "teacher"))


def judge(rng: random.Random, name: str, num_prompts: int = 200) -> dict[str, Any]:
    """``report["judge"]`` of a pairwise judge called ``name``."""
    strengths = {arm: _interval(rng.gauss(0, 0.6), 0.2) for arm in ("proxy_kd", "sft", "teacher", "champion")}
    return {
        "model": name,
        "kind": "pairwise",
        "tie_margin": 0.5,
        "requests": 2 * num_prompts * len(DUELS),
        "prompt_tokens": 10**6,
        "completion_tokens": 10**5,
        "cost_usd": 3.25,
        "fates": {"scored": 2 * num_prompts * len(DUELS) - 3, "unparsable": 3},
        "duels": [_duel(rng, arm, against, num_prompts) for arm, against in DUELS],
        "strengths": strengths,
        "grades": {},
    }


def _duel(rng: random.Random, arm: str, against: str, num_prompts: int) -> dict[str, Any]:
    wins = rng.randrange(20, num_prompts - 60)
    return {
        "arm": arm,
        "against": against,
        "wins": wins,
        "ties": 30,
        "losses": num_prompts - wins - 32,
        "num_unjudged": 2,
        "win_rate": _interval((wins + 15) / num_prompts, 0.06),
        "score": 6.1,
        "score_against": 7.25,
        "consistency": {"num_pairs": num_prompts - 2, "agreement": 0.83, "first_preferred": 0.56},
    }


def calibration(rng: random.Random, arms: list[str], num_tasks: int) -> dict[str, Any]:
    """``report["calibration"]``: the tokens and the first tasks, every arm a little surer than it should be."""
    sources = ["tokens", *(f"task-{task:02d}" for task in range(num_tasks))]
    return {source: {arm: _arm(rng, 0.05 * place) for place, arm in enumerate(arms)} for source in sources}


def _arm(rng: random.Random, surer: float) -> dict[str, Any]:
    bins = [
        {
            "low": place / 15,
            "high": (place + 1) / 15,
            "count": 10 + place * place,
            "confidence": (place + 0.5) / 15,
            "outcome": min(1.0, max(0.0, (place + 0.5) / 15 - surer * math.sin(place / 5) + rng.gauss(0, 0.02))),
        }
        for place in range(15)
    ]
    luck = {"by_luck": 0.012, "squared": 0.001, "num_outcomes": 1000, "num_prompts": 100}
    return {**_interval(0.02 + surer / 2, 0.01), "per_seed": {"0": 0.02 + surer / 2}, **luck, "bins": bins}


def _interval(value: float, half: float) -> dict[str, float]:
    return {"value": value, "low": value - half, "high": value + half}

"""report.json -> promote, keep or undecided: a pure function that reads no file and asks nobody.

What is registered is the model of the candidate's first seed, so that model is what is decided on, not the mean of
its seeds. The bar is the present champion, scored on the same held-out prompts; where there is none, it is the first
seed of the SFT arm (the student that the same teacher texts give without the method) together with the stated floor.
With the interval [low, high] of the paired difference in held-out NLL, candidate - bar, and the margin m of the
specification:

    promote      high < -m         better by more than the margin, whatever prompts had been drawn
    keep         low >= -m         not better by more than the margin
    undecided    otherwise, or whenever something that the decision needs was not measured

Only "promote" changes the champion.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from proxykd.config.specification import RegistrySpec

METRIC = "heldout_nll"
CANDIDATE = "proxy_kd"
REGISTERED = "registered"
"""The candidate's first seed, the model that is registered."""
CHAMPION = "champion"
BASELINE = "sft"
FIRST_BASELINE = "first_sft"
"""The SFT arm's first seed."""

Outcome = Literal["promote", "keep", "undecided"]


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of the gate and what became of it.

    Attributes:
        name: The rule: ``primary against champion``, ``guard top1_agreement against first_sft``, ``limit usd`` ...
        passed: True, False, or None where that cannot be said.
        text: A sentence with the numbers; for None, what to do next.
    """

    name: str
    passed: bool | None
    text: str


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of the candidate.

    Attributes:
        outcome: promote, keep (the present champion, or none) or undecided.
        reasons: Sentences with the numbers that decided, the most important first.
        checks: Every rule of the gate, in the order of the policy.
        expected_champion: Version that was champion when this was decided; None = there was none.
    """

    outcome: Outcome
    reasons: tuple[str, ...]
    checks: tuple[Check, ...] = ()
    expected_champion: str | None = None


def decide(report: Mapping[str, Any], registry: RegistrySpec, champion: Mapping[str, Any] | None) -> Decision:
    """Decide about the student of a report.

    Args:
        report: Content of ``report.json``, extended by ``compare_registered`` or, with a champion, by
            ``compare_with_champion``.
        registry: Floor and margin.
        champion: What the registry says of the present champion (``version``); None = there is none.
    """
    if champion is not None:
        return _against_bar(report, registry, CHAMPION, f"champion version {champion.get('version', '?')}")
    if (blocked := _below_floor(report, registry)) is not None:
        return blocked
    return _against_bar(report, registry, FIRST_BASELINE, "the SFT arm's first seed")


def _below_floor(report: Mapping[str, Any], registry: RegistrySpec) -> Decision | None:
    floor = registry.max_heldout_nll
    if floor is None:
        return None
    value = registered_nll(report)
    if value is None:
        return Decision("undecided", (f"the held-out NLL of {CANDIDATE} was not measured, the floor is {floor:g}",))
    if value > floor:
        return Decision("keep", (f"held-out NLL {value:.4f} is above the floor of {floor:g} nats a token",))
    return None


def registered_nll(report: Mapping[str, Any]) -> float | None:
    """Held-out NLL of the model that is registered, the candidate's first seed; None if it was not measured."""
    per_seed = report.get("arms", {}).get(CANDIDATE, {}).get(METRIC, {}).get("per_seed", {})
    first = next(iter(per_seed.values()), None)
    return None if first is None or _unknown(first) else float(first)


def _against_bar(report: Mapping[str, Any], registry: RegistrySpec, bar: str, name: str) -> Decision:
    found = comparison(report, METRIC, REGISTERED, bar)
    if found is None:
        return Decision("undecided", (f"{CANDIDATE} was not compared with {name} on the same held-out prompts",))
    if refusal := found.get("refusal"):
        return Decision("undecided", (f"{CANDIDATE} cannot be compared with {name}: {refusal}",))
    if _unknown(found["low"]) or _unknown(found["high"]):
        return Decision("undecided", (f"too few held-out prompts to compare {CANDIDATE} with {name}",))
    outcome = _outcome(found["low"], found["high"], registry.margin)
    claim = {"promote": "is better by more", "keep": "is not better by more", "undecided": "may or may not be better"}
    than = "" if outcome == "undecided" else f" than the margin of {registry.margin:g}"
    numbers = f"{found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}] nats a token, margin"
    return Decision(
        outcome,
        (f"{CANDIDATE} {claim[outcome]}{than} against {name}: {numbers} {registry.margin:g}",),
    )


def _outcome(low: float, high: float, margin: float) -> Outcome:
    if high < -margin:
        return "promote"
    return "keep" if low >= -margin else "undecided"


def comparison(report: Mapping[str, Any], metric: str, arm: str, against: str) -> Mapping[str, Any] | None:
    """The paired difference ``arm - against`` in a report; None if it was not made."""
    wanted = (metric, arm, against)
    for found in report.get("comparisons", ()):
        if (found["metric"], found["arm"], found["against"]) == wanted:
            return dict(found)
    return None


def _unknown(value: float | None) -> bool:
    return value is None or not math.isfinite(value)

r"""Has the corpus changed since the last accepted run? Shares by a two-proportion test, lengths by PSI.

For a rule that x of n rows break now and y of m broke then, with p = (x + y) / (n + m),

    z = (x/n - y/m) / sqrt(p (1 - p) (1/n + 1/m))

is close to normal if nothing changed. A share has drifted if it moved by more than ``max_drift`` *and* the two-sided
probability of so large a z is below the level divided by the number of shares compared (Bonferroni): the first keeps
large corpora from crying wolf over nothing, the second small ones over chance. The approximation is poor where fewer
than about five rows break a rule on both sides; the first condition covers that.

Lengths are compared over bins i by the population stability index, sum_i (a_i - b_i) ln(a_i / b_i), of the two sets
of shares, empty bins counted as half a row. It is 0 at equality and symmetric. Without any change it is about
(bins - 1) (1/n + 1/m), and scatters as a chi-square does; below that noise (mean and three standard deviations) no
length has drifted, whatever the bound.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from proxykd.config.validation import Action, ValidationSpec


class Drift(NamedTuple):
    """How one measure moved.

    Attributes:
        name: A rule, or ``length_chars`` or ``length_tokens``.
        before: Share in the baseline; None for lengths.
        now: Share in this run; None for lengths.
        distance: Difference now - before of shares; PSI of lengths.
        bound: Largest |distance| that is no drift.
        p_value: Of the two-proportion test; None for lengths.
        has_drifted: Whether the distance is above the bound and, for shares, significant.
        action: What a drift does.
    """

    name: str
    before: float | None
    now: float | None
    distance: float
    bound: float
    p_value: float | None
    has_drifted: bool
    action: Action


def compare(now: Mapping[str, Any], before: Mapping[str, Any], spec: ValidationSpec) -> list[Drift]:
    """How the measures of a run moved against those of another.

    Args:
        now: ``result.json`` of this run; ``verdicts``, ``rules`` and ``lengths`` are read.
        before: The same of the baseline.
        spec: Bounds and actions. Measures without a bound, or not measured in both runs, are left out.
    """
    shares = _shares(now, before, spec)
    level = spec.drift_significance / max(1, len(shares))
    found = [_compare_shares(*share, level=level) for share in shares]
    for unit in ("chars", "tokens"):
        one, other = now["lengths"][unit], before["lengths"][unit]
        if one and other:
            psi = population_stability(one, other)
            bound = max(spec.max_length_psi, stability_noise(one, other))
            found.append(Drift(f"length_{unit}", None, None, psi, bound, None, psi > bound, spec.on_length_drift))
    return found


def two_proportion_p(x: int, n: int, y: int, m: int) -> float:
    """Two-sided p-value of the pooled z-test that x of n and y of m come from one share; 1 where neither varies.

    Args:
        x: Rows that break the rule, 0 .. n.
        n: Rows, >= 1.
        y: The same of the other run, 0 .. m.
        m: Its rows, >= 1.
    """
    pooled = (x + y) / (n + m)
    variance = pooled * (1.0 - pooled) * (1.0 / n + 1.0 / m)
    return 1.0 if variance == 0.0 else math.erfc(abs(x / n - y / m) / math.sqrt(2.0 * variance))


def population_stability(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """PSI of two histograms, >= 0; 0 where they have the same shares.

    Args:
        one: Bin -> count, at least one row.
        other: The same.
    """
    total_one, total_other = sum(one.values()), sum(other.values())
    psi = 0.0
    for name in {*one, *other}:
        a = max(one.get(name, 0), 0.5) / total_one
        b = max(other.get(name, 0), 0.5) / total_other
        psi += (a - b) * math.log(a / b)
    return psi


def stability_noise(one: Mapping[str, int], other: Mapping[str, int]) -> float:
    """The PSI that two samples of one population hardly ever exceed: its mean and three standard deviations."""
    freedom = len({*one, *other}) - 1
    return (freedom + 3.0 * math.sqrt(2.0 * freedom)) * (1.0 / sum(one.values()) + 1.0 / sum(other.values()))


def _shares(
    now: Mapping[str, Any], before: Mapping[str, Any], spec: ValidationSpec
) -> list[tuple[str, int, int, int, int, float, Action]]:
    """Name, broken and measured now, broken and measured before, bound and action of each share to compare."""
    found: list[tuple[str, int, int, int, int, float, Action]] = []
    for name in type(spec.rules).model_fields:
        rule, none = spec.rules[name], {"broken": 0, "measured": 0}
        one, other = now["rules"].get(name, none), before["rules"].get(name, none)
        if rule.max_drift is not None and one["measured"] and other["measured"]:
            counts = (one["broken"], one["measured"], other["broken"], other["measured"])
            found.append((name, *counts, rule.max_drift, rule.on_drift))
    return found


def _compare_shares(name: str, x: int, n: int, y: int, m: int, bound: float, action: Action, *, level: float) -> Drift:
    difference, p_value = x / n - y / m, two_proportion_p(x, n, y, m)
    has_drifted = abs(difference) > bound and p_value < level
    return Drift(name, y / m, x / n, difference, bound, p_value, has_drifted, action)

"""Sums for each prompt -> intervals and paired differences, as the rows of a report.

Everything that a report or a gate wants to know is collected first and estimated together, so that all of it shares the
draws of the bootstrap.

A difference is only made where both arms have a finite number for exactly the same prompts. Where they have not, the
row carries a ``refusal`` that says why, and no number, so that nothing can be decided on it. A prompt on which one side
was not judged (its denominator is 0) is left out on both.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from proxykd.config.statistics import StatisticsSpec
from proxykd.evaluation import statistics
from proxykd.evaluation.intervals import NO_SEEDS, SeedSpread
from proxykd.evaluation.metrics import Metric, metric_of
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.statistics import Arm, Contrast, Estimate, Settings

Sums = Mapping[str, tuple[float, float]]
"""Prompt id -> (numerator, denominator)."""

Seeds = Mapping[int, Sums]
"""Seed -> sums of one arm and one metric."""

ArmSums = Mapping[str, Mapping[str, Seeds]]
"""Metric -> arm -> seed -> sums."""

OVER_PROMPTS, OVER_SEEDS = "prompts", "prompts and seeds"


class Wanted(NamedTuple):
    """A paired difference that is asked for.

    Attributes:
        metric: Its name.
        slice: Name of a part of the prompts; None = all.
        arm: The arm.
        against: What it is compared with.
    """

    metric: str
    slice: str | None
    arm: str
    against: str


def settings_of(spec: StatisticsSpec, *, level: float | None = None) -> Settings:
    """How intervals are made.

    Args:
        spec: The evaluation's.
        level: One-sided level of each end; None = that of the evaluation's confidence.
    """
    confidence = spec.confidence if level is None else 1.0 - 2.0 * level
    return Settings(confidence=confidence, resamples=spec.resamples, method=spec.interval, power=spec.power)


def measure(
    sums: ArmSums, prompts: PromptTable, settings: Settings, *, seeds_in_interval: bool
) -> dict[str, dict[str, dict[str, Any]]]:
    """``report["arms"]``: arm -> metric -> value, interval, seeds and counts.

    Args:
        sums: What was scored.
        prompts: Which prompts are drawn together.
        settings: How intervals are made.
        seeds_in_interval: Whether the spread over seeds widens them.
    """
    keys = [(metric, arm) for metric, arms in sums.items() for arm in arms]
    sides = [_side(sums[metric][arm], prompts) for metric, arm in keys]
    spreads = [seed_spread_of(side, None) if seeds_in_interval else NO_SEEDS for side in sides]
    contrasts = [
        Contrast(side.mean, None, metric_of(metric).is_judgement, spread)
        for (metric, _), side, spread in zip(keys, sides, spreads, strict=True)
    ]
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for (metric, arm), side, estimate in zip(keys, sides, statistics.estimate(contrasts, settings), strict=True):
        found.setdefault(arm, {})[metric] = _measured(side, estimate, len(next(iter(sums[metric][arm].values()))))
    for (metric, arm), spread in zip(keys, spreads, strict=True):
        found[arm][metric]["over"] = _over(spread)
    return found


def compare(
    sums: ArmSums,
    wanted: Iterable[Wanted],
    prompts: PromptTable,
    settings: Settings,
    *,
    seeds_in_interval: bool,
    refusals: Mapping[Wanted, str] | None = None,
) -> list[dict[str, Any]]:
    """``report["comparisons"]``: one row for each difference that is wanted, in order.

    Args:
        sums: What was scored.
        wanted: The differences.
        prompts: Which prompts are drawn together, and the slices.
        settings: How intervals are made.
        seeds_in_interval: Whether the spread over seeds widens them.
        refusals: Differences that make no sense for reasons that the sums do not show.
    """
    rows, made = list(wanted), []
    found: dict[Wanted, dict[str, Any]] = {}
    for one in rows:
        members = None if one.slice is None else prompts.slices.get(one.slice, frozenset())
        seeds = [_in_slice(sums.get(one.metric, {}).get(name, {}), members) for name in (one.arm, one.against)]
        reason = (refusals or {}).get(one) or _reason_against(seeds[0], seeds[1], one)
        if not reason:
            seeds = _in_common(seeds)
            reason = "" if _has_any(seeds[0]) else _nothing_in_common(one)
        if reason:
            found[one] = refused(one, reason, settings)
        else:
            made.append((one, _side(seeds[0], prompts), _side(seeds[1], prompts), len(next(iter(seeds[0].values())))))
    spreads = [seed_spread_of(first, other) if seeds_in_interval else NO_SEEDS for _, first, other, _ in made]
    contrasts = [
        Contrast(first.mean, other.mean, metric_of(one.metric).is_judgement, spread)
        for (one, first, other, _), spread in zip(made, spreads, strict=True)
    ]
    estimates = statistics.estimate(contrasts, settings)
    for (one, first, other, count), spread, estimate in zip(made, spreads, estimates, strict=True):
        seeds_of_both = _per_seed(first, other)
        found[one] = row_of(one, estimate, settings, count, seeds_of_both) | {"over": _over(spread)}
    return _adjusted([found[one] for one in rows])


def refused(one: Wanted, reason: str, settings: Settings) -> dict[str, Any]:
    """A difference that was not made, with the reason why and no number."""
    row = row_of(one, Estimate(float("nan")), settings, 0, {})
    return {**row, "p_value": None, "over": OVER_PROMPTS, "refusal": reason}


def row_of(
    one: Wanted, estimate: Estimate, settings: Settings, num_prompts: int, per_seed: Mapping[str, float | None]
) -> dict[str, Any]:
    """One row of ``report["comparisons"]``, but for ``over``; ``p_adjusted`` is still to be filled in.

    Args:
        one: What was compared.
        estimate: What was found.
        settings: How.
        num_prompts: Prompts of both arms.
        per_seed: Seed -> the difference of the two models.
    """
    p_value, mde = _in_direction(estimate, metric_of(one.metric))
    return {
        **one._asdict(),
        "value": number(estimate.value),
        "low": number(estimate.low),
        "high": number(estimate.high),
        "confidence": settings.confidence,
        "std_error": number(estimate.std_error),
        "df": number(estimate.df),
        "p_value": p_value,
        "p_adjusted": None,
        "mde": number(mde),
        "power": settings.power,
        "test": estimate.test,
        "interval": settings.method,
        "num_prompts": num_prompts,
        "num_clusters": estimate.num_units,
        "per_seed": dict(per_seed),
    }


class Side(NamedTuple):
    """One arm of a difference in units.

    Attributes:
        mean: Its seeds, averaged prompt by prompt and added up over clusters.
        per_seed: Seed -> the metric.
    """

    mean: Arm
    per_seed: dict[int, float]


def seed_spread_of(first: Side, other: Side | None) -> SeedSpread:
    """What the seeds add; seeds that both arms have are compared with each other, which cancels what they share."""
    ours = list(first.per_seed.values())
    if other is None:
        return statistics.seed_spread(ours)
    if first.per_seed.keys() == other.per_seed.keys():
        return statistics.seed_spread([value - other.per_seed[seed] for seed, value in first.per_seed.items()])
    return statistics.seed_spread(ours, list(other.per_seed.values()))


def _side(seeds: Seeds, prompts: PromptTable) -> Side:
    # By their ids, so that both arms have one order, and the order of the rows changes nothing.
    prompt_ids = sorted(next(iter(seeds.values())))
    numbers: dict[str, int] = {}
    clusters = np.array(
        [numbers.setdefault(prompts.clusters.get(name, name), len(numbers)) for name in prompt_ids], dtype=np.int64
    )
    arms = {seed: _vectors(sums, prompt_ids) for seed, sums in seeds.items()}
    mean = statistics.in_clusters(statistics.mean_over_seeds(list(arms.values())), clusters)
    return Side(mean, {seed: statistics.ratio(one) for seed, one in arms.items()})


def _vectors(sums: Sums, prompt_ids: Sequence[str]) -> Arm:
    pairs = np.array([sums[prompt_id] for prompt_id in prompt_ids], dtype=np.float64).reshape(-1, 2)
    return statistics.arm(pairs[:, 0], pairs[:, 1])


def _in_slice(seeds: Seeds, members: frozenset[str] | None) -> Seeds:
    if members is None:
        return seeds
    return {seed: {name: pair for name, pair in sums.items() if name in members} for seed, sums in seeds.items()}


def _in_common(sides: Sequence[Seeds]) -> list[Seeds]:
    """The sides without the prompts that some of them have a denominator for and some have none."""
    measured = [
        {name for name, pair in sums.items() if any(below > 0 for below in pair[1::2])}
        for seeds in sides
        for sums in seeds.values()
    ]
    partly = measured[0].union(*measured) - measured[0].intersection(*measured)
    if not partly:
        return list(sides)
    return [
        {seed: {name: pair for name, pair in sums.items() if name not in partly} for seed, sums in seeds.items()}
        for seeds in sides
    ]


def _has_any(seeds: Seeds) -> bool:
    return any(below > 0 for sums in seeds.values() for pair in sums.values() for below in pair[1::2])


def _nothing_in_common(one: Wanted) -> str:
    where = "" if one.slice is None else f" in the slice {one.slice}"
    return f"no prompt{where} has {one.metric} of both {one.arm} and {one.against}; hold out more prompts"


def _reason_against(first: Seeds, other: Seeds, one: Wanted) -> str:
    """Why the two cannot be compared; "" if they can."""
    where = "" if one.slice is None else f" in the slice {one.slice}"
    for name, seeds in ((one.arm, first), (one.against, other)):
        if not seeds:
            return f"{one.metric} of {name} was not measured; evaluate it with the task or metric that the gate names"
        if not all(seeds.values()):
            return f"no prompt{where} has {one.metric} of {name}; name another slice or hold out more prompts"
        numbers = np.array([pair for sums in seeds.values() for pair in sums.values()])
        if num_bad := int(np.count_nonzero(~np.isfinite(numbers).all(axis=1) | (numbers[:, 1] < 0))):
            return f"{one.metric} of {name} is no number for {num_bad} prompts{where}; look at that model's predictions"
        if not (numbers[:, 1] > 0).any():
            return f"{one.metric} of {name} has nothing to divide by{where}; its texts are empty"
    return _different_prompts([*first.values(), *other.values()], one, where)


def _different_prompts(every: Sequence[Sums], one: Wanted, where: str) -> str:
    base = every[0].keys()
    missing = max((len(base - sums.keys()) for sums in every), default=0)
    more = max((len(sums.keys() - base) for sums in every), default=0)
    if not missing and not more:
        return ""
    return (
        f"{one.metric} of {one.arm} and of {one.against} stand on different prompts{where}: {missing} of {len(base)} "
        f"rows are missing and {more} are others; score both on the same held-out prompts"
    )


def _per_seed(first: Side, other: Side) -> dict[str, float | None]:
    both = [seed for seed in first.per_seed if seed in other.per_seed]
    return {str(seed): number(first.per_seed[seed] - other.per_seed[seed]) for seed in both}


def _measured(side: Side, estimate: Estimate, num_prompts: int) -> dict[str, Any]:
    return {
        "value": number(estimate.value),
        "low": number(estimate.low),
        "high": number(estimate.high),
        "num_prompts": num_prompts,
        "num_clusters": estimate.num_units,
        "num_tokens": int(side.mean.denominators.sum()),
        "per_seed": {str(seed): number(value) for seed, value in side.per_seed.items()},
        "std_over_seeds": number(statistics.spread(list(side.per_seed.values()))),
    }


def _in_direction(estimate: Estimate, metric: Metric) -> tuple[float, float]:
    """(p that the arm is no better, smallest improvement that would be found); where neither way is better, of both."""
    if metric.direction == "lower":
        return estimate.p_below, estimate.mde_below
    if metric.direction == "higher":
        return estimate.p_above, estimate.mde_above
    return min(1.0, 2.0 * min(estimate.p_below, estimate.p_above)), max(estimate.mde_below, estimate.mde_above)


def _adjusted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with Holm's p over all metrics and slices of the same two arms."""
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if row["p_value"] is not None:
            families.setdefault((row["arm"], row["against"]), []).append(row)
    for family in families.values():
        for row, adjusted in zip(family, statistics.holm([row["p_value"] for row in family]), strict=True):
            row["p_adjusted"] = adjusted
    return rows


def _over(spread: SeedSpread) -> str:
    return OVER_SEEDS if spread.std_error > 0.0 else OVER_PROMPTS


def number(value: float) -> float | None:
    """``value`` as JSON knows it: null where it is not finite."""
    return float(value) if math.isfinite(value) else None

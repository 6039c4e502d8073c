"""report.json -> promote, keep or undecided: a pure function that reads no file and asks nobody.

Each rule of the policy becomes a check that passed, failed, or cannot be said. With the gain g of the candidate over a
bar (positive = better, whichever way the metric counts), its interval [low, high] at the gate's one-sided level and the
rule's margin m:

    primary          passed: low > m           failed: high <= m
    guard, slice     passed: low > -m          failed: a loss beyond m is shown, corrected for the number of rules
    limits, gates    passed or failed by a plain number

    promote      every check passed
    keep         some check failed
    undecided    otherwise, and whenever something that a rule needs was not measured or cannot be used

All checks must pass at once (an intersection-union test), so a candidate that is no better on the primary metric is
promoted at most at the level, however many rules there are; correction serves the claims of loss alone. Only "promote"
changes the champion.

References: Berger, Multiparameter hypothesis testing and acceptance sampling (1982).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from proxykd.config.gate import GateSpec, LimitSpec
from proxykd.evaluation.metrics import Metric, described
from proxykd.evaluation.rules import CANDIDATE, CHAMPION, FIRST_NONE, FIRST_SFT, Rule, rules_of
from proxykd.evaluation.statistics import holm, p_beyond

METRIC = "heldout_nll"

Outcome = Literal["promote", "keep", "undecided"]


@dataclass(frozen=True, slots=True)
class Check:
    """One rule of the gate and what became of it.

    Attributes:
        name: The rule: ``primary heldout_nll against champion``, ``limit usd`` ...
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


class _Judged(NamedTuple):
    """A check; ``is_missing`` = something that the rule needs is not there or cannot be used."""

    check: Check
    is_missing: bool = False


class _Gain(NamedTuple):
    """A difference with the sign turned so that more is better."""

    value: float
    low: float
    high: float


def decide(report: Mapping[str, Any], policy: GateSpec, champion: Mapping[str, Any] | None) -> Decision:
    """Decide about the student of a report.

    Args:
        report: Content of ``report.json``, extended by ``compare_registered`` or, with a champion, by
            ``compare_with_champion``.
        policy: What has to be shown.
        champion: What the registry says of the present champion (``version``); None = there is none.
    """
    version = None if champion is None else str(champion.get("version", "?"))
    rules = rules_of(
        policy,
        has_champion=champion is not None,
        metrics=report.get("metrics", {}),
        slices=report.get("slices", {}),
    )
    losses = _losses(report, policy, rules)
    judged = [_judge(report, policy, rule, losses.get(rule), _bar_label(rule, version)) for rule in rules]
    judged += [_judge_limit(report, limit) for limit in policy.limits]
    judged += _judge_data(report, policy)
    outcome = _outcome(judged)
    return Decision(outcome, _reasons(outcome, judged), tuple(one.check for one in judged), version)


def decision_of(values: Mapping[str, Any]) -> Decision:
    """A decision from the JSON values of its fields; others are left aside."""
    checks = tuple(Check(**check) for check in values["checks"])
    return Decision(values["outcome"], tuple(values["reasons"]), checks, values["expected_champion"])


def comparison(
    report: Mapping[str, Any], metric: str, arm: str, against: str, part: str | None = None
) -> Mapping[str, Any] | None:
    """The paired difference ``arm - against`` in a report, on a slice or on all prompts; None if it was not made."""
    wanted = (metric, part, arm, against)
    for found in report.get("comparisons", ()):
        if (found["metric"], found.get("slice"), found["arm"], found["against"]) == wanted:
            return dict(found)
    return None


def registered_value(report: Mapping[str, Any], metric: str) -> float | None:
    """A metric of the model that is registered, the candidate's first seed; None if it was not measured."""
    per_seed = report.get("arms", {}).get(CANDIDATE, {}).get(metric, {}).get("per_seed", {})
    first = next(iter(per_seed.values()), None)
    return _number(first)


def _outcome(judged: list[_Judged]) -> Outcome:
    if any(one.is_missing for one in judged):
        return "undecided"
    if any(one.check.passed is False for one in judged):
        return "keep"
    return "promote" if all(one.check.passed for one in judged) else "undecided"


def _reasons(outcome: Outcome, judged: list[_Judged]) -> tuple[str, ...]:
    if outcome == "promote":
        primary = [one.check.text for one in judged if one.check.name.startswith("primary")]
        more = len(judged) - len(primary)
        return (*primary, f"{more} other rules hold") if more else tuple(primary)
    missing = [one.check.text for one in judged if one.is_missing]
    failed = [one.check.text for one in judged if one.check.passed is False]
    unsaid = [one.check.text for one in judged if one.check.passed is None and not one.is_missing]
    return (*missing, *failed, *unsaid) if outcome == "undecided" else (*failed, *unsaid)


def _judge(report: Mapping[str, Any], policy: GateSpec, rule: Rule, p_loss: float | None, bar: str) -> _Judged:
    metric = described(report, rule.wanted.metric)
    part = "" if rule.wanted.slice is None else f" on {rule.wanted.slice or rule.pattern}"
    name = f"{rule.kind} {rule.wanted.metric or rule.pattern}{part} against {rule.wanted.against}"
    found = None if rule.is_empty else comparison(report, *_keys(rule))
    reason = _unusable(report, found, policy, rule, metric)
    if found is None or reason:
        return _Judged(Check(name, None, f"{metric.label or rule.pattern}{part} against {bar}: {reason}"), True)
    passed = (
        _is_better(found, policy, rule, metric)
        if rule.kind == "primary"
        else _is_held(found, policy, rule, metric, p_loss)
    )
    claim = _claim(rule, passed)
    return _Judged(Check(name, passed, f"{metric.label}{part} {claim} {bar}: {_numbers(found, metric)}"))


def _keys(rule: Rule) -> tuple[str, str, str, str | None]:
    return rule.wanted.metric, rule.wanted.arm, rule.wanted.against, rule.wanted.slice


def _unusable(
    report: Mapping[str, Any], found: Mapping[str, Any] | None, policy: GateSpec, rule: Rule, metric: Metric
) -> str:
    """Why nothing can be said of a rule, and what to do; "" if something can."""
    least = policy.min_prompts if rule.wanted.slice is None else policy.min_slice_prompts
    if rule.is_empty:
        return f"the report has nothing that gate's pattern {rule.pattern!r} fits; name what it has, or drop the rule"
    if metric.direction == "none":
        return f"neither way is better by this metric; name another one in the gate: {_usable_metrics(report)}"
    if rule.wanted.metric not in report.get("metrics", {}):
        return f"the report does not have this metric; name one of those that it has: {_usable_metrics(report)}"
    if found is None:
        return "they were not compared; evaluate the student with this metric, slice and bar, or change the gate"
    if found.get("refusal"):
        return str(found["refusal"])
    if not math.isclose((1.0 - found["confidence"]) / 2.0, policy.level, abs_tol=1e-9):
        return f"compared at another level than gate.level={policy.level:g}; compare again"
    if not _is_number(found["value"]):
        return "the difference is no number; look at both models' predictions"
    if (count := found["num_clusters"]) < least:
        return f"{count} independent prompts, the gate asks for {least}; hold out more prompts"
    if not all(_is_number(found[key]) for key in ("low", "high", "std_error", "df", "p_value")):
        return "too few prompts for an interval; hold out more prompts"
    return ""


def _usable_metrics(report: Mapping[str, Any]) -> str:
    """The metrics of a report that a gate can be set on."""
    usable = [name for name in report.get("metrics", {}) if described(report, name).direction != "none"]
    return ", ".join(usable) or "it has none; evaluate again"


def _is_better(found: Mapping[str, Any], policy: GateSpec, rule: Rule, metric: Metric) -> bool | None:
    gain = _gain(found, metric)
    # McNemar's test is exact where the interval is not; a promotion needs both.
    is_shown = gain.low > rule.margin and (found["test"] != "mcnemar" or found["p_value"] <= policy.level)
    return True if is_shown else False if gain.high <= rule.margin else None


def _is_held(
    found: Mapping[str, Any], policy: GateSpec, rule: Rule, metric: Metric, p_loss: float | None
) -> bool | None:
    if _gain(found, metric).low > -rule.margin:
        return True
    return False if p_loss is not None and p_loss <= policy.level else None


def _losses(report: Mapping[str, Any], policy: GateSpec, rules: tuple[Rule, ...]) -> dict[Rule, float]:
    """Rule -> the p that a guard or a slice has lost no more than its margin, corrected for their number."""
    found: dict[Rule, float] = {}
    for rule in rules:
        metric, made = described(report, rule.wanted.metric), comparison(report, *_keys(rule))
        if rule.kind != "primary" and not _unusable(report, made, policy, rule, metric) and made is not None:
            loss = -_gain(made, metric).value
            found[rule] = p_beyond(loss - rule.margin, made["std_error"], made["df"])
    adjusted = holm(list(found.values())) if policy.correction == "holm" else list(found.values())
    return dict(zip(found, adjusted, strict=True))


def _gain(found: Mapping[str, Any], metric: Metric) -> _Gain:
    if metric.direction == "higher":
        return _Gain(found["value"], found["low"], found["high"])
    return _Gain(-found["value"], -found["high"], -found["low"])


def _claim(rule: Rule, passed: bool | None) -> str:
    if rule.kind == "primary":
        by_more = f" by more than the margin of {rule.margin:g}" if rule.margin else ""
        return {
            True: f"is better{by_more} than",
            False: f"is not better{by_more} than",
            None: "may or may not be better than",
        }[passed]
    by_more = f" by the margin of {rule.margin:g}"
    return {True: f"is not worse{by_more} than", False: f"is worse{by_more} than", None: f"may be worse{by_more} than"}[
        passed
    ]


def _numbers(found: Mapping[str, Any], metric: Metric) -> str:
    unit = f" {metric.unit}" if metric.unit else ""
    mde = f"; a change of {found['mde']:.4f} would be found" if _is_number(found.get("mde")) else ""
    return (
        f"{found['value']:+.4f} [{found['low']:+.4f}, {found['high']:+.4f}]{unit} "
        f"({found['confidence']:.0%} interval, {found['num_clusters']} prompts{mde})"
    )


def _judge_limit(report: Mapping[str, Any], limit: LimitSpec) -> _Judged:
    value = _number(report.get("resources", {}).get(limit.name, registered_value(report, limit.name)))
    name = f"limit {limit.name}"
    if value is None:
        text = f"{limit.name} was not measured, so its limit cannot be checked; measure it, or drop it from gate.limits"
        return _Judged(Check(name, None, text), True)
    is_low_enough = limit.at_most is None or value <= limit.at_most
    is_high_enough = limit.at_least is None or value >= limit.at_least
    bounds = [f"at most {limit.at_most:g}" if limit.at_most is not None else ""]
    bounds += [f"at least {limit.at_least:g}" if limit.at_least is not None else ""]
    beside = _number(report.get(CHAMPION, {}).get("resources", {}).get(limit.name))
    share = f" ({value / beside:.0%} of it)" if beside else ""
    champion = "" if beside is None else f"; the champion's is {beside:.4g}{share}"
    text = f"{limit.name} is {value:.4g}, allowed is {' and '.join(filter(None, bounds))}{champion}"
    return _Judged(Check(name, is_low_enough and is_high_enough, text))


def _judge_data(report: Mapping[str, Any], policy: GateSpec) -> list[_Judged]:
    validation = report.get("facts", {}).get("validation", {})
    judged = [_judge_validation(validation)] if policy.require_validation else []
    if policy.max_contamination is not None:
        judged.append(_judge_contamination(report, validation, policy.max_contamination))
    return judged


def _judge_validation(validation: Mapping[str, Any]) -> _Judged:
    gate = validation.get("gate", {})
    if not isinstance(gate.get("is_open"), bool):
        text = (
            "the report has no result of the validation; evaluate again with it, or set gate.require_validation=false"
        )
        return _Judged(Check("validation", None, text), True)
    reasons = "; ".join(gate.get("reasons", ())) or "no reason given"
    text = "the validation gate was open" if gate["is_open"] else f"the validation gate was closed: {reasons}"
    return _Judged(Check("validation", gate["is_open"], text))


def _judge_contamination(report: Mapping[str, Any], validation: Mapping[str, Any], most: float) -> _Judged:
    """The rows that the validation found and those that share text with questions that it could not know, together."""
    overlap, asked = validation.get("rules", {}).get("overlap", {}), report.get("facts", {}).get("contamination", {})
    if not overlap.get("measured"):
        text = (
            "overlap with the evaluation prompts was not measured; validate again, or set gate.max_contamination=null"
        )
        return _Judged(Check("contamination", None, text), True)
    dropped = validation.get("verdicts", {}).get("overlap", 0)
    share = max(0, overlap["broken"] - dropped) / overlap["measured"]
    more = asked["broken"] / asked["measured"] if asked.get("measured") else 0.0
    tasks = f", {more:.1%} with questions of {', '.join(asked['tasks'])}" if asked else ""
    text = f"{share:.1%} of the training rows overlap with evaluation prompts{tasks}, allowed are {most:.1%} in all"
    return _Judged(Check("contamination", share + more <= most, text))


def _bar_label(rule: Rule, version: str | None) -> str:
    labels = {FIRST_SFT: "the SFT arm's first seed", FIRST_NONE: "the untrained student"}
    return f"champion version {version}" if rule.wanted.against == CHAMPION else labels[rule.wanted.against]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _number(value: Any) -> float | None:
    return float(value) if _is_number(value) else None

"""Sums for each prompt -> ``report.json`` -> a table for the terminal.

    report = {
        name, num_prompts, confidence, resamples,
        heldout:      {tokenizer, num_texts, num_cut, num_skipped}: the held-out texts in the candidate's tokens,
        metrics:      name -> {label, unit, direction, is_binary, is_per_token, rank}, the most telling first,
        slices:       name -> number of prompts,
        resources:    name -> number: usd, tokens_per_s, size_gb ... of the registered model,
        arms:         arm -> metric -> {value, low, high, per_seed, std_over_seeds, num_prompts, num_clusters,
                      num_tokens, over},
        comparisons:  [{metric, slice, arm, against, value, low, high, confidence, std_error, df, p_value, p_adjusted,
                      mde, test, interval, over, num_prompts, num_clusters, per_seed, refusal?}],
        teacher:      {entropy} where its odds are known: the floor of the held-out NLL,
        facts:        what the stage was given: spend, fidelity, curves, settings, made_from ...
    }

``slice`` is null for all prompts. ``over`` says which question an interval answers: "prompts" = this model on other
prompts; "prompts and seeds" = the method on other prompts and with other seeds. ``p_value`` is one-sided, that ``arm``
is no better; ``p_adjusted`` is corrected over all metrics and slices of the same two arms; ``mde`` is the smallest true
difference that would have been found with the power of the evaluation.

Numbers that do not exist (an interval from one prompt) are null.
"""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from proxykd.config import RunSpec
from proxykd.evaluation import statistics
from proxykd.evaluation.statistics import Arm
from proxykd.exceptions import GateError

if TYPE_CHECKING:
    from rich.console import Group

LOWER_IS_BETTER = frozenset({"heldout_nll", "exact_kl"})
COMPARED = (("proxy_kd", "sft"), ("proxy_kd", "none"), ("sft", "none"), ("proxy_kd", "proxy"))
"""Pairs of arms whose differences are reported, where both exist."""

ARM_LABELS = {"none": "none", "sft": "SFT", "proxy_kd": "Proxy-KD", "proxy": "proxy itself", "champion": "champion"}
METRIC_LABELS = {
    "exact_kl": "exact KL, nats/token",
    "heldout_nll": "held-out NLL, nats/token",
    "top1_agreement": "top-1 agreement",
}

Sums = dict[str, tuple[float, float]]
"""Prompt id -> (numerator, denominator)."""

Scores = Mapping[str, Mapping[int, Mapping[str, Sums]]]
"""Arm -> seed -> metric -> sums."""


def build_report(
    scores: Scores, run: RunSpec, *, facts: Mapping[str, Any], entropy: Arm | None, texts: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of ``report.json``.

    Prompts that some arm could not be scored on (another tokenizer left no room for them) are left out for all, so
    every comparison is paired.

    Args:
        scores: Every arm's sums.
        run: Confidence, resamples and seeds.
        facts: Shown as they are.
        entropy: The teacher's own entropy for each prompt; None if it is not known.
        texts: What ``HeldoutSet.describe`` says of the texts.

    Raises:
        GateError: if the arms have no prompt in common.
    """
    metrics = _ordered({metric for seeds in scores.values() for sums in seeds.values() for metric in sums})
    aligned = {metric: sums_of_metric(scores, metric) for metric in metrics}
    return {
        "name": run.name,
        "num_prompts": len(next(iter(next(iter(aligned["heldout_nll"].values())).values())).numerators),
        "confidence": run.evaluation.confidence,
        "resamples": run.evaluation.resamples,
        "heldout": dict(texts),
        "arms": {
            arm: {metric: _measure(aligned[metric][arm], run) for metric in metrics if arm in aligned[metric]}
            for arm in scores
        },
        "comparisons": [
            compare(aligned[metric], metric, arm, against, run)
            for metric in metrics
            for arm, against in COMPARED
            if arm in aligned[metric] and against in aligned[metric]
        ],
        "teacher": {} if entropy is None else {"entropy": _interval(entropy, run)},
        "facts": dict(facts),
    }


def sums_of_metric(scores: Scores, metric: str) -> dict[str, dict[int, Arm]]:
    """Arm -> seed -> vectors over the prompts that all arms with this metric share, in the order of the first.

    Raises:
        GateError: if there is no such prompt.
    """
    having = {arm: {seed: sums[metric] for seed, sums in seeds.items()} for arm, seeds in scores.items()}
    every = [sums for seeds in having.values() for sums in seeds.values()]
    shared = [prompt_id for prompt_id in every[0] if all(prompt_id in sums for sums in every)]
    if every[0] and not shared:
        raise GateError(f"expected prompts that every arm was scored on ({metric}), found none; raise max_seq_tokens")
    return {arm: {seed: _vectors(sums, shared) for seed, sums in seeds.items()} for arm, seeds in having.items()}


def compare(sums: Mapping[str, Mapping[int, Arm]], metric: str, arm: str, against: str, run: RunSpec) -> dict[str, Any]:
    """The paired difference of two arms; ``p_value`` is the one-sided p that ``arm`` is no better."""
    first, other = (statistics.mean_over_seeds(list(sums[name].values())) for name in (arm, against))
    found = statistics.paired_difference(
        first, other, confidence=run.evaluation.confidence, resamples=run.evaluation.resamples
    )
    both = sums[arm].keys() & sums[against].keys()
    per_seed = {seed: statistics.ratio(sums[arm][seed]) - statistics.ratio(sums[against][seed]) for seed in both}
    return {
        "metric": metric,
        "arm": arm,
        "against": against,
        "value": _number(found.value),
        "low": _number(found.low),
        "high": _number(found.high),
        "p_value": found.p_below if metric in LOWER_IS_BETTER else found.p_above,
        "per_seed": {str(seed): _number(per_seed[seed]) for seed in sums[arm] if seed in both},
        "num_prompts": len(first.numerators),
    }


def refused(metric: str, arm: str, against: str, refusal: str) -> dict[str, Any]:
    """A comparison that was not made, with the reason why: no numbers, so that nothing can be decided on it."""
    numbers = dict.fromkeys(("value", "low", "high", "p_value"))
    return {
        "metric": metric,
        "arm": arm,
        "against": against,
        **numbers,
        "per_seed": {},
        "num_prompts": 0,
        "refusal": refusal,
    }


def report_table(report: Mapping[str, Any]) -> "Group":
    """The arms with their intervals as a table for the terminal, one row an arm, and the notes under it."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    metrics = metrics_of(report)
    title = f"{report['name']}: {report['num_prompts']} held-out prompts"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("arm")
    for metric in metrics:
        table.add_column(metric_label(metric), justify="right")
    for arm, measures in report["arms"].items():
        cells = [_cell(measures[metric]) if metric in measures else "" for metric in metrics]
        table.add_row(ARM_LABELS.get(arm, arm), *cells)
    if entropy := report["teacher"].get("entropy"):
        floors = {"heldout_nll": _cell(entropy), "exact_kl": "0"}
        table.add_row(teacher_label(report), *(floors.get(metric, "") for metric in metrics))
    notes = [f"in brackets: {report['confidence']:.0%} interval, bootstrap over prompts"]
    notes += [note for note in (seeds_note(report), cut_note(report)) if note]
    return Group(table, *notes, *difference_lines(report), *seed_lines(report))


def spend_line(report: Mapping[str, Any]) -> str:
    """What the teacher was asked and what it cost, in one line; for several teachers, each one's part too."""
    spend = report["facts"].get("spend", {})
    teachers = "".join(
        f"; {one['model']}: {sum(one['outcomes'].values()):,}, {one['cost_usd']:.2f} USD"
        for one in spend.get("teachers", [])
    )
    return (
        f"{spend.get('num_completions', 0):,} completions, {spend.get('prompt_tokens', 0):,} tokens in, "
        f"{spend.get('completion_tokens', 0):,} tokens out, {spend.get('cost_usd', 0.0):.2f} USD{teachers}"
    )


def difference_lines(report: Mapping[str, Any]) -> list[str]:
    """One line for each metric on which the distilled student was compared with its baseline, prompt by prompt."""
    return [
        f"Proxy-KD - SFT, {metric_label(found['metric'])}: {format_interval(found, signed=True)}"
        for found in report["comparisons"]
        if (found["arm"], found["against"]) == ("proxy_kd", "sft")
    ]


def teacher_label(report: Mapping[str, Any]) -> str:
    """What the row of the teacher's own entropy is called: its odds may have been asked for on fewer prompts.

    Example:
        >>> teacher_label({"num_prompts": 300, "teacher": {"entropy": {"num_prompts": 200}}})
        'teacher (200 prompts)'
    """
    asked = report["teacher"]["entropy"]["num_prompts"]
    return "teacher" if asked == report["num_prompts"] else f"teacher ({asked:,} prompts)"


def cut_note(report: Mapping[str, Any]) -> str:
    """What is missing of the held-out texts, "" if nothing: an NLL of cut texts is that of their first tokens alone."""
    texts = report.get("heldout", {})
    notes = []
    if num_cut := texts.get("num_cut", 0):
        notes.append(f"{num_cut:,} of {texts['num_texts']:,} held-out texts are cut: only their first tokens count")
    if num_skipped := texts.get("num_skipped", 0):
        notes.append(f"{num_skipped:,} held-out texts left out: no room after the prompt")
    return "; ".join(notes)


def seeds_note(report: Mapping[str, Any], arm: str = "proxy_kd") -> str:
    """How many seeds the numbers of an arm are the mean of.

    Example:
        >>> measure = {"heldout_nll": {"per_seed": {"0": 1.0, "1": 1.1}}}
        >>> seeds_note({"arms": {"proxy_kd": measure}})
        'Proxy-KD: mean over 2 seeds (0, 1)'
    """
    seeds = list(report["arms"].get(arm, {}).get("heldout_nll", {}).get("per_seed", {}))
    found = f"mean over {len(seeds)} seeds ({', '.join(seeds)})" if len(seeds) > 1 else f"{len(seeds)} seed"
    return f"{ARM_LABELS.get(arm, arm)}: {found}"


def seed_lines(report: Mapping[str, Any], metric: str = "heldout_nll") -> list[str]:
    """One line for each arm that was trained with several seeds: the value of each."""
    lines = []
    for arm, measures in report["arms"].items():
        seeds = measures.get(metric, {}).get("per_seed", {})
        if len(set(seeds.values())) > 1:
            values = ", ".join(f"{seed}: {value:.3f}" for seed, value in seeds.items() if value is not None)
            lines.append(f"{ARM_LABELS.get(arm, arm)} by seed, {metric_label(metric)}: {values}")
    return lines


def metrics_of(report: Mapping[str, Any]) -> list[str]:
    """The metrics of a report, the most telling first."""
    return _ordered({metric for measures in report["arms"].values() for metric in measures})


def metric_label(metric: str) -> str:
    """What a reader calls a metric.

    Example:
        >>> metric_label("accuracy/arithmetic")
        'accuracy arithmetic'
    """
    return METRIC_LABELS.get(metric, metric.replace("/", " "))


def format_interval(measure: Mapping[str, Any], *, signed: bool = False) -> str:
    """A value with its interval; a difference is ``signed``.

    Example:
        >>> format_interval({"value": 0.5, "low": 0.25, "high": None})
        '0.500'
    """
    if measure["value"] is None:
        return "-"
    form = "+.3f" if signed else ".3f"
    if measure["low"] is None or measure["high"] is None:
        return format(measure["value"], form)
    return f"{measure['value']:{form}} [{measure['low']:{form}}, {measure['high']:{form}}]"


def _cell(measure: Mapping[str, Any]) -> str:
    """Value above interval, so that a table fits 80 columns."""
    return format_interval(measure).replace(" [", "\n[")


def _ordered(metrics: set[str]) -> list[str]:
    first = ["exact_kl", "heldout_nll", "top1_agreement"]
    return [metric for metric in first if metric in metrics] + sorted(metrics - set(first))


def _vectors(sums: Sums, prompt_ids: list[str]) -> Arm:
    pairs = [sums[prompt_id] for prompt_id in prompt_ids]
    return statistics.arm([above for above, _ in pairs], [below for _, below in pairs])


def _measure(seeds: Mapping[int, Arm], run: RunSpec) -> dict[str, Any]:
    per_seed = {seed: statistics.ratio(sums) for seed, sums in seeds.items()}
    return {
        **_interval(statistics.mean_over_seeds(list(seeds.values())), run),
        "per_seed": {str(seed): _number(value) for seed, value in per_seed.items()},
        "std_over_seeds": _number(statistics.spread(list(per_seed.values()))),
    }


def _interval(sums: Arm, run: RunSpec) -> dict[str, Any]:
    found = statistics.interval(sums, confidence=run.evaluation.confidence, resamples=run.evaluation.resamples)
    return {
        "value": _number(found.value),
        "low": _number(found.low),
        "high": _number(found.high),
        "num_prompts": int((sums.denominators > 0).sum()),
        "num_tokens": int(sums.denominators.sum()),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None

"""Sums for each prompt -> ``report.json`` -> a table for the terminal.

    report = {
        name, num_prompts, confidence, resamples,
        heldout:      {tokenizer, num_texts, num_cut, num_skipped}: the held-out texts in the candidate's tokens,
        metrics:      name -> {label, unit, direction, is_judgement, is_per_token, rank}, the most telling first,
        slices:       name -> number of prompts,
        resources:    usd of teacher and judge; tokens_per_s, size_gb, device ... of the registered model,
        arms:         arm -> metric -> {value, low, high, per_seed, std_over_seeds, num_prompts, num_clusters,
                      num_tokens, over},
        comparisons:  [{metric, slice, arm, against, value, low, high, confidence, std_error, df, p_value, p_adjusted,
                      mde, test, interval, over, num_prompts, num_clusters, per_seed, refusal?}],
        judge:        as ``verdicts.describe`` gives it, where a model judged,
        teacher:      {entropy} where its odds are known: the floor of the held-out NLL,
        champion:     {resources} of the present champion, once the student has been compared with it,
        facts:        what the stage was given: spend, fidelity, curves, settings, made_from ...
    }

``slice`` is null for all prompts. ``over`` says which question an interval answers: "prompts" = this model on other
prompts; "prompts and seeds" = the method on other prompts and with other seeds. ``p_value`` is one-sided, that ``arm``
is no better; ``p_adjusted`` is corrected over all metrics and slices of the same two arms; ``mde`` is the smallest true
difference that would have been found with the power of the evaluation.

Numbers that do not exist (an interval from one prompt) are null.
"""

from collections.abc import Collection, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from proxykd.config import RunSpec
from proxykd.evaluation import comparing, statistics
from proxykd.evaluation.comparing import ArmSums, Sums, Wanted
from proxykd.evaluation.metrics import describe_metrics, described, metric_of
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.spend import JUDGE, num_tokens, total_usd
from proxykd.evaluation.statistics import Arm
from proxykd.exceptions import GateError

if TYPE_CHECKING:
    from rich.console import Group

COMPARED = (("proxy_kd", "sft"), ("proxy_kd", "none"), ("sft", "none"), ("proxy_kd", "proxy"))
"""Pairs of arms whose differences are reported, where both exist."""
COMPARED_ON_SLICES = (("proxy_kd", "sft"),)
"""Pairs whose differences are reported on every slice too."""
MIN_SLICE_PROMPTS, MAX_SLICES = 10, 50
"""Smaller slices, and slices beyond the largest so many, have no differences of their own in the report."""

ARM_LABELS = {"none": "none", "sft": "SFT", "proxy_kd": "Proxy-KD", "proxy": "proxy itself", "champion": "champion"}

Scores = Mapping[str, Mapping[int, Mapping[str, Sums]]]
"""Arm -> seed -> metric -> sums."""


TABLE_METRICS = 4
"""Metrics of the terminal's table, the most telling ones: more do not fit."""


def build_report(
    scores: Scores,
    run: RunSpec,
    *,
    facts: Mapping[str, Any],
    entropy: Arm | None,
    texts: Mapping[str, Any],
    prompts: PromptTable | None = None,
) -> dict[str, Any]:
    """The content of ``report.json``.

    Prompts that some arm could not be scored on (another tokenizer left no room for them) are left out for all, so
    every comparison is paired.

    Args:
        scores: Every arm's sums.
        run: Confidence, resamples and seeds.
        facts: Shown as they are; ``resources`` and ``spend`` among them become ``report["resources"]``.
        entropy: The teacher's own entropy for each prompt; None if it is not known.
        texts: What ``HeldoutSet.describe`` says of the texts.
        prompts: Clusters and slices of the prompts; None = every prompt is drawn alone and there are no slices.

    Raises:
        GateError: if the arms have no prompt in common.
    """
    spec, settings = run.evaluation, comparing.settings_of(run.evaluation)
    metrics = describe_metrics(metric for seeds in scores.values() for sums in seeds.values() for metric in sums)
    shared = {metric: sums_of_metric(scores, metric) for metric in metrics}
    prompt_ids = list(next(iter(next(iter(shared["heldout_nll"].values())).values())))
    every = (next(iter(seeds.values())) for arms in shared.values() for seeds in arms.values())
    table = (prompts or PromptTable()).only(list(dict.fromkeys(chain.from_iterable(every))))
    measures = comparing.measure(shared, table, settings, seeds_in_interval=spec.seeds_in_interval)
    wanted = _wanted(shared, table)
    return {
        "name": run.name,
        "num_prompts": len(prompt_ids),
        "confidence": spec.confidence,
        "resamples": spec.resamples,
        "heldout": dict(texts),
        "metrics": metrics,
        "slices": table.counts(),
        "resources": _resources(facts),
        "arms": {
            arm: {metric: measures[arm][metric] for metric in metrics if metric in measures[arm]} for arm in scores
        },
        "comparisons": comparing.compare(shared, wanted, table, settings, seeds_in_interval=spec.seeds_in_interval),
        "teacher": {} if entropy is None else {"entropy": _entropy(entropy, settings)},
        "facts": dict(facts),
    }


def sums_of_metric(scores: Scores, metric: str) -> dict[str, dict[int, Sums]]:
    """Arm -> seed -> the sums of the prompts that all arms with this metric share, in the order of the first.

    Raises:
        GateError: if there is no such prompt.
    """
    having = {
        arm: {seed: sums[metric] for seed, sums in seeds.items()}
        for arm, seeds in scores.items()
        if all(metric in sums for sums in seeds.values())
    }
    every = [sums for seeds in having.values() for sums in seeds.values()]
    if not every:
        return {}
    shared = [prompt_id for prompt_id in every[0] if all(prompt_id in sums for sums in every)]
    if every[0] and not shared:
        raise GateError(f"expected prompts that every arm was scored on ({metric}), found none; raise max_seq_tokens")
    return {
        arm: {seed: {prompt_id: sums[prompt_id] for prompt_id in shared} for seed, sums in seeds.items()}
        for arm, seeds in having.items()
    }


def _wanted(shared: ArmSums, prompts: PromptTable) -> list[Wanted]:
    """Every difference of the report: on all prompts first, then on the slices that are part of them."""
    largest = sorted(prompts.slices, key=lambda name: (-len(prompts.slices[name]), name))[:MAX_SLICES]
    parts = [name for name in prompts.slices if name in largest and len(prompts.slices[name]) >= MIN_SLICE_PROMPTS]
    places: list[tuple[str | None, tuple[tuple[str, str], ...]]] = [(None, COMPARED)]
    places += [(name, COMPARED_ON_SLICES) for name in parts]
    return [
        Wanted(metric, part, arm, against)
        for part, pairs in places
        for metric, arms in shared.items()
        for arm, against in pairs
        if arm in arms and against in arms and (part is None or _is_shown_on(metric, prompts.slices[part], arms[arm]))
    ]


def _is_shown_on(metric: str, members: frozenset[str], seeds: Mapping[int, Sums]) -> bool:
    return metric_of(metric).form == "ratio" and _divides(members, seeds)


def _divides(members: frozenset[str], seeds: Mapping[int, Sums]) -> bool:
    """Whether a slice holds some of the prompts that were scored, and not all."""
    scored = next(iter(seeds.values()))
    return 0 < sum(prompt_id in members for prompt_id in scored) < len(scored)


def with_spend(report: Mapping[str, Any], spend: Mapping[str, Any]) -> dict[str, Any]:
    """The report with another spend, among its facts and in ``resources``.

    Args:
        report: As ``build_report`` gives it; not changed.
        spend: As ``proxykd.evaluation.spend`` has it.
    """
    facts = {**report["facts"], "spend": dict(spend)}
    return {**report, "facts": facts, "resources": _resources(facts)}


def _resources(facts: Mapping[str, Any]) -> dict[str, Any]:
    usd = total_usd(facts.get("spend", {}))
    return {**({} if usd is None else {"usd": usd}), **facts.get("resources", {})}


def _entropy(entropy: Arm, settings: statistics.Settings) -> dict[str, Any]:
    found = statistics.interval(entropy, settings)
    return {
        "value": comparing.number(found.value),
        "low": comparing.number(found.low),
        "high": comparing.number(found.high),
        "num_prompts": int((entropy.denominators > 0).sum()),
        "num_tokens": int(entropy.denominators.sum()),
    }


def report_table(report: Mapping[str, Any]) -> "Group":
    """The arms with their intervals as a table for the terminal, one row an arm, and the notes under it."""
    from rich import box
    from rich.console import Group
    from rich.table import Table

    every = metrics_of(report)
    metrics = every[:TABLE_METRICS]
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
    notes = [f"in brackets: {report['confidence']:.0%} interval, bootstrap over {_over(report)}"]
    more = f"{len(every) - len(metrics)} more metrics stand in the report" if len(every) > len(metrics) else ""
    notes += [note for note in (seeds_note(report), cut_note(report), more) if note]
    return Group(table, *notes, *difference_lines(report, metrics), *seed_lines(report))


def _over(report: Mapping[str, Any]) -> str:
    over = {measure["over"] for measures in report["arms"].values() for measure in measures.values()}
    return "prompts, and seeds where an arm has several" if comparing.OVER_SEEDS in over else "prompts"


def spend_line(report: Mapping[str, Any]) -> str:
    """What the teacher was asked and what it cost, in one line; the parts of several teachers, and a judge's, too."""
    spend = report["facts"].get("spend", {})
    teachers = "".join(
        f"; {one['model']}: {sum(one['outcomes'].values()):,}, {one['cost_usd']:.2f} USD"
        for one in spend.get("teachers", [])
    )
    return (
        f"{spend.get('num_completions', 0):,} completions, {spend.get('prompt_tokens', 0):,} tokens in, "
        f"{spend.get('completion_tokens', 0):,} tokens out, {spend.get('cost_usd', 0.0):.2f} USD{teachers}"
        f"{_judge_part(spend.get(JUDGE, {}))}"
    )


def _judge_part(judge: Mapping[str, Any]) -> str:
    if not judge:
        return ""
    return f"; judge: {judge['requests']:,} requests, {num_tokens(judge):,} tokens, {judge['cost_usd']:.2f} USD"


def difference_lines(report: Mapping[str, Any], metrics: Collection[str] | None = None) -> list[str]:
    """One line for each metric on which the distilled student was compared with its baseline, prompt by prompt.

    Args:
        report: The report.
        metrics: Those to show; None = all.
    """
    return [
        f"Proxy-KD - SFT, {described(report, found['metric']).title}: {_difference(found)}"
        for found in report["comparisons"]
        if (found["arm"], found["against"], found["slice"]) == ("proxy_kd", "sft", None)
        and (metrics is None or found["metric"] in metrics)
    ]


def _difference(found: Mapping[str, Any]) -> str:
    if found.get("refusal"):
        return str(found["refusal"])
    mde = "" if found["mde"] is None else f", found from {found['mde']:.3f}"
    return f"{format_interval(found, signed=True)}{mde}"


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
    return list(describe_metrics(metric for measures in report["arms"].values() for metric in measures))


def metric_label(metric: str) -> str:
    """What a reader calls a metric, with its unit.

    Example:
        >>> metric_label("accuracy/arithmetic")
        'accuracy arithmetic'
    """
    return metric_of(metric).title


def format_interval(measure: Mapping[str, Any], *, signed: bool = False) -> str:
    """A value with its interval; a difference is ``signed``.

    Example:
        >>> format_interval({"value": 0.5, "low": 0.25, "high": None})
        '0.500'
        >>> format_interval({"value": 0.0, "low": -1e-9, "high": 0.1})
        '0.000 [0.000, 0.100]'
    """
    if measure["value"] is None:
        return "-"
    form = "+.3f" if signed else "z.3f"  # "z" = no -0.000
    if measure["low"] is None or measure["high"] is None:
        return format(measure["value"], form)
    return f"{measure['value']:{form}} [{measure['low']:{form}}, {measure['high']:{form}}]"


def _cell(measure: Mapping[str, Any]) -> str:
    """Value above interval, so that a table fits 80 columns."""
    return format_interval(measure).replace(" [", "\n[")

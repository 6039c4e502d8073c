"""The registered model against the bars of the gate: the report with the differences that the decision is made on.

The comparisons of the report itself are between means over seeds, and the mean of several models is none that could be
registered. What may be registered is the candidate's first seed; its bars are the present champion, which is scored
here on the same held-out prompts as the arms were, or the first seeds of other arms (``proxykd.evaluation.rules``).
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxykd.artifacts import Evaluation, SplitSet, ValidatedSet, read_json
from proxykd.config import RunSpec
from proxykd.config.judge import WIN_RATE
from proxykd.evaluation.comparing import Sums, Wanted, compare, measure, settings_of
from proxykd.evaluation.drift import FREE_ANSWERS
from proxykd.evaluation.judged import counted_requests, duels_with_teacher, open_referee
from proxykd.evaluation.measured import comparable_resources, measure_model
from proxykd.evaluation.metrics import metric_of
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.report import with_spend
from proxykd.evaluation.rules import CANDIDATE, CHAMPION, FIRST_SEEDS, REGISTERED, Rule, rules_of
from proxykd.evaluation.scoring import PREDICTIONS, HeldoutSets, score_model
from proxykd.evaluation.spend import JUDGE, with_judge
from proxykd.evaluation.task_answers import TaskAnswer
from proxykd.evaluation.verdicts import describe, merge_described
from proxykd.models.sources import Source
from proxykd.models.tokenizers import load_tokenizer_from, tokenizer_fingerprint
from proxykd.progress import stage

CHAMPION_PREDICTIONS = "champion.parquet"
"""File of ``PREDICTIONS``: what the present champion said."""

_OTHER_TOKENS = (
    "its tokenizer is another one, and nats a token of different tokens cannot be compared; register this student "
    "under another registry.model_name"
)


class Journals(NamedTuple):
    """Where answers are remembered, so that a scoring that was killed goes on where it was.

    Attributes:
        answers: Folder of the models' own answers; None = they are not kept.
        paid: The journal of paid answers, through which the judge asks; without it nobody may judge.
    """

    answers: Path | None = None
    paid: Path | None = None


NO_JOURNALS = Journals()
"""Nothing is remembered, and nobody is asked for money."""


def compare_registered(evaluation: Evaluation, run: RunSpec) -> dict[str, Any]:
    """The report with what the gate needs where there is no champion: the registered model against the first bar.

    Args:
        evaluation: Of the candidate; not changed.
        run: The specification; its evaluation and gate sections are read.
    """
    report = read_json(evaluation.path / "report.json")
    return _with_comparisons(report, evaluation, run, _rules(report, run, has_champion=False))


def compare_with_champion(
    evaluation: Evaluation,
    champion: Path,
    validated: ValidatedSet,
    splits: SplitSet,
    run: RunSpec,
    *,
    scratch: Path,
    journals: Journals = NO_JOURNALS,
) -> dict[str, Any]:
    """The report with what the gate needs where there is a champion, scored on the same held-out prompts.

    The champion is scored as every arm is and becomes one, ``report["arms"]["champion"]``. Nats a token of different
    tokens say nothing about each other, so by these metrics a champion with another tokenizer is neither shown nor
    compared: the comparison then has a ``refusal`` and no numbers. ``report["champion"]`` says how fast and large it
    is; what judging it cost is added to the spend.

    Args:
        evaluation: Of the candidate; not changed.
        champion: Its model folder.
        validated: The teacher's texts, those of ``evaluation``.
        splits: Which prompts are held out.
        run: The specification; its evaluation, gate and student sections are read.
        scratch: Folder for temporary files; what the champion said is left there in ``CHAMPION_PREDICTIONS``.
        journals: Where its answers and the judge's are remembered.

    Raises:
        ModelError: if the folder holds no model.
        GateError: if no held-out prompt has a usable text.
        TeacherError, BudgetError, StorageError: if the judge cannot be asked; the same call goes on from there.
    """
    report = read_json(evaluation.path / "report.json")
    rules = _rules(report, run, has_champion=True)
    refusals = _refusals(report, rules, champion)
    needed = {rule.wanted.metric for rule in rules if rule.wanted.against == CHAMPION}
    sets = HeldoutSets(validated, splits, run, scratch, with_truth=run.evaluation.exact_kl)
    scored = _score(champion, sets, run, scratch / CHAMPION_PREDICTIONS, journals.answers)
    if WIN_RATE in needed and run.evaluation.judge is not None:
        duel = duels_with_teacher(run.evaluation.judge, [CHAMPION])
        spend = report["facts"].get("spend", {})
        referee = open_referee(
            duel,
            run,
            validated,
            splits,
            journal_path=journals.paid,
            scratch=scratch,
            counted=counted_requests(evaluation.path),
            before=spend.get(JUDGE),
        )
        judged = referee.judge_arms({CHAMPION: scored.free_answers})
        scored.sums[WIN_RATE] = referee.win_rates(judged)[CHAMPION]
        verdicts = merge_described(report.get("judge", {}), describe(referee.judge, judged, run.evaluation))
        report = with_spend({**report, "judge": verdicts}, with_judge(spend, referee.judge.asking.costs))
    resources = comparable_resources(measure_model(champion, run), report["resources"])
    own = _measured(scored.sums, evaluation, run, has_other_tokens=_speaks_otherwise(report, champion))
    arms = {**report["arms"], CHAMPION: {metric: own[metric] for metric in report["metrics"] if metric in own}}
    report = {**report, "arms": arms, CHAMPION: {"resources": resources}}
    return _with_comparisons(report, evaluation, run, rules, champion=scored.sums, refusals=refusals)


class _Scored(NamedTuple):
    """The champion's sums, metric by metric, and its free answers by prompt."""

    sums: dict[str, Sums]
    free_answers: dict[str, str]


def _refusals(report: Mapping[str, Any], rules: Sequence[Rule], champion: Path) -> dict[Wanted, str]:
    """Differences that make no sense with this champion, and why."""
    if not _speaks_otherwise(report, champion):
        return {}
    wanted = (rule.wanted for rule in rules if rule.wanted.against == CHAMPION)
    return {one: _OTHER_TOKENS for one in wanted if metric_of(one.metric).is_per_token}


def _speaks_otherwise(report: Mapping[str, Any], champion: Path) -> bool:
    """Whether the champion has other tokens than the candidate."""
    own = tokenizer_fingerprint(load_tokenizer_from(Source(str(champion))))
    return bool(own != report["heldout"]["tokenizer"])


def _measured(
    sums: Mapping[str, Sums], evaluation: Evaluation, run: RunSpec, *, has_other_tokens: bool
) -> dict[str, dict[str, Any]]:
    """The champion as an arm of the report; without what is counted in tokens that are not the candidate's."""
    shown = {
        metric: {CHAMPION: {0: of_prompts}}
        for metric, of_prompts in sums.items()
        if not (has_other_tokens and metric_of(metric).is_per_token)
    }
    prompts, settings = PromptTable.read(evaluation.path / "prompts.parquet"), settings_of(run.evaluation)
    return measure(shown, prompts, settings, seeds_in_interval=False).get(CHAMPION, {})


def _score(champion: Path, sets: HeldoutSets, run: RunSpec, predictions: Path, answers: Path | None) -> _Scored:
    said: dict[str, str] = {}

    def keep(answer: TaskAnswer) -> None:
        if answer.task == FREE_ANSWERS:
            said[answer.prompt_id] = answer.text

    with stage("scoring champion", total=1, unit="model") as progress:
        scores = score_model(champion, sets, run, journals=answers, keep=keep)
        progress.advance()
    pq.write_table(pa.Table.from_pylist(list(scores.rows(CHAMPION, 0)), schema=PREDICTIONS), predictions)
    return _Scored(dict(scores.sums()), said)


def _rules(report: Mapping[str, Any], run: RunSpec, *, has_champion: bool) -> tuple[Rule, ...]:
    metrics, slices = report["metrics"], report["slices"]
    return rules_of(run.gate, has_champion=has_champion, metrics=metrics, slices=slices)


def _with_comparisons(
    report: Mapping[str, Any],
    evaluation: Evaluation,
    run: RunSpec,
    rules: Sequence[Rule],
    *,
    champion: Mapping[str, Sums] | None = None,
    refusals: Mapping[Wanted, str] | None = None,
) -> dict[str, Any]:
    wanted = list(dict.fromkeys(rule.wanted for rule in rules if not rule.is_empty))
    sums: dict[str, dict[str, dict[int, Sums]]] = {}
    path = evaluation.path / "sums.parquet"
    sides: dict[str, Mapping[str, Sums]] = {
        name: _first_seed(path, arm, run.evaluation.calibration_bins) for arm, name in _bars(wanted).items()
    }
    if champion is not None:
        sides[CHAMPION] = champion
    for name, by_metric in sides.items():
        for metric, of_prompts in by_metric.items():
            sums.setdefault(metric, {})[name] = {0: of_prompts}
    prompts = PromptTable.read(evaluation.path / "prompts.parquet")
    settings = settings_of(run.evaluation, level=run.gate.level)
    made = compare(sums, wanted, prompts, settings, seeds_in_interval=False, refusals=refusals)
    return {**report, "comparisons": [*report["comparisons"], *made]}


def _bars(wanted: Iterable[Wanted]) -> dict[str, str]:
    """Arm of the evaluation -> what its first seed is called, for the candidate and the bars that are wanted."""
    against = {one.against for one in wanted}
    return {CANDIDATE: REGISTERED, **{arm: name for arm, name in FIRST_SEEDS.items() if name in against}}


def _first_seed(path: Path, arm: str, bins: int) -> dict[str, Sums]:
    """Metric -> sums of an arm's first seed; empty for an arm that was not evaluated."""
    table = pq.read_table(path, filters=[("arm", "=", arm)])
    if not table.num_rows:
        return {}
    # The seeds stand one after the other in the order in which they were given: the first row has the first one.
    table = table.filter(pc.equal(table["seed"], table["seed"][0]))
    found: dict[str, dict[str, list[float]]] = {}
    columns = (table[name].to_pylist() for name in ("metric", "prompt_id", "part", "numerator", "denominator"))
    for metric, prompt_id, part, *pair in zip(*columns, strict=True):
        num_parts = bins if metric_of(metric).form == "bins" else 1
        pairs = found.setdefault(metric, {}).setdefault(prompt_id, [0.0] * (2 * num_parts))
        pairs[2 * part : 2 * part + 2] = pair
    return {metric: {name: tuple(pairs) for name, pairs in of_metric.items()} for metric, of_metric in found.items()}

"""The stage: every arm on the same held-out prompts, then the numbers, their intervals and the report.

An arm is a list of model folders, one a seed. What a model said goes to ``predictions.parquet``; the sums of every
metric for each prompt go to ``sums.parquet`` and the prompts' clusters and slices to ``prompts.parquet``: from these
two every interval of ``report.json`` can be computed again, and the gate compares the registered model with its bars.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxykd.artifacts import Evaluation, SplitSet, ValidatedSet, read_json, seal, write_json
from proxykd.config import RunSpec
from proxykd.data.splits import select_rows
from proxykd.evaluation.comparing import Sums, Wanted, compare, settings_of
from proxykd.evaluation.drift import FREE_ANSWERS
from proxykd.evaluation.judged import WIN_RATE, duels_with_teacher, free_answers, open_referee, write_verdicts
from proxykd.evaluation.measured import AnswersFile, add_measures, collect_resources, with_task_slices
from proxykd.evaluation.metrics import metric_of
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.report import build_report
from proxykd.evaluation.rules import CANDIDATE, CHAMPION, FIRST_SEEDS, REGISTERED, Rule, rules_of
from proxykd.evaluation.scoring import PREDICTIONS, HeldoutSets, ModelScores, score_model
from proxykd.evaluation.task_answers import TaskAnswer
from proxykd.evaluation.verdicts import describe
from proxykd.models.sources import Source
from proxykd.models.tokenizers import load_tokenizer_from, tokenizer_fingerprint
from proxykd.progress import stage
from proxykd.records import Side, hash_json

SECTIONS = ("teacher", "staging", "split", "proxy", "targets", "student", "evaluation")
"""Sections of the specification that the report shows."""

SUMS = pa.schema(
    [
        ("arm", pa.string()),
        ("seed", pa.int64()),
        ("metric", pa.string()),
        ("prompt_id", pa.string()),
        ("numerator", pa.float64()),
        ("denominator", pa.float64()),
    ]
)
"""One row an arm, seed, metric and prompt; an arm's seeds in the order in which they were given."""

CHAMPION_PREDICTIONS = "champion.parquet"
"""File of ``PREDICTIONS``: what the present champion said."""

_HELDOUT_METRICS = frozenset({"heldout_nll", "top1_agreement"})
"""What scoring the teacher's text alone gives."""

_OTHER_TOKENS = (
    "its tokenizer is another one, and nats a token of different tokens cannot be compared; register this student "
    "under another registry.model_name"
)


def evaluate(
    arms: Mapping[str, Sequence[Path]],
    validated: ValidatedSet,
    splits: SplitSet,
    run: RunSpec,
    *,
    facts: Mapping[str, Any],
    output: Path,
    scratch: Path,
    journals: Path | None = None,
    journal_path: Path | None = None,
) -> Evaluation:
    """Score every arm, compare them and write ``report.json``; the page is written when the decision is known.

    Args:
        arms: Arm name -> model folders, one a seed (in the order of ``run.student.seeds`` where there are as many).
            ``proxy_kd`` is the candidate.
        validated: The teacher's texts.
        splits: Which prompts are held out.
        run: The specification, ablations applied.
        facts: What the report should show beside the numbers, JSON values: ``spend``, ``fidelity`` (one mapping a
            stage), ``curves`` (name -> one mapping a step) and any other mapping; ``made_from`` (name -> artifact
            hash) becomes the lineage.
        output: Folder of the artifact.
        scratch: Folder for temporary files.
        journals: Folder in which the models' answers are journaled: the same evaluation, killed and started again,
            asks no model twice; None = they are not.
        journal_path: The journal of paid answers, through which the judge asks; without it nobody may judge.

    Raises:
        GateError: if there is no held-out prompt that every arm can be scored on.
        TeacherError, BudgetError, StorageError: if the judge cannot be asked; the same call goes on from there.
    """
    output.mkdir(parents=True, exist_ok=True)
    sets = HeldoutSets(validated, splits, run, scratch)
    scores = _score_arms(arms, sets, run, output, journals)
    verdicts = _judge(scores, validated, splits, run, output, scratch=scratch, journal_path=journal_path)
    heldout = PromptTable.of_rows(select_rows(validated, splits, {Side.HELDOUT}))
    prompts = with_task_slices(heldout, scores)
    prompts.write(output / "prompts.parquet")
    _write_sums(scores, output / "sums.parquet")
    sections = {name: getattr(run, name) for name in SECTIONS}
    settings = {name: section.model_dump(mode="json") for name, section in sections.items() if section is not None}
    made_from = {"validated": validated.hash, "splits": splits.hash, **facts.get("made_from", {})}
    facts = {**facts, "resources": collect_resources(arms.get(CANDIDATE, ()), run)}
    report = build_report(
        {arm: {seed: one.sums() for seed, one in seeds.items()} for arm, seeds in scores.items()},
        run,
        facts={**facts, "settings": settings, "made_from": made_from},
        entropy=sets.teacher_entropy(),
        texts=_candidate(scores).texts,
        prompts=prompts,
    )
    write_json(output / "report.json", {**add_measures(report, scores, run), **verdicts})
    evaluation = Evaluation(output)
    seal(evaluation, made_from={**made_from, "settings": hash_json(settings)})
    return evaluation


def compare_registered(evaluation: Evaluation, run: RunSpec) -> dict[str, Any]:
    """The report with what the gate needs where there is no champion: the registered model against the first bar.

    The comparisons of the report itself are between means over seeds, and the mean of several models is none that
    could be registered.

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
    journal_path: Path | None = None,
) -> dict[str, Any]:
    """The report with what the gate needs where there is a champion, scored on the same held-out prompts.

    The champion is scored with every metric that the policy names. Nats a token of different tokens say nothing about
    each other, so by these metrics a champion with another tokenizer is not compared: the comparison then has a
    ``refusal`` and no numbers.

    Args:
        evaluation: Of the candidate; not changed.
        champion: Its model folder.
        validated: The teacher's texts, those of ``evaluation``.
        splits: Which prompts are held out.
        run: The specification; its evaluation, gate and student sections are read.
        scratch: Folder for temporary files; what the champion said is left there in ``CHAMPION_PREDICTIONS``.
        journal_path: The journal of paid answers, through which the judge asks; without it nobody may judge.

    Raises:
        ModelError: if the folder holds no model.
        GateError: if no held-out prompt has a usable text.
    """
    report = read_json(evaluation.path / "report.json")
    rules = _rules(report, run, has_champion=True)
    needed = {rule.wanted.metric for rule in rules if rule.wanted.against == CHAMPION}
    refusals = {}
    if tokenizer_fingerprint(load_tokenizer_from(Source(str(champion)))) != report["heldout"]["tokenizer"]:
        refusals = {
            rule.wanted: _OTHER_TOKENS
            for rule in rules
            if rule.wanted.against == CHAMPION and metric_of(rule.wanted.metric).is_per_token
        }
        needed -= {wanted.metric for wanted in refusals}
    sets = HeldoutSets(validated, splits, run, scratch, with_truth="exact_kl" in needed)
    said: dict[str, str] = {}
    theirs = _score_champion(champion, sets, needed, run, scratch / CHAMPION_PREDICTIONS, said) if needed else {}
    if WIN_RATE in needed and run.evaluation.judge is not None:
        duel = duels_with_teacher(run.evaluation.judge, [CHAMPION])
        referee = open_referee(duel, run, validated, splits, journal_path=journal_path, scratch=scratch)
        theirs |= {WIN_RATE: referee.win_rates(referee.judge_arms({CHAMPION: said}))[CHAMPION]}
    return _with_comparisons(report, evaluation, run, rules, champion=theirs, refusals=refusals)


def _judge(
    scores: Mapping[str, Mapping[int, ModelScores]],
    validated: ValidatedSet,
    splits: SplitSet,
    run: RunSpec,
    output: Path,
    *,
    scratch: Path,
    journal_path: Path | None,
) -> dict[str, Any]:
    """The section ``judge`` of the report, and the judged arms' metric among the sums of their first seeds."""
    if run.evaluation.judge is None:
        return {}
    first_seeds = {arm: next(iter(seeds)) for arm, seeds in scores.items()}
    referee = open_referee(run.evaluation.judge, run, validated, splits, journal_path=journal_path, scratch=scratch)
    judged = referee.judge_arms(free_answers(output / "answers.parquet", first_seeds))
    write_verdicts(judged, output / "verdicts.parquet")
    for arm, sums in referee.win_rates(judged).items():
        scores[arm][first_seeds[arm]].tasks.sums[WIN_RATE] = dict(sums)
    return {"judge": describe(referee.judge, judged, run.evaluation)}


def _score_champion(
    champion: Path,
    sets: HeldoutSets,
    needed: Iterable[str],
    run: RunSpec,
    predictions: Path,
    said: dict[str, str],
) -> dict[str, Sums]:
    """The champion's sums; its free answers go into ``said``."""

    def keep(answer: TaskAnswer) -> None:
        if answer.task == FREE_ANSWERS:
            said[answer.prompt_id] = answer.text

    with stage("scoring champion", total=1, unit="model") as progress:
        scores = score_model(champion, sets, run, heldout_only=_HELDOUT_METRICS.issuperset(needed), keep=keep)
        progress.advance()
    pq.write_table(pa.Table.from_pylist(list(scores.rows(CHAMPION, 0)), schema=PREDICTIONS), predictions)
    return dict(scores.sums())


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
    sides: dict[str, Mapping[str, Sums]] = {name: _first_seed(path, arm) for arm, name in _bars(wanted).items()}
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


def _write_sums(scores: Mapping[str, Mapping[int, ModelScores]], path: Path) -> None:
    with pq.ParquetWriter(path, SUMS) as writer:
        for arm, seeds in scores.items():
            for seed, one in seeds.items():
                for metric, sums in one.sums().items():
                    above, below = zip(*sums.values(), strict=True) if sums else ((), ())
                    names = ([name] * len(sums) for name in (arm, seed, metric))
                    writer.write_table(pa.table([*names, list(sums), list(above), list(below)], schema=SUMS))


def _score_arms(
    arms: Mapping[str, Sequence[Path]], sets: HeldoutSets, run: RunSpec, output: Path, journals: Path | None
) -> dict[str, dict[int, ModelScores]]:
    scores: dict[str, dict[int, ModelScores]] = {}
    total = sum(len(folders) for folders in arms.values())
    with (
        stage("evaluating", total=total, unit="model") as progress,
        pq.ParquetWriter(output / "predictions.parquet", PREDICTIONS) as writer,
        AnswersFile(output / "answers.parquet") as answers,
    ):
        for arm, folders in arms.items():
            scores[arm] = {}
            for seed, folder in zip(_seeds(run, len(folders)), folders, strict=True):
                one = scores[arm][seed] = score_model(
                    folder, sets, run, journals=journals, keep=answers.keeper(arm, seed)
                )
                writer.write_table(pa.Table.from_pylist(list(one.rows(arm, seed)), schema=PREDICTIONS))
                progress.advance(arm=arm)
    return scores


def _seeds(run: RunSpec, count: int) -> tuple[int, ...]:
    return run.student.seeds if count == len(run.student.seeds) else tuple(range(count))


def _candidate(scores: Mapping[str, Mapping[int, ModelScores]]) -> ModelScores:
    arm = scores[CANDIDATE] if CANDIDATE in scores else next(iter(scores.values()))
    return next(iter(arm.values()))


def _first_seed(path: Path, arm: str) -> dict[str, Sums]:
    """Metric -> sums of an arm's first seed; empty for an arm that was not evaluated."""
    table = pq.read_table(path, filters=[("arm", "=", arm)])
    if not table.num_rows:
        return {}
    # The seeds stand one after the other in the order in which they were given: the first row has the first one.
    table = table.filter(pc.equal(table["seed"], table["seed"][0]))
    found: dict[str, dict[str, tuple[float, float]]] = {}
    columns = (table[name].to_pylist() for name in ("metric", "prompt_id", "numerator", "denominator"))
    for metric, prompt_id, numerator, denominator in zip(*columns, strict=True):
        found.setdefault(metric, {})[prompt_id] = (numerator, denominator)
    return dict(found)

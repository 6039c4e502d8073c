"""The stage: every arm on the same held-out prompts, then the numbers, their intervals and the report.

An arm is a list of model folders, one a seed. What a model said goes to ``predictions.parquet``; the sums of every
metric for each prompt go to ``sums.parquet`` and the prompts' clusters and slices to ``prompts.parquet``: from these
two every interval of ``report.json`` can be computed again, and the gate compares the registered model with its bars
(``proxykd.evaluation.bars``).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from proxykd.artifacts import Evaluation, SplitSet, ValidatedSet, seal, write_json
from proxykd.config import RunSpec
from proxykd.config.judge import WIN_RATE
from proxykd.data.splits import select_rows
from proxykd.evaluation.contamination import measure_contamination
from proxykd.evaluation.generation_journal import mark_answers
from proxykd.evaluation.judged import free_answers, open_referee, write_verdicts
from proxykd.evaluation.measured import AnswersFile, add_measures, collect_resources, with_task_slices
from proxykd.evaluation.prompts import PromptTable
from proxykd.evaluation.report import build_report
from proxykd.evaluation.rules import CANDIDATE
from proxykd.evaluation.scoring import PREDICTIONS, HeldoutSets, ModelScores, score_model
from proxykd.evaluation.spend import with_judge
from proxykd.evaluation.verdicts import describe
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
        ("part", pa.int32()),
        ("numerator", pa.float64()),
        ("denominator", pa.float64()),
    ]
)
"""One row an arm, seed, metric, prompt and part; an arm's seeds in the order in which they were given.

Metrics of bins have a part for each bin, of which empty ones beyond the first are left out; others have the part 0.
"""


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
    if journals is not None:
        mark_answers(journals, made=None)
    sets = HeldoutSets(validated, splits, run, scratch)
    scores = _score_arms(arms, sets, run, output, journals)
    verdicts, spend = _judge(scores, validated, splits, run, output, scratch=scratch, journal_path=journal_path)
    heldout = PromptTable.of_rows(select_rows(validated, splits, {Side.HELDOUT}), run.evaluation.slices)
    prompts = with_task_slices(heldout, scores)
    prompts.write(output / "prompts.parquet")
    _write_sums(scores, output / "sums.parquet")
    sections = {name: getattr(run, name) for name in SECTIONS}
    settings = {name: section.model_dump(mode="json") for name, section in sections.items() if section is not None}
    made_from = {"validated": validated.hash, "splits": splits.hash, **facts.get("made_from", {})}
    facts = {**facts, "resources": collect_resources(arms.get(CANDIDATE, ()), run)}
    if shared := measure_contamination(output / "answers.parquet", validated, splits, run, scratch=scratch):
        facts["contamination"] = shared
    if spend:
        facts["spend"] = with_judge(facts.get("spend", {}), spend)
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
    if journals is not None:
        mark_answers(journals, made=evaluation.hash)
    return evaluation


def _judge(
    scores: Mapping[str, Mapping[int, ModelScores]],
    validated: ValidatedSet,
    splits: SplitSet,
    run: RunSpec,
    output: Path,
    *,
    scratch: Path,
    journal_path: Path | None,
) -> tuple[dict[str, Any], dict[str, float]]:
    """The section ``judge`` of the report and what it cost; the judged arms' metric joins their first seeds' sums."""
    if run.evaluation.judge is None:
        return {}, {}
    first_seeds = {arm: next(iter(seeds)) for arm, seeds in scores.items()}
    referee = open_referee(run.evaluation.judge, run, validated, splits, journal_path=journal_path, scratch=scratch)
    judged = referee.judge_arms(free_answers(output / "answers.parquet", first_seeds))
    write_verdicts(referee, judged, output)
    for arm, sums in referee.win_rates(judged).items():
        scores[arm][first_seeds[arm]].tasks.sums[WIN_RATE] = dict(sums)
    return {"judge": describe(referee.judge, judged, run.evaluation)}, referee.judge.asking.costs


def _write_sums(scores: Mapping[str, Mapping[int, ModelScores]], path: Path) -> None:
    with pq.ParquetWriter(path, SUMS) as writer:
        for arm, seeds in scores.items():
            for seed, one in seeds.items():
                for metric, sums in one.sums().items():
                    rows = [
                        (prompt_id, place // 2, pairs[place], pairs[place + 1])
                        for prompt_id, pairs in sums.items()
                        for place in range(0, len(pairs), 2)
                        if not place or pairs[place + 1]
                    ]
                    columns = map(list, zip(*rows, strict=True)) if rows else [[]] * 4
                    names = ([name] * len(rows) for name in (arm, seed, metric))
                    writer.write_table(pa.table([*names, *columns], schema=SUMS))


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

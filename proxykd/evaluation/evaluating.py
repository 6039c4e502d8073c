"""The stage: every arm on the same held-out prompts, then the numbers, their intervals and the report.

An arm is a list of model folders, one a seed. Sums for each prompt go to ``predictions.parquet``, from which every
number of ``report.json`` can be computed again.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from proxykd.artifacts import Evaluation, SplitSet, ValidatedSet, read_json, seal, write_json
from proxykd.config import RunSpec
from proxykd.evaluation.decision import BASELINE, CANDIDATE, CHAMPION, FIRST_BASELINE, METRIC, REGISTERED
from proxykd.evaluation.measured import AnswersFile, add_measures, collect_resources
from proxykd.evaluation.page import write_page
from proxykd.evaluation.report import Sums, build_report, compare, refused, sums_of_metric
from proxykd.evaluation.scoring import PREDICTIONS, HeldoutSets, ModelScores, score_model
from proxykd.models.sources import Source
from proxykd.models.tokenizers import load_tokenizer_from, tokenizer_fingerprint
from proxykd.progress import stage
from proxykd.records import hash_json

SECTIONS = ("teacher", "staging", "split", "proxy", "targets", "student", "evaluation")
"""Sections of the specification that the report shows."""

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
) -> Evaluation:
    """Score every arm, compare them and write the report.

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

    Raises:
        GateError: if there is no held-out prompt that every arm can be scored on.
    """
    output.mkdir(parents=True, exist_ok=True)
    sets = HeldoutSets(validated, splits, run, scratch)
    scores = _score_arms(arms, sets, run, output, journals)
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
    )
    report = add_measures(report, scores, run)
    write_json(output / "report.json", report)
    write_page(report, output)
    evaluation = Evaluation(output)
    seal(evaluation, made_from={**made_from, "settings": hash_json(settings)})
    return evaluation


def compare_registered(evaluation: Evaluation, run: RunSpec) -> dict[str, Any]:
    """The report with one more difference: the model that is registered against the first seed of the SFT arm.

    The comparisons of the report itself are between means over seeds, and the mean of several models is none that
    could be registered. Without an SFT arm the report comes back as it is.

    Args:
        evaluation: Of the candidate; not changed.
        run: The specification; its evaluation section is read.
    """
    report, predictions = read_json(evaluation.path / "report.json"), evaluation.path / "predictions.parquet"
    ours, theirs = _first_seed(predictions, CANDIDATE), _first_seed(predictions, BASELINE)
    return _with_comparison(report, ours, theirs, FIRST_BASELINE, run) if ours and theirs else report


def compare_with_champion(
    evaluation: Evaluation, champion: Path, validated: ValidatedSet, splits: SplitSet, run: RunSpec, *, scratch: Path
) -> dict[str, Any]:
    """The report with one more arm, the present champion, on the same held-out prompts.

    The candidate in this comparison is the model that would be registered: its first seed, not the mean of its seeds.
    Nats a token of different tokens say nothing about each other, so a champion with another tokenizer is not scored:
    the comparison then has a ``refusal`` and no numbers.

    Args:
        evaluation: Of the candidate; not changed.
        champion: Its model folder.
        validated: The teacher's texts, those of ``evaluation``.
        splits: Which prompts are held out.
        run: The specification; its evaluation and student sections are read.
        scratch: Folder for temporary files.

    Raises:
        ModelError: if the folder holds no model.
        GateError: if the two were scored on no common prompt.
    """
    report = read_json(evaluation.path / "report.json")
    if tokenizer_fingerprint(load_tokenizer_from(Source(str(champion)))) != report["heldout"]["tokenizer"]:
        return {**report, "comparisons": [*report["comparisons"], refused(METRIC, REGISTERED, CHAMPION, _OTHER_TOKENS)]}
    sets = HeldoutSets(validated, splits, run, scratch, with_truth=False)
    with stage("scoring champion", total=1, unit="model") as progress:
        theirs = score_model(champion, sets, run, heldout_only=True).sums()[METRIC]
        progress.advance()
    ours = _first_seed(evaluation.path / "predictions.parquet", CANDIDATE)
    return _with_comparison(report, ours, theirs, CHAMPION, run)


def _with_comparison(report: Mapping[str, Any], ours: Sums, theirs: Sums, against: str, run: RunSpec) -> dict[str, Any]:
    sums = {REGISTERED: {0: {METRIC: ours}}, against: {0: {METRIC: theirs}}}
    found = compare(sums_of_metric(sums, METRIC), METRIC, REGISTERED, against, run)
    return {**report, "comparisons": [*report["comparisons"], found]}


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


def _first_seed(predictions: Path, arm: str) -> Sums:
    table = pq.read_table(predictions, columns=["arm", "seed", "prompt_id", "nll_sum", "num_tokens"])
    rows = table.filter(pc.equal(table["arm"], arm)).to_pylist()
    # The seeds stand one after the other in the order in which they were given: the first row has the first one.
    return {
        row["prompt_id"]: (row["nll_sum"], float(row["num_tokens"])) for row in rows if row["seed"] == rows[0]["seed"]
    }

"""Track the run, register the student, and move the champion if the statistics say so."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

from zenml import step

from proxykd.artifacts import (
    Artifact,
    DriftReport,
    Evaluation,
    JournalExcerpt,
    Promotion,
    SplitSet,
    StudentModel,
    ValidatedSet,
    ValidationResult,
    read_json,
    seal,
    write_json,
)
from proxykd.config import RunSpec
from proxykd.config.shielding import unshielded
from proxykd.data.splits import select_rows
from proxykd.evaluation.card import model_card
from proxykd.evaluation.decision import Decision, decide
from proxykd.evaluation.evaluating import CHAMPION_PREDICTIONS, compare_registered, compare_with_champion
from proxykd.evaluation.lineage import TRAJECTORIES, build_lineage
from proxykd.evaluation.page.rendering import PageData
from proxykd.evaluation.samples import worst_samples
from proxykd.records import Side
from proxykd.teacher.excerpt import JOURNAL_FILE
from proxykd.workspace import Workspace
from steps.adapters import mlflow_registry, mlflow_report, mlflow_tracking
from steps.adapters.mlflow_tracking import TrackedRun
from steps.adapters.step_times import measured_steps
from steps.materializers.folder import FolderMaterializer
from steps.settings import new_folder, scratch_folder


# Never from the cache: it acts on MLflow, which may be another one by now, or may have lost what it had.
@step(output_materializers=FolderMaterializer, enable_cache=False)
def promote_model(
    journal: JournalExcerpt,
    validation: ValidationResult,
    drift: DriftReport,
    validated: ValidatedSet,
    splits: SplitSet,
    student: StudentModel,
    evaluation: Evaluation,
    specification: dict[str, Any],
    planned: str | None,
    code: str,
) -> Annotated[Promotion, "promotion"]:
    """Log to MLflow, register as challenger, decide, and make it champion or not.

    Args:
        journal: The journal entries behind the teacher's texts, for the lineage.
        validation: Its data docs are logged.
        drift: Its page is logged: the data docs with the drift in them.
        validated: The teacher's texts, for scoring the present champion.
        splits: Which prompts are held out.
        student: What is registered: the model of the first seed.
        evaluation: What is decided on.
        specification: The whole resolved specification, shielded (``proxykd.config.shielding``), logged as an artifact.
        planned: Hash of the prompts' file or dataset; None = there is none.
        code: Hash of the code that the step runs.
    """
    run = RunSpec.model_validate(unshielded(specification))
    tracked = mlflow_tracking.log_evaluation(
        evaluation, run, documents={"validation": validation.path, "drift": drift.path}
    )
    report = read_json(evaluation.path / "report.json")
    inputs = {"journal": journal, "validation": validation, "drift": drift, "validated": validated, "splits": splits}
    lineage = build_lineage(
        report,
        run,
        journal=read_json(journal.path / JOURNAL_FILE),
        artifacts=_artifacts(report, {**inputs, "student": student, "evaluation": evaluation}),
        inputs=planned,
        **measured_steps(),
    )
    registered = mlflow_registry.register_student(
        student.model_folders(run.student.seeds)[0],
        model_name=run.registry.model_name,
        student_hash=student.hash,
        experiment=run.name,
        run_id=tracked.run_id,
        tags={"proxykd.evaluation": evaluation.hash, "proxykd.validation": validation.hash},
        model_card=model_card(report, run, lineage),
        lineage=lineage,
    )
    decision, decided = mlflow_registry.applied_decision(registered), None
    with scratch_folder() as scratch:
        if decision is None:
            decision, decided = _decide(evaluation, validated, splits, run, scratch)
            mlflow_registry.apply_decision(registered, decision)
        samples = worst_samples(evaluation, scratch / CHAMPION_PREDICTIONS, validated, splits)
    facts = {
        **asdict(decision),
        "model_name": registered.model_name,
        "model_uri": registered.uri,
        "aliases": mlflow_registry.aliases_of(registered),
        "run_id": tracked.run_id,
        "tracking_uri": tracked.tracking_uri,
        "example_question": next(select_rows(validated, splits, {Side.HELDOUT})).messages[-1].content,
    }
    with new_folder("promotion") as output:
        promotion = Promotion(output)
        write_json(output / "promotion.json", facts)
        if not mlflow_report.find_report(tracked, output):
            decided = decided or compare_registered(evaluation, run)
            mlflow_report.log_report(tracked, _page_data(decided, facts, samples, run, tracked), output)
        seal(promotion, {"student": student.hash, "evaluation": evaluation.hash})
        return promotion


def _artifacts(report: Mapping[str, Any], artifacts: Mapping[str, Artifact]) -> dict[str, str]:
    """Name -> hash of all artifacts on the way: those at hand, those of the report, and what rows were judged from."""
    own = {name: artifact.hash for name, artifact in artifacts.items()}
    judged, taught = (artifacts[name].manifest["made_from"] for name in ("validated", "student"))
    corrected = {name: digest for name, digest in taught.items() if name.startswith(TRAJECTORIES)}
    asked = {name: judged[name] for name in ("prompts", "completions")}
    return {**report["facts"]["made_from"], **asked, **corrected, **own}


def _page_data(
    decided: Mapping[str, Any],
    facts: Mapping[str, Any],
    samples: Sequence[Mapping[str, Any]],
    run: RunSpec,
    tracked: TrackedRun,
) -> PageData:
    registered = {name: facts[name] for name in ("model_uri", "aliases", "run_id", "tracking_uri")}
    runs = mlflow_report.tracked_runs(tracked, metric=run.gate.primary.metric, outcome=str(facts["outcome"]))
    return PageData(decided, facts, run.gate.model_dump(mode="json"), registered, samples, runs)


def _decide(
    evaluation: Evaluation, validated: ValidatedSet, splits: SplitSet, run: RunSpec, scratch: Path
) -> tuple[Decision, dict[str, Any]]:
    """The decision and the report with the comparisons that it was made on.

    The bar is the present champion where there is one, else the first bar of the gate.
    """
    champion = mlflow_registry.find_champion(run.registry.model_name)
    if champion is None:
        report = compare_registered(evaluation, run)
        return decide(report, run.gate, None), report
    folder = mlflow_registry.download_version(champion, scratch / "model")
    report = compare_with_champion(
        evaluation, folder, validated, splits, run, scratch=scratch, journal_path=Workspace.default().journal
    )
    decision = decide(report, run.gate, {"version": champion.version})
    return replace(decision, expected_champion=champion.version), report

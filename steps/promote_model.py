"""Track the run, register the student, and move the champion if the statistics say so."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
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
from proxykd.evaluation.basis import Basis, Champion, make_basis
from proxykd.evaluation.card import model_card
from proxykd.evaluation.decision import Decision
from proxykd.evaluation.generation_journal import ANSWERS, mark_answers, remove_answers
from proxykd.evaluation.lineage import TRAJECTORIES, build_lineage
from proxykd.evaluation.page.rendering import PageData
from proxykd.exceptions import ModelError
from proxykd.own_code import require_code
from proxykd.records import Side
from proxykd.teacher.excerpt import JOURNAL_FILE
from proxykd.workspace import Workspace
from steps.adapters import mlflow_registry, mlflow_report, mlflow_tracking
from steps.adapters.mlflow_tracking import TrackedRun
from steps.adapters.step_times import measured_steps
from steps.holding import hold_workspace
from steps.materializers.folder import FolderMaterializer
from steps.settings import checkpoint_folder, checkpoints, new_folder, scratch_folder


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A student that is to be decided on, and where that is tracked."""

    run: RunSpec
    tracked: TrackedRun
    journal: JournalExcerpt
    validation: ValidationResult
    drift: DriftReport
    validated: ValidatedSet
    splits: SplitSet
    student: StudentModel
    evaluation: Evaluation
    planned: str | None


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
    """Log to MLflow, decide, register as challenger, and make it champion or not.

    What the decision rests on is kept with the run before anything is acted on, so that a run that is interrupted
    shows the same page later; and before the student is registered, so that its lineage knows the whole cost.

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
    require_code(__name__, code)
    hold_workspace()
    run = RunSpec.model_validate(unshielded(specification))
    documents = {"validation": validation.path, "drift": drift.path}
    tracked = mlflow_tracking.log_evaluation(evaluation, run, documents=documents)
    # The evaluation has come out of the artifact store: nobody asks its models again.
    remove_answers(checkpoints(), made=evaluation.hash)
    answers = checkpoint_folder({"student": student.hash}, code) / ANSWERS
    one = _Candidate(run, tracked, journal, validation, drift, validated, splits, student, evaluation, planned)
    with new_folder("promotion") as output:
        registered, decision, basis = _decide(one, answers, output)
        facts = _facts(one, registered, decision)
        write_json(output / "promotion.json", facts)
        if basis is not None:
            mlflow_report.log_report(tracked, _page_data(basis, facts, one), output)
        mark_answers(answers, made=student.hash)
        remove_answers(checkpoints(), made=student.hash)
        promotion = Promotion(output)
        seal(promotion, {"student": student.hash, "evaluation": evaluation.hash})
        return promotion


def _decide(
    one: _Candidate, answers: Path, output: Path
) -> tuple[mlflow_registry.RegisteredVersion, Decision, Basis | None]:
    """The version, what became of it, and the basis of that; None = the page was logged, and is in ``output`` now."""
    registered = mlflow_registry.find_student(one.run.registry.model_name, one.student.hash)
    applied = None if registered is None else mlflow_registry.applied_decision(registered)
    if registered is not None and applied is not None:
        if mlflow_report.find_report(one.tracked, output):
            return registered, applied, None
        basis = mlflow_report.find_basis(one.tracked, applied) or _compare(one, answers, applied)
        return registered, applied, replace(basis, decision=applied)
    basis = _compare(one, answers, None)
    mlflow_report.log_basis(one.tracked, basis)
    registered = registered or _register(one, basis.report)
    mlflow_registry.apply_decision(registered, basis.decision)
    return registered, basis.decision, basis


def _compare(one: _Candidate, answers: Path, applied: Decision | None) -> Basis:
    """Hold the student against the present champion, or against whom it was held against when it was decided on."""
    from proxykd.evaluation.bars import Journals

    mark_answers(answers, made=None)
    journals = Journals(answers, Workspace.default().journal)
    with scratch_folder() as scratch:
        found = _bar(one.run.registry.model_name, applied)
        champion = (
            None
            if found is None
            else Champion(found.version, mlflow_registry.download_version(found, scratch / "model"))
        )
        return make_basis(
            one.evaluation, champion, one.validated, one.splits, one.run, scratch=scratch, journals=journals
        )


def _bar(model_name: str, applied: Decision | None) -> mlflow_registry.RegisteredVersion | None:
    if applied is None:
        return mlflow_registry.find_champion(model_name)
    if applied.expected_champion is None:
        return None
    try:
        return mlflow_registry.find_version(f"{model_name}/{applied.expected_champion}")
    except ModelError:  # deleted since: what it was held against cannot be had any more
        return None


def _register(one: _Candidate, report: Mapping[str, Any]) -> mlflow_registry.RegisteredVersion:
    lineage = build_lineage(
        report,
        one.run,
        journal=read_json(one.journal.path / JOURNAL_FILE),
        artifacts=_artifacts(one, report),
        inputs=one.planned,
        **measured_steps(),
    )
    return mlflow_registry.register_student(
        one.student.model_folders(one.run.student.seeds)[0],
        model_name=one.run.registry.model_name,
        student_hash=one.student.hash,
        experiment=one.run.name,
        run_id=one.tracked.run_id,
        tags={"proxykd.evaluation": one.evaluation.hash, "proxykd.validation": one.validation.hash},
        model_card=model_card(report, one.run, lineage),
        lineage=lineage,
    )


def _artifacts(one: _Candidate, report: Mapping[str, Any]) -> dict[str, str]:
    """Name -> hash of all artifacts on the way: those at hand, those of the report, and what rows were judged from."""
    names = ("journal", "validation", "drift", "validated", "splits", "student", "evaluation")
    artifacts: dict[str, Artifact] = {name: getattr(one, name) for name in names}
    own = {name: artifact.hash for name, artifact in artifacts.items()}
    judged, taught = (artifacts[name].manifest["made_from"] for name in ("validated", "student"))
    corrected = {name: digest for name, digest in taught.items() if name.startswith(TRAJECTORIES)}
    asked = {name: judged[name] for name in ("prompts", "completions")}
    return {**report["facts"]["made_from"], **asked, **corrected, **own}


def _facts(one: _Candidate, registered: mlflow_registry.RegisteredVersion, decision: Decision) -> dict[str, Any]:
    return {
        **asdict(decision),
        "model_name": registered.model_name,
        "model_uri": registered.uri,
        "aliases": mlflow_registry.aliases_of(registered),
        "run_id": one.tracked.run_id,
        "tracking_uri": one.tracked.tracking_uri,
        "example_question": next(select_rows(one.validated, one.splits, {Side.HELDOUT})).messages[-1].content,
    }


def _page_data(basis: Basis, facts: Mapping[str, Any], one: _Candidate) -> PageData:
    registered = {name: facts[name] for name in ("model_uri", "aliases", "run_id", "tracking_uri")}
    gate, outcome = one.run.gate, str(facts["outcome"])
    runs = mlflow_report.tracked_runs(one.tracked, metric=gate.primary.metric, outcome=outcome)
    return PageData(basis.report, facts, gate.model_dump(mode="json"), registered, basis.samples, runs)

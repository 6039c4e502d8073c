"""A student's folder -> a version of a registered MLflow model, and what a decision makes of it.

Idempotent: a version carries its student's hash as a tag, so the same student is registered once; each write finds
what an interrupted one left. Nothing is registered before all files are stored. Aliases:

    challenger            the newest student that was decided on
    champion              the one that was promoted last (``steps.adapters.mlflow_promotion``)
    previous-champion     the one before, for the way back

A decision is written down on the version before it is acted on, and marked once it has been acted on, so that whoever
was interrupted completes the decision that was taken instead of taking another one.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from proxykd.evaluation.decision import Decision, decision_of
from proxykd.evaluation.lineage import LINEAGE_FILE, hash_file
from proxykd.exceptions import ModelError, PromotionError, TrackingError
from proxykd.progress import report
from steps.adapters import mlflow_promotion
from steps.adapters.mlflow_model_folder import write_model_folder
from steps.adapters.mlflow_promotion_log import (
    CHALLENGER,
    CHAMPION,
    LOG_SUFFIX,
    NOBODY,
    PATIENCE_S,
    UNKNOWN_NAME,
    ensure_model,
)
from steps.adapters.mlflow_tracking import connect, ensure_experiment, tracking_errors
from steps.adapters.tracking_server import without_userinfo
from steps.settings import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

STUDENT_TAG = "proxykd.student"
"""Version tag: the hash of the registered student."""
LINEAGE_TAG = "proxykd.lineage"
"""Version tag: the SHA-256 of its ``lineage.json``."""
RECORD_TAG = "proxykd.decision.record"
"""Version tag, written before a decision is acted on: all of it as JSON, and the name of the attempt."""
DECISION_TAG = "proxykd.decision"
"""Version tag, written after that: the outcome."""

_MAX_DESCRIPTION_CHARS, _CUT = 5000, "\n\n(cut; README.md beside the model is whole)"


@dataclass(frozen=True, slots=True)
class RegisteredVersion:
    """A version of a registered model.

    Attributes:
        model_name: Registered model.
        version: Its version, a decimal number as text.
        student_hash: Hash of the student that it holds.
        uri: ``models:/NAME/VERSION``.
        is_new: False if it was there before.
    """

    model_name: str
    version: str
    student_hash: str
    uri: str
    is_new: bool = False


@tracking_errors()
def register_student(
    model_folder: Path,
    *,
    model_name: str,
    student_hash: str,
    experiment: str,
    run_id: str | None = None,
    tags: Mapping[str, str] | None = None,
    model_card: str = "",
    lineage: Mapping[str, Any] | None = None,
) -> RegisteredVersion:
    """Register the model in ``model_folder``, unless the same student is registered.

    Args:
        model_folder: As ``save_model`` wrote it: safetensors weights, tokenizer, generation config.
        model_name: Registered model; created where it is missing.
        student_hash: Names the student.
        experiment: MLflow experiment that the logged model belongs to.
        run_id: The run that shows its evaluation.
        tags: Name -> hash.
        model_card: Markdown; becomes README.md, and its text, as far as there is room, the version's description.
        lineage: Becomes ``lineage.json`` beside the model, and its hash a tag; None = not known.

    Raises:
        TrackingError: if MLflow refuses or does not answer, here and in every other function of this module.
        ArtifactError: if the folder holds weights in a format that can run code.
    """
    if model_name.endswith(LOG_SUFFIX):
        raise ModelError(f"expected a model name that does not end in {LOG_SUFFIX!r}, got {model_name!r}")
    client = connect()
    if (found := _find_version(client, model_name, student_hash)) is not None:
        return _registered(found, student_hash, is_new=False)
    experiment_id = ensure_experiment(client, experiment)
    logged = _find_logged_model(client, experiment_id, student_hash, run_id)
    if logged is None:
        logged = _log_model(client, model_folder, experiment_id, run_id, student_hash, model_card, lineage)
    told = {LINEAGE_TAG: logged.tags[LINEAGE_TAG]} if LINEAGE_TAG in logged.tags else {}
    ensure_model(client, model_name)
    created = client.create_model_version(
        model_name,
        source=f"models:/{logged.model_id}",
        run_id=run_id,
        tags={**(tags or {}), **told, STUDENT_TAG: student_hash},
        description=_description(model_card),
        model_id=logged.model_id,
    )
    first = _find_version(client, model_name, student_hash) or created
    if str(first.version) != str(created.version):
        # Two at once: the first number counts, for both.
        client.delete_model_version(model_name, created.version)
    return _registered(first, student_hash, is_new=str(first.version) == str(created.version))


@tracking_errors()
def find_student(model_name: str, student_hash: str) -> RegisteredVersion | None:
    """The version that holds a student; None if it is not registered."""
    found = _find_version(connect(), model_name, student_hash)
    return None if found is None else _registered(found, student_hash, is_new=False)


@tracking_errors()
def apply_decision(registered: RegisteredVersion, decision: Decision, *, patience_s: float = PATIENCE_S) -> None:
    """Record a decision and do what it calls for; only "promote" moves the champion.

    A version that has a decision keeps it, so that running an old pipeline again never takes the place of a newer
    champion.

    Args:
        registered: The candidate.
        decision: What becomes of it. "promote" holds against ``expected_champion`` alone.
        patience_s: Seconds that another promotion under way is waited for.

    Raises:
        PromotionError: if the champion is another one by now; the decision is forgotten, to be taken anew.
    """
    if applied_decision(registered, patience_s=patience_s) is not None:
        return
    record = {**asdict(decision), "intent": uuid4().hex}
    connect().set_model_version_tag(registered.model_name, registered.version, RECORD_TAG, json.dumps(record))
    _act(registered, record, patience_s)


@tracking_errors()
def applied_decision(registered: RegisteredVersion, *, patience_s: float = PATIENCE_S) -> Decision | None:
    """The decision about a version; None if there was none yet.

    A decision that was recorded and not acted on to the end is completed now. One that came too late, because the
    champion is another one by now, is forgotten: it has to be taken anew.
    """
    tags = connect().get_model_version(registered.model_name, registered.version).tags
    if RECORD_TAG not in tags:
        return None
    record = json.loads(tags[RECORD_TAG])
    if DECISION_TAG not in tags:
        try:
            _act(registered, record, patience_s)
        except PromotionError:
            return None
    return decision_of(record)


def _act(registered: RegisteredVersion, record: Mapping[str, Any], patience_s: float) -> None:
    client, name, version = connect(), registered.model_name, registered.version
    if record["outcome"] == "promote":
        try:
            mlflow_promotion.promote(
                name,
                version,
                expected=record["expected_champion"] or NOBODY,
                reason="; ".join(record["reasons"]),
                intent=record["intent"],
                patience_s=patience_s,
            )
        except PromotionError:
            client.delete_model_version_tag(name, version, RECORD_TAG)
            raise
    newest = _version_with_alias(client, name, CHALLENGER)
    if newest is None or int(newest.version) < int(version):
        client.set_registered_model_alias(name, CHALLENGER, version)
    client.set_model_version_tag(name, version, DECISION_TAG, record["outcome"])


@tracking_errors()
def aliases_of(registered: RegisteredVersion) -> list[str]:
    """The aliases that point to a version now, in alphabetical order."""
    aliases = connect().get_registered_model(registered.model_name).aliases
    return sorted(alias for alias, version in aliases.items() if str(version) == registered.version)


@tracking_errors()
def find_champion(model_name: str, *, patience_s: float = PATIENCE_S) -> RegisteredVersion | None:
    """The present champion, once a promotion that was interrupted is completed; None if there is none.

    Raises:
        PromotionError: if the champion was deleted: any student would win against nobody.
    """
    version = mlflow_promotion.settle(model_name, patience_s=patience_s)
    return None if version is None else find_version(f"{model_name}/{version}")


@tracking_errors()
def find_version(model: str) -> RegisteredVersion:
    """The version that a user means.

    Args:
        model: ``NAME`` (its champion, else its newest version, which is said), ``NAME@ALIAS`` or ``NAME/VERSION``.

    Raises:
        ModelError: if there is no such model, alias or version.
    """
    from mlflow.exceptions import MlflowException

    client = connect()
    name, _, alias = model.partition("@")
    name, _, version = name.partition("/")
    try:
        if version:
            found = client.get_model_version(name, version)
        elif alias:
            found = client.get_model_version_by_alias(name, alias)
        else:
            known = client.get_registered_model(name)
            newest = max((int(one.version) for one in client.search_model_versions(f"name = '{name}'")), default=0)
            if CHAMPION not in known.aliases and newest:
                report(f"nobody is champion of {name}: its newest version is taken, {newest}")
            found = client.get_model_version(name, known.aliases.get(CHAMPION, str(newest)))
    except MlflowException as error:
        if error.error_code not in UNKNOWN_NAME:
            raise
        raise ModelError(
            f"expected a registered model {model!r} in {without_userinfo(client.tracking_uri)}, found none "
            f"({error.error_code}); run a specification first, or give another NAME, NAME@ALIAS "
            "(challenger, champion) or NAME/VERSION"
        ) from error
    return _registered(found, found.tags.get(STUDENT_TAG, ""), is_new=False)


@tracking_errors()
def download_champion(model_name: str, destination: Path) -> Path | None:
    """The present champion's model folder, as ``load_saved`` takes it; None if there is no champion.

    Args:
        model_name: Registered model.
        destination: Folder to download into; created.
    """
    champion = find_champion(model_name)
    return None if champion is None else download_version(champion, destination)


@tracking_errors()
def download_version(registered: RegisteredVersion, destination: Path) -> Path:
    """The model folder of a version, as ``load_saved`` takes it."""
    from mlflow.artifacts import download_artifacts

    client = connect()
    destination.mkdir(parents=True, exist_ok=True)
    uri = client.get_model_version_download_uri(registered.model_name, registered.version)
    downloaded = download_artifacts(f"{uri}/model", dst_path=str(destination), tracking_uri=client.tracking_uri)
    return Path(downloaded)


def _log_model(
    client: "MlflowClient",
    model_folder: Path,
    experiment_id: str,
    run_id: str | None,
    student_hash: str,
    model_card: str,
    lineage: Mapping[str, Any] | None,
) -> "LoggedModel":
    logged = client.create_logged_model(
        experiment_id, name="student", source_run_id=run_id, tags={STUDENT_TAG: student_hash}, model_type="student"
    )
    try:
        with scratch_folder() as folder:
            write_model_folder(model_folder, folder, model_card=model_card, lineage=lineage)
            if lineage is not None:
                client.set_logged_model_tags(logged.model_id, {LINEAGE_TAG: hash_file(folder / LINEAGE_FILE)})
            client.log_model_artifacts(logged.model_id, str(folder))
    except OSError as error:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise TrackingError(
            f"expected to store the student in {without_userinfo(logged.artifact_location)}, got {error}; nothing was "
            "registered: mend the artifact store and run the same command again"
        ) from error
    client.finalize_logged_model(logged.model_id, "READY")
    return client.get_logged_model(logged.model_id)


def _description(model_card: str) -> str | None:
    """The card without its head of YAML, cut to what MLflow's databases hold."""
    text = model_card.partition("\n---\n")[2].lstrip() if model_card.startswith("---\n") else model_card
    if len(text) > _MAX_DESCRIPTION_CHARS:
        text = f"{text[: _MAX_DESCRIPTION_CHARS - len(_CUT)]}{_CUT}"
    return text or None


def _find_logged_model(
    client: "MlflowClient", experiment_id: str, student_hash: str, run_id: str | None
) -> "LoggedModel | None":
    """A complete upload of this student by the same run, so that its card and lineage are this run's.

    One that was interrupted never became READY and is not used.
    """
    found = client.search_logged_models([experiment_id], filter_string=f"tags.`{STUDENT_TAG}` = '{student_hash}'")
    return next((one for one in found if str(one.status) == "READY" and one.source_run_id == run_id), None)


def _find_version(client: "MlflowClient", model_name: str, student_hash: str) -> "ModelVersion | None":
    wanted = f"name = '{model_name}' and tags.`{STUDENT_TAG}` = '{student_hash}'"
    found = client.search_model_versions(wanted)
    return min(found, key=lambda version: int(version.version), default=None)


def _version_with_alias(client: "MlflowClient", model_name: str, alias: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(model_name, alias)
    except MlflowException as error:
        if error.error_code in UNKNOWN_NAME:
            return None
        raise


def _registered(found: "ModelVersion", student_hash: str, *, is_new: bool) -> RegisteredVersion:
    version = str(found.version)
    return RegisteredVersion(found.name, version, student_hash, f"models:/{found.name}/{version}", is_new)

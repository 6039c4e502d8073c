"""A student's folder -> a version of a registered MLflow model, and the aliases that say which version is served.

Idempotent: a version carries its student's hash as a tag, so the same student is registered once; each write finds
what an interrupted one left. Aliases:

    challenger            the newest registered student
    champion              the one that a decision promoted last
    previous-champion     the one before, for the way back
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from proxykd.evaluation.decision import Decision
from steps.adapters.mlflow_model_folder import write_model_folder
from steps.adapters.mlflow_tracking import connect, ensure_experiment, tracking_errors
from steps.settings import scratch_folder

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

CHALLENGER, CHAMPION, PREVIOUS_CHAMPION = "challenger", "champion", "previous-champion"
STUDENT_TAG = "proxykd.student"
"""Version tag: the hash of the registered student."""
DECISION_TAG, REASONS_TAG = "proxykd.decision", "proxykd.decision.reasons"
"""Version tags, written before the aliases: the outcome and why."""
APPLIED_TAG = "proxykd.decision.applied"
"""Version tag, written after the aliases."""

UNKNOWN_NAME = frozenset({"RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"})
"""MLflow's codes for a missing model and for a missing alias; anything else is a failure."""


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
) -> RegisteredVersion:
    """Register the model in ``model_folder``, unless the same student is registered.

    Args:
        model_folder: As ``save_model`` wrote it: safetensors weights, tokenizer, generation config.
        model_name: Registered model; created where it is missing.
        student_hash: Names the student.
        experiment: MLflow experiment that the logged model belongs to.
        run_id: The run that shows its evaluation.
        tags: Lineage: name -> hash.
        model_card: Markdown; becomes README.md and the version's description.

    Raises:
        TrackingError: if MLflow refuses or does not answer, here and in every other function of this module.
        ArtifactError: if the folder holds weights in a format that can run code.
    """
    client = connect()
    _ensure_registered_model(client, model_name)
    if (found := _find_version(client, model_name, student_hash)) is not None:
        return _registered(found, student_hash, is_new=False)
    experiment_id = ensure_experiment(client, experiment)
    model_id = _find_logged_model(client, experiment_id, student_hash)
    if model_id is None:
        model_id = _log_model(client, model_folder, experiment_id, run_id, student_hash, model_card)
    created = client.create_model_version(
        model_name,
        source=f"models:/{model_id}",
        run_id=run_id,
        tags={**(tags or {}), STUDENT_TAG: student_hash},
        description=model_card or None,
        model_id=model_id,
    )
    return _registered(created, student_hash, is_new=True)


@tracking_errors()
def apply_decision(registered: RegisteredVersion, decision: Decision) -> None:
    """Record a decision and set the aliases that it calls for; only "promote" moves the champion.

    A version that has a decision keeps it, so that running an old pipeline again never takes the place of a newer
    champion.

    Args:
        registered: The candidate.
        decision: What becomes of it.
    """
    if applied_decision(registered) is not None:
        return
    client, name, version = connect(), registered.model_name, registered.version
    client.set_model_version_tag(name, version, REASONS_TAG, json.dumps(decision.reasons))
    client.set_model_version_tag(name, version, DECISION_TAG, decision.outcome)
    _set_aliases(client, registered, decision)


@tracking_errors()
def applied_decision(registered: RegisteredVersion) -> Decision | None:
    """The decision about a version; None if there was none yet.

    A decision is recorded before the aliases are set; if that was interrupted, they are set now.
    """
    client = connect()
    tags = client.get_model_version(registered.model_name, registered.version).tags
    if DECISION_TAG not in tags:
        return None
    decision = Decision(tags[DECISION_TAG], tuple(json.loads(tags[REASONS_TAG])))
    if APPLIED_TAG not in tags:
        _set_aliases(client, registered, decision)
    return decision


@tracking_errors()
def aliases_of(registered: RegisteredVersion) -> list[str]:
    """The aliases that point to a version now, in alphabetical order."""
    aliases = connect().get_registered_model(registered.model_name).aliases
    return sorted(alias for alias, version in aliases.items() if str(version) == registered.version)


@tracking_errors()
def find_champion(model_name: str) -> RegisteredVersion | None:
    """The present champion; None if there is none."""
    found = _version_with_alias(connect(), model_name, CHAMPION)
    return None if found is None else _registered(found, found.tags.get(STUDENT_TAG, ""), is_new=False)


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
) -> str:
    logged = client.create_logged_model(
        experiment_id, name="student", source_run_id=run_id, tags={STUDENT_TAG: student_hash}, model_type="student"
    )
    with scratch_folder() as folder:
        write_model_folder(model_folder, folder, model_card=model_card)
        client.log_model_artifacts(logged.model_id, str(folder))
    client.finalize_logged_model(logged.model_id, "READY")
    return str(logged.model_id)


def _find_logged_model(client: "MlflowClient", experiment_id: str, student_hash: str) -> str | None:
    """A complete upload of this student; one that was interrupted never became READY and is not used."""
    found = client.search_logged_models([experiment_id], filter_string=f"tags.`{STUDENT_TAG}` = '{student_hash}'")
    return next((str(model.model_id) for model in found if str(model.status) == "READY"), None)


def _set_aliases(client: "MlflowClient", registered: RegisteredVersion, decision: Decision) -> None:
    name, version = registered.model_name, registered.version
    client.set_registered_model_alias(name, CHALLENGER, version)
    if decision.outcome == "promote":
        before = _version_with_alias(client, name, CHAMPION)
        if before is not None and str(before.version) != version:
            client.set_registered_model_alias(name, PREVIOUS_CHAMPION, str(before.version))
        client.set_registered_model_alias(name, CHAMPION, version)
    client.set_model_version_tag(name, version, APPLIED_TAG, "true")


def _ensure_registered_model(client: "MlflowClient", model_name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(model_name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


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

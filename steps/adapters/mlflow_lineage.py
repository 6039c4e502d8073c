"""A registered version's lineage, and the check of every hash that can be reached from here."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from proxykd.artifacts import read_json
from proxykd.evaluation import verifying
from proxykd.evaluation.lineage import LINEAGE_FILE
from proxykd.evaluation.verifying import Finding, Status
from proxykd.exceptions import ArtifactError, ModelError
from proxykd.workspace import Workspace
from steps.adapters.artifact_store import find_artifacts
from steps.adapters.mlflow_registry import LINEAGE_TAG, RegisteredVersion, find_version
from steps.adapters.mlflow_tracking import connect, tracking_errors
from steps.settings import scratch_folder

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


def verify(model: str) -> tuple[RegisteredVersion, list[Finding]]:
    """Recompute every hash of a registered student's lineage that can be reached.

    Args:
        model: ``NAME`` (its champion, else its newest version), ``NAME@ALIAS`` or ``NAME/VERSION``.

    Returns:
        The version, and what was found, in the order of the way that data takes, backwards.

    Raises:
        ModelError: if there is no such model, alias or version, or it has no lineage.
        ArtifactError: if the lineage lacks a part.
        TrackingError: if MLflow does not answer.
    """
    registered = find_version(model)
    try:
        with scratch_folder() as scratch:
            return registered, list(_findings(registered, scratch))
    except KeyError as error:
        raise ArtifactError(
            f"expected {error} in {LINEAGE_FILE} of version {registered.version} of {registered.model_name}, found "
            "none: another release or another program wrote it"
        ) from error


@tracking_errors()
def download_registered(registered: RegisteredVersion, destination: Path) -> Path:
    """Everything that is stored with a version, ``lineage.json`` among it.

    Raises:
        ModelError: if it has no lineage.
        TrackingError: if MLflow refuses or does not answer.
    """
    from mlflow.artifacts import download_artifacts

    client = connect()
    destination.mkdir(parents=True, exist_ok=True)
    uri = client.get_model_version_download_uri(registered.model_name, registered.version)
    folder = Path(download_artifacts(uri, dst_path=str(destination), tracking_uri=client.tracking_uri))
    if not (folder / LINEAGE_FILE).is_file():
        raise ModelError(
            f"expected {LINEAGE_FILE} with version {registered.version} of {registered.model_name}, found none: it was "
            "not registered by a run of a specification; nothing can be verified"
        )
    return folder


def _findings(registered: RegisteredVersion, scratch: Path) -> Iterator[Finding]:
    folder, version = download_registered(registered, scratch / "version"), _version(registered)
    document = verifying.check_document(folder / LINEAGE_FILE, version.tags.get(LINEAGE_TAG))
    yield document
    if document.status == Status.DIFFERS:
        yield Finding("all else", Status.NOT_REACHED, f"{LINEAGE_FILE} is not to be trusted: restore it first")
        return
    lineage = read_json(folder / LINEAGE_FILE)
    yield verifying.check_files(lineage, folder)
    yield from verifying.check_specification(lineage, _logged_specification(version, scratch))
    hashes: Mapping[str, str] = lineage["artifacts"]
    found = find_artifacts(set(hashes.values()))
    yield verifying.check_origin(lineage, found[hashes["student"]])
    for name, expected in hashes.items():
        own = verifying.trajectories_folder(lineage, name)
        yield verifying.check_artifact(name, expected, found[expected] if own is None else own)
    yield verifying.check_journal(lineage, found[hashes["completions"]], Workspace.default().journal)
    yield verifying.check_prompts(lineage)


def version_tags(registered: RegisteredVersion) -> dict[str, str]:
    """The tags of a version.

    Raises:
        TrackingError: if MLflow refuses or does not answer.
    """
    return dict(_version(registered).tags)


@tracking_errors()
def _version(registered: RegisteredVersion) -> "ModelVersion":
    return connect().get_model_version(registered.model_name, registered.version)


def _logged_specification(version: "ModelVersion", scratch: Path) -> dict[str, Any] | str:
    """What the version's run logged, or why it cannot be had."""
    from mlflow.exceptions import MlflowException

    if not version.run_id:
        return "the version names no run"
    try:
        path = connect().download_artifacts(version.run_id, "specification.json", str(scratch))
    except (MlflowException, OSError) as error:
        return f"run {version.run_id}: {str(error).strip().partition(chr(10))[0]}"
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        return f"run {version.run_id}: no JSON ({error})"
    return content

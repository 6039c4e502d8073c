"""A registered version -> a folder that needs nothing of ours: for transformers, or one GGUF file for llama.cpp."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from proxykd.artifacts import read_json
from proxykd.evaluation.lineage import LINEAGE_FILE
from proxykd.evaluation.verifying import Finding, Status, check_document, check_files
from proxykd.exceptions import ArtifactError, InputError
from proxykd.models.gguf_writing import Precision, write_gguf
from steps.adapters.mlflow_lineage import download_registered, version_tags
from steps.adapters.mlflow_registry import LINEAGE_TAG, RegisteredVersion, find_version
from steps.settings import scratch_folder

CARD_FILE = "README.md"


def export_folder(model: str, output: Path) -> tuple[RegisteredVersion, Path]:
    """Write the model, its tokenizer, its card and its lineage as a plain Hugging Face folder.

    Args:
        model: ``NAME`` (its champion, else its newest version), ``NAME@ALIAS`` or ``NAME/VERSION``.
        output: New or empty folder.

    Returns:
        The version, and the folder.

    Raises:
        InputError: if the folder holds something.
        ModelError: if there is no such model, alias or version, or it has no lineage.
        ArtifactError: if what was downloaded is not what was registered.
        TrackingError: if MLflow does not answer.
    """
    _check_empty(output)
    registered = find_version(model)
    with _checked(registered) as folder:
        shutil.copytree(folder / "model", output, dirs_exist_ok=True)
        shutil.copy(folder / LINEAGE_FILE, output)
    return registered, output


def export_gguf(model: str, output: Path, *, precision: Precision) -> tuple[RegisteredVersion, Path]:
    """Write the model as one GGUF file, with its card and its lineage beside it.

    Args:
        model: As for ``export_folder``.
        output: New or empty folder.
        precision: Of the matrices.

    Returns:
        The version, and the file.

    Raises:
        ModelError: if the architecture or the tokenizer cannot be written; else as ``export_folder``.
    """
    _check_empty(output)
    registered = find_version(model)
    with _checked(registered) as folder, scratch_folder() as scratch:
        name = f"{registered.model_name}-v{registered.version}-{precision}.gguf"
        licence = read_json(folder / LINEAGE_FILE)["specification"]["content"]["registry"]["licence"]
        write_gguf(folder / "model", scratch / name, precision=precision, licence=licence)
        output.mkdir(parents=True, exist_ok=True)
        shutil.move(scratch / name, output / name)
        for file in (folder / "model" / CARD_FILE, folder / LINEAGE_FILE):
            shutil.copy(file, output)
    return registered, output / name


def _check_empty(output: Path) -> None:
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"expected a new or empty folder, but {output} holds something; name another")


@contextmanager
def _checked(registered: RegisteredVersion) -> Iterator[Path]:
    """The downloaded version, every file of which is what was registered."""
    with scratch_folder() as scratch:
        folder = download_registered(registered, scratch / "version")
        for finding in _findings(registered, folder):
            if finding.status == Status.DIFFERS:
                raise ArtifactError(
                    f"expected version {registered.version} of {registered.model_name} as it was registered, but "
                    f"{finding.what} differs ({finding.detail}); restore it from a copy: nothing was exported"
                )
        yield folder


def _findings(registered: RegisteredVersion, folder: Path) -> Iterator[Finding]:
    yield check_document(folder / LINEAGE_FILE, version_tags(registered).get(LINEAGE_TAG))
    yield check_files(read_json(folder / LINEAGE_FILE), folder)

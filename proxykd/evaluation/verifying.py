"""Checks of a registered student against its lineage: every hash is computed again from what is there.

Each check gives findings: what was looked at, and whether it matched, differs (naming the file, row or key) or could
not be reached (saying why). Nothing here knows a registry or an artifact store; they hand in folders and files.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from proxykd.artifacts import MANIFEST, CompletionSet, read_json
from proxykd.config import RunSpec
from proxykd.config.prompts import EmbeddedPromptsSpec, where_is
from proxykd.data.prompts import hash_inputs
from proxykd.data.trajectory_rows import FOLDER
from proxykd.evaluation.lineage import LINEAGE_FILE, TRAJECTORIES, hash_file, hash_folder
from proxykd.exceptions import ArtifactError, ConfigError, InputError, ProxykdError
from proxykd.records import hash_json
from proxykd.teacher.excerpt import read_excerpt

_SHOWN = 5


class Status(StrEnum):
    """How a check ended."""

    MATCHED = "matched"
    DIFFERS = "differs"
    NOT_REACHED = "not reached"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table.

    Attributes:
        what: What was looked at.
        status: How it ended.
        detail: What differs, why it was not reached, or what matched.
    """

    what: str
    status: Status
    detail: str


def check_document(lineage: Path, expected: str | None) -> Finding:
    """``lineage.json`` against the hash on the registered version.

    Args:
        lineage: The file.
        expected: Its SHA-256 by the version's tag; None = there is no tag.
    """
    if expected is None:
        return Finding("lineage.json", Status.NOT_REACHED, "the version has no tag proxykd.lineage to compare with")
    return _compared("lineage.json", hash_file(lineage), expected)


def check_specification(lineage: Mapping[str, Any], logged: Mapping[str, Any] | str) -> Iterator[Finding]:
    """The specification in the lineage, and the one that was logged with the run.

    Args:
        lineage: Content of ``lineage.json``.
        logged: Content of the run's ``specification.json``, or why there is none.
    """
    expected = lineage["specification"]["hash"]
    yield _compared("specification", hash_json(lineage["specification"]["content"]), expected)
    name = "specification.json of the run"
    if isinstance(logged, str):
        yield Finding(name, Status.NOT_REACHED, logged)
    else:
        yield _compared(name, hash_json(logged), expected)


def check_files(lineage: Mapping[str, Any], folder: Path) -> Finding:
    """The files of the registered version: weights, tokenizer, card, MLflow's own.

    Args:
        lineage: Content of ``lineage.json``.
        folder: The version as it was downloaded.
    """
    expected = lineage["files"]
    found = {name: digest for name, digest in hash_folder(folder).items() if name != LINEAGE_FILE}
    if found == expected:
        return Finding("registered files", Status.MATCHED, f"{len(found)} files")
    return Finding("registered files", Status.DIFFERS, _different(expected, found))


def check_origin(lineage: Mapping[str, Any], student: Path | str) -> Finding:
    """Whether the registered weights are those of the student that was trained and evaluated.

    Args:
        lineage: Content of ``lineage.json``.
        student: The artifact, or why it was not reached.
    """
    what = "registered weights = student's"
    if isinstance(student, str):
        return Finding(what, Status.NOT_REACHED, student)
    try:
        files = read_json(student / MANIFEST)["files"]
    except (ArtifactError, KeyError) as error:
        return Finding(what, Status.DIFFERS, f"{MANIFEST} cannot be read: {error}")
    prefix = f"seed-{lineage['weights']['seed']}/model/"
    trained = {name.removeprefix(prefix): digest for name, digest in files.items() if name.startswith(prefix)}
    registered = {name: lineage["files"].get(f"model/{name}") for name in trained}
    if trained and registered == trained:
        return Finding(what, Status.MATCHED, f"{len(trained)} files")
    return Finding(what, Status.DIFFERS, ", ".join(name for name in trained if registered[name] != trained[name]))


def check_artifact(name: str, expected: str, folder: Path | str) -> Finding:
    """An artifact's files against its manifest, and the manifest against its own hash and the lineage.

    Args:
        name: Of the artifact in the lineage.
        expected: Its hash there.
        folder: The artifact, or why it was not reached.
    """
    what = f"artifact {name}"
    if isinstance(folder, str):
        return Finding(what, Status.NOT_REACHED, folder)
    try:
        manifest = read_json(folder / MANIFEST)
        body = {part: manifest[part] for part in ("kind", "files", "made_from")}
    except (ArtifactError, KeyError) as error:
        return Finding(what, Status.DIFFERS, f"{MANIFEST} cannot be read: {error}")
    if manifest.get("hash") != expected or hash_json(body) != expected:
        return Finding(what, Status.DIFFERS, f"{MANIFEST}: expected hash {expected:.12}, found {hash_json(body):.12}")
    found = {file: digest for file, digest in hash_folder(folder).items() if file != MANIFEST}
    if found != manifest["files"]:
        return Finding(what, Status.DIFFERS, _different(manifest["files"], found))
    return Finding(what, Status.MATCHED, f"{len(found)} files, {expected:.12}")


def trajectories_folder(lineage: Mapping[str, Any], name: str) -> Path | str | None:
    """Where an artifact of the user's own is: the trajectories of ``student.trajectories``.

    Args:
        lineage: Content of ``lineage.json``.
        name: Of the artifact.

    Returns:
        The folder, or why there is none; None = the artifact is in the artifact store.
    """
    if not name.startswith(TRAJECTORIES):
        return None
    stated = lineage["specification"]["content"]["student"]["trajectories"]
    folder = Path(stated[int(name.removeprefix(TRAJECTORIES))])
    found = next((one for one in (folder / FOLDER, folder) if (one / MANIFEST).is_file()), None)
    return f"no artifact in {folder}" if found is None else found


def check_journal(lineage: Mapping[str, Any], completions: Path | str, journal: Path) -> Finding:
    """The journal entries that the completions came from.

    Args:
        lineage: Content of ``lineage.json``.
        completions: The artifact, which says which entries, or why it was not reached.
        journal: The journal's file.
    """
    what, expected = "journal entries", lineage["journal"]["root"]
    if expected is None:
        return Finding(what, Status.NOT_REACHED, "the teacher's texts were recorded: there is no journal")
    if isinstance(completions, str):
        return Finding(what, Status.NOT_REACHED, f"which entries is told by the completions: {completions}")
    if not journal.is_file():
        return Finding(what, Status.NOT_REACHED, f"no journal at {journal}; PROXYKD_HOME names another workspace")
    try:
        found = read_excerpt(CompletionSet(completions), journal)
    except (ProxykdError, OSError, ValueError) as error:
        return Finding(what, Status.DIFFERS, f"cannot be read: {error}")
    if found.root == expected:
        return Finding(what, Status.MATCHED, f"{found.num_entries:,} entries, root {found.root:.12}")
    rows = f"; rows that are not what was written: {found.damaged}" if found.damaged else ""
    missing = found.num_missing - lineage["journal"]["num_missing"]
    gone = f"; entries that are gone: {missing:,}" if missing > 0 else ""
    return Finding(what, Status.DIFFERS, f"expected root {expected:.12}, found {found.root:.12}{rows}{gone}")


def check_prompts(lineage: Mapping[str, Any]) -> Finding:
    """The user's file or dataset that the prompts came from, as far as it is where the specification says."""
    what = "prompts' source"
    expected = lineage["prompts"]["inputs"]
    if expected is None:
        return Finding(what, Status.NOT_REACHED, "the prompts were generated: there is no file")
    try:
        spec = RunSpec.model_validate(lineage["specification"]["content"]).prompts
    except (ValueError, ConfigError) as error:
        return Finding(what, Status.NOT_REACHED, f"this release cannot read the specification: {error}")
    assert not isinstance(spec, EmbeddedPromptsSpec)
    try:
        found = hash_inputs(spec)
    except (InputError, ConfigError, OSError) as error:
        return Finding(what, Status.NOT_REACHED, str(error))
    return _compared(f"{what} {where_is(spec)}", found, expected)


def _compared(what: str, found: str, expected: str) -> Finding:
    if found == expected:
        return Finding(what, Status.MATCHED, f"{expected:.12}")
    return Finding(what, Status.DIFFERS, f"expected hash {expected:.12}, found {found:.12}")


def _different(expected: Mapping[str, str], found: Mapping[str, str]) -> str:
    parts = {
        "changed": sorted(name for name in expected.keys() & found.keys() if expected[name] != found[name]),
        "missing": sorted(expected.keys() - found.keys()),
        "added": sorted(found.keys() - expected.keys()),
    }
    return "; ".join(f"{how}: {', '.join(_shortened(names))}" for how, names in parts.items() if names)


def _shortened(names: list[str]) -> list[str]:
    return names if len(names) <= _SHOWN else [*names[:_SHOWN], f"and {len(names) - _SHOWN} more"]

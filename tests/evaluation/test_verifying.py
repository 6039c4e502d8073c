"""A change of one byte is found, and named, in everything that can be reached."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from proxykd.artifacts import CompletionSet, StudentModel, read_json, seal, write_json
from proxykd.config import RunSpec
from proxykd.data.prompts import hash_inputs
from proxykd.evaluation import verifying
from proxykd.evaluation.lineage import hash_file, store_lineage
from proxykd.evaluation.verifying import Finding, Status
from proxykd.records import Completion, Outcome, canonical_json, hash_json, hash_text
from proxykd.teacher.entries import Entry
from proxykd.teacher.excerpt import read_excerpt
from proxykd.teacher.journal import Journal
from proxykd.teacher.replies import Reply


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def registered(tmp_path: Path) -> Path:
    folder = tmp_path / "version"
    (folder / "model").mkdir(parents=True)
    for name in ("MLmodel", "model/model.safetensors", "model/README.md"):
        (folder / name).write_text(f"content of {name}")
    store_lineage({"weights": {"seed": 3}}, folder)
    return folder


@pytest.fixture
def student(registered: Path, tmp_path: Path) -> StudentModel:
    """The artifact from which the version was registered."""
    found = StudentModel(tmp_path / "student")
    (found.path / "seed-3" / "model").mkdir(parents=True)
    weights = (registered / "model" / "model.safetensors").read_bytes()
    (found.path / "seed-3" / "model" / "model.safetensors").write_bytes(weights)
    seal(found)
    return found


def test_an_untouched_version_matches(registered: Path, student: StudentModel) -> None:
    lineage = read_json(registered / "lineage.json")
    findings = [
        verifying.check_document(registered / "lineage.json", hash_file(registered / "lineage.json")),
        verifying.check_files(lineage, registered),
        verifying.check_origin(lineage, student.path),
        verifying.check_artifact("student", student.hash, student.path),
    ]
    assert [one.status for one in findings] == [Status.MATCHED] * 4


@pytest.mark.parametrize("name", ["MLmodel", "model/model.safetensors", "model/README.md"])
def test_a_registered_file_that_changed_is_named(registered: Path, name: str) -> None:
    flip(registered / name)
    found = verifying.check_files(read_json(registered / "lineage.json"), registered)
    assert (found.status, found.detail) == (Status.DIFFERS, f"changed: {name}")


def test_files_that_are_gone_or_new_are_named(registered: Path) -> None:
    (registered / "MLmodel").rename(registered / "other")
    found = verifying.check_files(read_json(registered / "lineage.json"), registered)
    assert found.detail == "missing: MLmodel; added: other"


def test_a_changed_document_is_found_by_its_tag(registered: Path) -> None:
    before = hash_file(registered / "lineage.json")
    flip(registered / "lineage.json")
    assert verifying.check_document(registered / "lineage.json", before).status == Status.DIFFERS
    assert verifying.check_document(registered / "lineage.json", None).status == Status.NOT_REACHED


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (lambda folder: flip(folder / "seed-3" / "model" / "model.safetensors"), "changed: seed-3/model/model.safeten"),
        (lambda folder: (folder / "more.json").write_text("{}"), "added: more.json"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "manifest.json cannot be read"),
        (lambda folder: (folder / "manifest.json").write_text('{"kind": "student"}'), "manifest.json cannot be read"),
    ],
)
def test_a_damaged_artifact_is_named(student: StudentModel, damage: Callable[[Path], object], named: str) -> None:
    expected = student.hash
    damage(student.path)
    found = verifying.check_artifact("student", expected, student.path)
    assert found.status == Status.DIFFERS
    assert found.detail.startswith(named)


def test_a_manifest_that_was_made_to_fit_the_file_is_found(student: StudentModel) -> None:
    expected = student.hash
    file = student.path / "seed-3" / "model" / "model.safetensors"
    flip(file)
    manifest = student.manifest
    manifest["files"]["seed-3/model/model.safetensors"] = hash_file(file)
    write_json(student.path / "manifest.json", manifest)
    assert "manifest.json: expected hash" in verifying.check_artifact("student", expected, student.path).detail
    seal(student)  # the forger even recomputes its own hash: the lineage still knows the true one
    assert verifying.check_artifact("student", expected, student.path).status == Status.DIFFERS
    assert verifying.check_origin({"weights": {"seed": 3}, "files": {}}, student.path).status == Status.DIFFERS


def test_weights_of_another_student_are_found(registered: Path, student: StudentModel) -> None:
    lineage = read_json(registered / "lineage.json")
    lineage["files"]["model/model.safetensors"] = "0" * 64
    found = verifying.check_origin(lineage, student.path)
    assert (found.status, found.detail) == (Status.DIFFERS, "model.safetensors")
    assert verifying.check_origin({**lineage, "weights": {"seed": 4}}, student.path).status == Status.DIFFERS


def test_specifications_are_compared_with_their_hash() -> None:
    content: dict[str, Any] = {"name": "x", "seed": 1}
    lineage = {"specification": {"hash": hash_json(content), "content": content}}
    assert [one.status for one in verifying.check_specification(lineage, content)] == [Status.MATCHED] * 2
    changed = list(verifying.check_specification(lineage, {**content, "seed": 2}))
    assert [one.status for one in changed] == [Status.MATCHED, Status.DIFFERS]
    lineage["specification"]["content"] = {**content, "seed": 2}
    edited = list(verifying.check_specification(lineage, "the run is gone"))
    assert [one.status for one in edited] == [Status.DIFFERS, Status.NOT_REACHED]
    assert edited[1].detail == "the run is gone"


@pytest.fixture
def asked(tmp_path: Path) -> tuple[dict[str, Any], CompletionSet, Path]:
    """A lineage, its completions and the journal that they came from."""
    journal, requests = tmp_path / "journal.sqlite", [canonical_json({"q": number}) for number in range(5)]
    with Journal(journal) as opened:
        opened.commit(Entry(hash_text(one), Reply(text="yes"), True, one) for one in requests)
    completions = CompletionSet(tmp_path / "completions")
    completions.write(
        Completion(f"{n:016x}", 0, Outcome.OK, "", "yes", "stop", 1, 1, 0.0, "m", hash_text(one))
        for n, one in enumerate(requests)
    )
    seal(completions)
    found = read_excerpt(completions, journal)
    return {"journal": {"root": found.root, "num_missing": 0}}, completions, journal


def _edit(journal: Path, statement: str) -> None:
    with sqlite3.connect(journal) as database:
        database.execute(statement)


def test_a_changed_answer_and_a_missing_one_are_named(asked: tuple[dict[str, Any], CompletionSet, Path]) -> None:
    lineage, completions, journal = asked
    assert verifying.check_journal(lineage, completions.path, journal).status == Status.MATCHED
    _edit(journal, "UPDATE answers SET reply = replace(reply, 'yes', 'yet') WHERE seq = 2")
    found = verifying.check_journal(lineage, completions.path, journal)
    assert found.status == Status.DIFFERS
    assert "rows that are not what was written: [2]" in found.detail
    _edit(journal, "DELETE FROM answers WHERE seq = 2")
    assert "entries that are gone: 1" in verifying.check_journal(lineage, completions.path, journal).detail


def test_a_journal_that_is_no_database_differs(asked: tuple[dict[str, Any], CompletionSet, Path]) -> None:
    lineage, completions, journal = asked
    journal.write_bytes(b"not a database" * 100)
    found = verifying.check_journal(lineage, completions.path, journal)
    assert (found.status, found.detail.startswith("cannot be read")) == (Status.DIFFERS, True)


def test_why_the_journal_was_not_reached_is_said(asked: tuple[dict[str, Any], CompletionSet, Path]) -> None:
    lineage, completions, journal = asked
    recorded = verifying.check_journal({"journal": {"root": None}}, completions.path, journal)
    lost = verifying.check_journal(lineage, "not in the store", journal)
    elsewhere = verifying.check_journal(lineage, completions.path, journal.with_name("none.sqlite"))
    assert {one.status for one in (recorded, lost, elsewhere)} == {Status.NOT_REACHED}
    assert "were recorded" in recorded.detail
    assert lost.detail.endswith("not in the store")
    assert "PROXYKD_HOME" in elsewhere.detail


def _prompts(path: Path, run: RunSpec) -> Callable[[], Finding]:
    sections = run.model_dump(mode="json", exclude={"evaluation"})
    changes = {"prompts": {"kind": "jsonl", "path": str(path)}, "teacher": {"kind": "recorded"}}
    spec = RunSpec.model_validate({**sections, **changes})
    lineage = {
        "specification": {"content": spec.model_dump(mode="json")},
        "prompts": {"inputs": hash_inputs(spec.prompts)},  # type: ignore[arg-type]
    }
    return lambda: verifying.check_prompts(lineage)


def test_a_changed_prompts_file_is_named_and_a_missing_one_not_reached(tmp_path: Path, run_spec: RunSpec) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "Why?", "completion": "So."}\n')
    check = _prompts(path, run_spec)
    assert check().status == Status.MATCHED
    flip(path)
    assert (check().status, str(path) in check().what) == (Status.DIFFERS, True)
    path.unlink()
    assert (check().status, str(path) in check().detail) == (Status.NOT_REACHED, True)


def test_prompts_that_were_generated_have_no_file() -> None:
    assert verifying.check_prompts({"prompts": {"inputs": None}}).status == Status.NOT_REACHED


def test_a_specification_of_another_release_is_not_reached() -> None:
    found = verifying.check_prompts({"prompts": {"inputs": "0"}, "specification": {"content": {"strange": 1}}})
    assert found.status == Status.NOT_REACHED


def test_trajectories_are_where_the_specification_says(student: StudentModel, tmp_path: Path) -> None:
    folder = tmp_path / "corrections"
    folder.mkdir()
    lineage = {"specification": {"content": {"student": {"trajectories": [str(student.path), str(folder)]}}}}
    assert verifying.trajectories_folder(lineage, "proxy") is None
    assert verifying.trajectories_folder(lineage, "trajectories-0") == student.path
    assert verifying.trajectories_folder(lineage, "trajectories-1") == f"no artifact in {folder}"
    student.path.rename(folder / "trajectories")
    assert verifying.trajectories_folder(lineage, "trajectories-1") == folder / "trajectories"
